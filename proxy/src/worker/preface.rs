//! What may have to come before anything is served: a PROXY protocol header, and the ClientHello by which a TCP listener
//! chooses a cluster.

use underpass_command::state::ProxyProtocol;

use super::event_loop::Worker;
use super::session::{AddressText, BUFFERS_PER_REQUEST, BUFFERS_PER_TUNNEL, Ending, Exchange, Phase, Step};
use crate::forward::{Buffer, Received};
use crate::http1::{Fields, Reason};
use crate::metrics::Counter;
use crate::route::{Asked, Destination, Found};
use crate::{proxy_protocol, tls_hello};

/// Reads before the others get their turn. A reader of many small pieces has no right to more.
const READS_MAX: usize = 16;

impl Worker {
    /// A connection was accepted that does not begin with an HTTP request.
    pub(super) fn begin_preface(&mut self, key: usize, proxy_protocol: ProxyProtocol) {
        let session = &mut self.sessions[key];
        session.phase = Phase::Preface;
        session.proxy_header_due = proxy_protocol == ProxyProtocol::Require;
        if session.is_tcp() {
            session.exchange = Exchange { active: true, close: true, ..Exchange::none() };
            session.first_byte_us = self.core.now.us.max(1);
            if self.core.log.is_enabled() {
                let listener = &self.core.listeners[usize::from(session.listener)];
                self.core.log.keep(key, b"TCP", listener.configured.name.as_bytes(), b"");
            }
        }
    }

    /// Reads what must come first, then lets the connection go its way. Nothing is read where nothing must come.
    pub(super) fn preface(&mut self, key: usize) -> Step {
        for _ in 0..READS_MAX {
            if let Some(step) = self.parse_preface(key) {
                return step;
            }
            let session = &mut self.sessions[key];
            if !session.client.readable {
                session.client.release_if_empty(&mut self.core.buffers);
                if session.client.buffer.is_none() {
                    session.give_reservation_back(&mut self.core.buffers);
                }
                return Step::Wait; // the deadline has run since the connection was accepted
            }
            let buffers = if session.is_tcp() { BUFFERS_PER_TUNNEL } else { BUFFERS_PER_REQUEST };
            if !session.reserve(buffers, &mut self.core.buffers) {
                self.core.count(Counter::BuffersExhausted);
                return match session.is_tcp() {
                    true => self.break_off(key, Reason::BuffersExhausted),
                    false => self.refuse_connection(key, Reason::BuffersExhausted),
                };
            }
            if let Some(buffer) = session.client.buffer.as_mut()
                && buffer.end == self.core.buffers.size()
            {
                if buffer.unscanned == 0 {
                    return self.route_without_name(key, Reason::HelloTooLong);
                }
                self.core.buffers.compact(buffer); // the PROXY protocol header is done with
            }
            match session.client.receive(&mut self.core.buffers) {
                Ok(Received::Bytes(_) | Received::Nothing) => {}
                Ok(Received::Closed) => return self.preface_ended(key),
                Err(_) => {
                    session.exchange.ending = Ending::Client;
                    return Step::Close;
                }
            }
        }
        Step::Yield
    }

    /// Looks at what has come; `None` if more must.
    fn parse_preface(&mut self, key: usize) -> Option<Step> {
        if self.sessions[key].proxy_header_due
            && let Err(step) = self.take_proxy_header(key)
        {
            return step;
        }
        let session = &mut self.sessions[key];
        if !session.is_tcp() {
            session.phase = Phase::Head;
            return Some(Step::Again);
        }
        let listener = &self.core.listeners[usize::from(session.listener)];
        if !self.core.server_names.has_routes(listener.names_scope) {
            // The configuration demands a default cluster where there are no such routes.
            return Some(match listener.default_cluster {
                Some(cluster) => self.choose_backend(key, cluster),
                None => self.break_off(key, Reason::BackendMissing),
            });
        }
        let buffer = session.client.buffer.as_ref().filter(|buffer| buffer.has_unscanned())?;
        let bytes = self.core.buffers.bytes(buffer, buffer.unscanned..buffer.end);
        let reason = match tls_hello::parse(bytes) {
            Ok(None) => return None,
            Ok(Some(hello)) => match hello.server_name {
                Some(name) => return Some(self.route_by_name(key, &name)),
                None => Reason::ServerNameMissing,
            },
            Err(tls_hello::Fault::Missing) => Reason::TlsMissing,
            Err(tls_hello::Fault::Malformed) => Reason::HelloMalformed,
        };
        Some(self.route_without_name(key, reason))
    }

    /// Takes the PROXY protocol header off the front of what has come. `Err` says what else to do: `None` is to read more.
    fn take_proxy_header(&mut self, key: usize) -> Result<(), Option<Step>> {
        let session = &mut self.sessions[key];
        let Some(buffer) = session.client.buffer.as_mut() else { return Err(None) };
        let bytes = self.core.buffers.bytes(buffer, buffer.unscanned..buffer.end);
        let header = match proxy_protocol::parse(bytes, self.core.buffers.size()) {
            Ok(None) => return Err(None),
            Ok(Some(header)) => header,
            Err(fault) => {
                let reason = match fault {
                    proxy_protocol::Fault::Missing => Reason::ProxyHeaderMissing,
                    proxy_protocol::Fault::Malformed => Reason::ProxyHeaderMalformed,
                    proxy_protocol::Fault::TooLong => Reason::ProxyHeaderTooLong,
                };
                return Err(Some(self.break_off(key, reason)));
            }
        };
        // What follows belongs to the protocol behind it.
        buffer.unscanned += header.size;
        (buffer.start, buffer.cleared) = (buffer.unscanned, buffer.unscanned);
        session.proxy_header_due = false;
        if let Some(addresses) = header.addresses {
            session.source = addresses.source;
            session.destination = Some(addresses.destination);
            session.address = AddressText::new(addresses.source.ip());
        }
        session.client.release_if_empty(&mut self.core.buffers);
        if session.client.buffer.is_none() {
            session.give_reservation_back(&mut self.core.buffers);
        }
        Ok(())
    }

    fn route_by_name(&mut self, key: usize, name: &tls_hello::ServerName) -> Step {
        let session = &self.sessions[key];
        let listener = &self.core.listeners[usize::from(session.listener)];
        if self.core.log.is_enabled() {
            self.core.log.keep(key, b"TCP", listener.configured.name.as_bytes(), name.as_bytes());
        }
        let fields = Fields::default();
        let asked = Asked { host: name.as_bytes(), path: b"/", method: b"", fields: &fields, bytes: b"" };
        match self.core.server_names.find(listener.names_scope, &asked) {
            Found::Route(Destination { cluster: Some(cluster), name: route, .. }) => {
                let (cluster, route) = (*cluster, route.clone());
                self.sessions[key].exchange.route = route;
                self.choose_backend(key, cluster)
            }
            _ => self.route_without_name(key, Reason::ServerNameUnknown),
        }
    }

    /// No route by server name applies, for this reason.
    fn route_without_name(&mut self, key: usize, reason: Reason) -> Step {
        let listener = &self.core.listeners[usize::from(self.sessions[key].listener)];
        match listener.default_cluster {
            Some(cluster) => self.choose_backend(key, cluster),
            None => self.break_off(key, reason),
        }
    }

    /// The client sends nothing more, and what must come first has not come.
    fn preface_ended(&mut self, key: usize) -> Step {
        let session = &mut self.sessions[key];
        let begun = session.client.buffer.as_ref().is_some_and(Buffer::has_unscanned);
        match begun {
            true if session.proxy_header_due => self.break_off(key, Reason::ProxyHeaderTruncated),
            true => self.route_without_name(key, Reason::HelloTruncated),
            // Whoever only looks whether somebody listens.
            false => Step::Close,
        }
    }

    /// The deadline of the preface has passed.
    pub(super) fn preface_timed_out(&mut self, key: usize) -> Step {
        self.core.count(Counter::TimeoutHead);
        let session = &self.sessions[key];
        if session.proxy_header_due {
            return self.break_off(key, Reason::ProxyHeaderTimeout);
        }
        let silent = session.client.buffer.is_none();
        if silent && session.is_tcp() {
            // It may speak a protocol in which the server begins.
            return self.route_without_name(key, Reason::HelloTimeout);
        }
        self.break_off(key, Reason::HelloTimeout)
    }
}
