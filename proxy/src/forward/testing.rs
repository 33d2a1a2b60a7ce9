//! What tests of the forwarders share.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Endpoint;

const PATIENCE: Duration = Duration::from_secs(10);

/// A connection over loopback: its far end, and the end that a worker would have.
pub(super) fn connection() -> io::Result<(TcpStream, Endpoint)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let far = TcpStream::connect(listener.local_addr()?)?;
    let (near, _) = listener.accept()?;
    near.set_nonblocking(true)?;
    near.set_nodelay(true)?;
    Ok((far, Endpoint::new(mio::net::TcpStream::from_std(near), false, true)))
}

/// Waits until it is so.
pub(super) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(1));
    }
}
