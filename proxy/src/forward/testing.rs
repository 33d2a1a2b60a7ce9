//! What tests of the forwarders share.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use underpass_loader::{LoadError, RedirectPrograms};

use super::{Endpoint, Redirector};

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

/// Programs for one flow at a time, and their maps; says so and is none where kernel or privileges do not allow it.
pub(super) fn redirector(credit: u64, test: &str) -> Option<(RedirectPrograms, Redirector)> {
    let programs = match RedirectPrograms::load(1) {
        Ok(programs) => programs,
        Err(error @ LoadError::Unavailable { .. }) => {
            println!("SKIP {test}: {error}");
            return None;
        }
        Err(error) => panic!("loading: {error}"),
    };
    let descriptors: Vec<_> =
        programs.descriptors().into_iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
    let redirector = Redirector::open(descriptors.try_into().unwrap(), credit).unwrap();
    Some((programs, redirector))
}
