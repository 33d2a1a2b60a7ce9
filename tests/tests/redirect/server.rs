//! The backend's side. Whatever the proxy breaks off is its right; what arrives must be right.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use underpass_tests::backend::Connection;

use crate::plan::{Breaker, Fault, Framing, Plan, Tunnel, WILD};
use crate::wire::{Line, Out, Pace};

pub(crate) const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: bytes\r\n\r\n";

/// Tunnels whose end has not been seen here.
pub(crate) static TUNNELS: AtomicUsize = AtomicUsize::new(0);

/// Serves one connection.
pub(crate) fn serve(connection: &mut Connection) {
    let number = connection.number as u64;
    let mut line = Line::new(connection.peer.stream(), number, Pace::Fast);
    let mut out = Out::new(connection.peer.stream(), number);
    loop {
        let Ok(Some(head)) = line.next_head() else { return };
        if let Some(seed) = head.target().strip_prefix("/tunnel/") {
            let plan = Tunnel::new(seed.parse().expect("a seed in the target"));
            if out.push(SWITCHED.as_bytes()).and_then(|()| out.flush()).is_ok() {
                TUNNELS.fetch_add(1, Relaxed);
                tunnel(connection.peer.stream(), line, &plan);
                TUNNELS.fetch_sub(1, Relaxed);
            }
            return;
        }
        let plan = Plan::of(head.target());
        assert_eq!(head.method(), plan.method);
        line.set_pace(plan.pace);
        line.what = format!("read by the backend on connection {number}: {plan:?}");
        let framing = head.request_framing().expect("framing that is plain");
        if plan.early {
            if respond(&mut out, &plan, connection.peer.stream()).is_ok() {
                // Closing now would reset the connection, and take with it what has not arrived.
                let _ = connection.peer.stream().shutdown(Shutdown::Write);
                let _ = line.body(framing, plan.seed, plan.up_size);
                while line.discard().is_ok_and(|count| count > 0) {}
            }
            return;
        }
        if line.body(framing, plan.seed, plan.up_size).is_err()
            || respond(&mut out, &plan, connection.peer.stream()).is_err()
            || plan.leaves
            || plan.down == Framing::Close
        {
            return;
        }
        line.set_pace(Pace::Fast);
    }
}

/// Answers; an error when it could not, or was not to.
fn respond(out: &mut Out<'_>, plan: &Plan, stream: &TcpStream) -> io::Result<()> {
    let head = plan.response_head();
    match plan.fault {
        Fault::None => {}
        Fault::NoAnswer => return Err(io::Error::other("as planned")),
        Fault::Short | Fault::Reset => {
            // At least the last byte is missing.
            out.cut_after(1 + (head.len() as u64 + plan.down_size - 2) * plan.fault_at / 1000);
            if plan.fault == Fault::Reset {
                socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
            }
        }
    }
    out.push(head.as_bytes())?;
    out.body(plan.down.chunk_max(), plan.down_seed(), plan.down_size)?;
    out.flush()
}

/// Both directions at once.
fn tunnel(stream: &TcpStream, mut line: Line<'_>, plan: &Tunnel) {
    line.set_pace(plan.backend_pace);
    line.what = format!("read by the backend: {plan:?}");
    let breaks = plan.breaker == Breaker::Backend;
    if breaks {
        socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }
    thread::scope(|scope| {
        let writer = scope.spawn(|| send_direction(stream, plan, !plan.seed, plan.down_size, breaks));
        let Err(error) = line.until_end(plan.seed, plan.up_size) else { return };
        let cut_in_order = error.kind() == ErrorKind::UnexpectedEof && !breaks && plan.seed & WILD == 0;
        if cut_in_order {
            let writer_met_it = writer.join().is_ok_and(|sent| !sent);
            assert!(writer_met_it, "half a stream looks whole: {}", line.what);
        } else if !breaks {
            // Half a stream must not look whole: this side is reset too, and whatever still waits is woken.
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
}

/// Sends all of one direction and ends it, or a part and breaks the tunnel off; false when it could do neither.
pub(crate) fn send_direction(stream: &TcpStream, plan: &Tunnel, seed: u64, size: u64, breaks: bool) -> bool {
    let mut out = Out::new(stream, seed);
    if breaks {
        out.cut_after(size * plan.break_at / 1000);
    }
    let sent = out.body(None, seed, size).and_then(|()| out.flush());
    let end = if breaks && (out.is_cut || sent.is_ok()) {
        // Ends the reader of this side and sends nothing; the reset follows when the socket is closed.
        Shutdown::Read
    } else if sent.is_ok() {
        Shutdown::Write
    } else {
        Shutdown::Both
    };
    // It may have ended already.
    let _ = stream.shutdown(end);
    end != Shutdown::Both
}
