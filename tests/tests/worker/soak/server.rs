//! The backend's side.

use std::net::Shutdown;

use underpass_tests::backend::Connection;

use super::plan::{Fault, Framing, Plan, Random};

/// Serves one connection. Whatever the proxy breaks off is its right; what arrives whole must be right.
pub(crate) fn serve(connection: &mut Connection) {
    while let Ok(Some(head)) = connection.peer.try_head() {
        if head.target() == "/tunnel" {
            return echo(connection);
        }
        let plan = Plan::of(&head);
        assert_eq!(head.method(), plan.method);
        if plan.early {
            if answer(connection, &plan) || plan.fault == Fault::None {
                // Closing now would reset the connection, and take with it what has not arrived.
                let _ = connection.peer.stream().shutdown(Shutdown::Write);
                let _ = connection.peer.try_rest();
            }
            return;
        }
        if plan.expects && connection.peer.try_send("HTTP/1.1 100 Continue\r\n\r\n").is_err() {
            return;
        }
        let Ok(request) = connection.peer.try_request_body(head) else { return };
        assert!(request.body == plan.up_body(), "another body arrived than was sent: {plan:?}");
        if !answer(connection, &plan) {
            return;
        }
    }
}

/// Answers; false when the connection ends.
fn answer(connection: &mut Connection, plan: &Plan) -> bool {
    // Other cuts each time, so that a retry is not the same again.
    let mut random = Random::new(plan.seed ^ connection.number as u64);
    let mut response = plan.response(&mut random);
    match plan.fault {
        Fault::None => {}
        Fault::NoAnswer => return false,
        Fault::Short | Fault::Reset => {
            // At least the last byte is missing, if there is anything to miss it.
            response.truncate(1 + random.below(response.len() - 1));
            if plan.fault == Fault::Reset {
                connection.peer.reset_on_close();
            }
        }
    }
    for piece in random.cut(&response) {
        if connection.peer.try_send(piece).is_err() {
            return false;
        }
    }
    plan.fault == Fault::None && !plan.leaves && (plan.down != Framing::Close || plan.is_empty())
}

/// Sends back what comes, until the end.
fn echo(connection: &mut Connection) {
    let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    if connection.peer.try_send(switched).is_err() {
        return;
    }
    while let Ok(some) = connection.peer.some() {
        if some.is_empty() || connection.peer.try_send(&some).is_err() {
            return;
        }
    }
    // It was reset, and so is this side, lest half a stream look whole.
    connection.peer.reset_on_close();
}
