//! TCP listeners: from the choice of a cluster to the tunnel, and the ends without one.

use super::event_loop::Worker;
use super::session::{BUFFERS_PER_TUNNEL, Step};
use crate::forward::{Flow, Kind, Ledger};
use crate::http1::{Framing, Reason};
use crate::metrics::{Counter, Peer};

impl Worker {
    /// The cluster of a TCP connection is known.
    pub(super) fn choose_backend(&mut self, key: usize, cluster: u32) -> Step {
        let session = &mut self.sessions[key];
        self.core.enter_cluster(cluster);
        session.exchange.cluster = Some(cluster);
        session.exchange.mode = self.core.redirect_mode(session.listener, cluster);
        self.dispatch(key, false)
    }

    /// A backend was reached for a TCP connection.
    pub(super) fn open_tcp_tunnel(&mut self, key: usize) -> Step {
        let exchange = &mut self.sessions[key].exchange;
        let ledger = Ledger::new(Framing::UntilClose, self.core.trailer_limits);
        let policy = self.core.policy(exchange.mode);
        exchange.response = Flow::new(Kind::Tcp, ledger.clone(), policy, false);
        exchange.request = Flow::new(Kind::Tcp, ledger, policy, false);
        // From here on an end that is not in order must be a reset.
        exchange.response_head_done = true;
        self.core.count(Counter::TcpConnections);
        self.begin_tunnel(key)
    }

    /// Ends a connection that nothing can be answered on.
    pub(super) fn break_off(&mut self, key: usize, reason: Reason) -> Step {
        let peer = if reason.is_of_backend() { Peer::Backend } else { Peer::Client };
        self.core.refused(peer, reason);
        self.close_backend(key);
        let session = &mut self.sessions[key];
        session.exchange.reason = Some(reason);
        // Before an HTTP request begins there is none to count, but the line of the log is wanted.
        if !std::mem::replace(&mut session.exchange.active, true) {
            session.count_unread_request(self.core.now.us);
            self.core.gauge(Counter::RequestsActive, true);
            if self.core.log.is_enabled() {
                self.core.log.keep(key, b"-", b"-", b"");
            }
        }
        Step::Reset
    }

    /// Whether a tunnel can go on: it has buffers for what is to be moved, or there is nothing to be moved. A tunnel that
    /// finds none is queued, and driven again when some are given back; meanwhile its bytes wait in the kernel.
    pub(super) fn reserve_for_tunnel(&mut self, key: usize) -> bool {
        let session = &mut self.sessions[key];
        if session.reserve(BUFFERS_PER_TUNNEL, &mut self.core.buffers) {
            return true;
        }
        self.core.count(Counter::BuffersExhausted);
        if !session.waiting {
            session.waiting = true;
            self.core.waiting.push_back(key);
        }
        false
    }
}
