//! What a worker knows of listeners, clusters and backends, and how it changes: each by its number, in time that does not
//! depend on how many there are.
//!
//! What is removed while requests use it stays in its place until the last of them has ended, and the supervisor is told
//! then ([`crate::ipc::Finished`]): only after that it gives the number to something else.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use mio::Interest;
use mio::net::TcpListener;
use underpass_command::state::{self, Limits, Settings};

use super::balancing::sticky_of;
use super::connection::{self, Connections};
use super::core::{Cluster, Core, Listening, Presence, Upstream};
use super::event_loop::{Kind, token};
use crate::balance::{Balancer, Latency, Line, Outcomes, RetryBudget};
use crate::metrics::BackendCounter;
use crate::route::{Destination, Table};

impl Cluster {
    fn vacant() -> Self {
        Self {
            presence: Presence::Vacant,
            active: 0,
            balancer: Balancer::new(&state::Cluster::new(""), 0),
            budget: RetryBudget::default(),
            line: Line::default(),
            called: false,
            configured: state::Cluster::new(""),
            upstreams: Vec::new(),
        }
    }
}

impl Upstream {
    fn new(cluster: u32, configured: state::Backend, presence: Presence) -> Self {
        let address = configured.address;
        let text = address.to_string().into_bytes();
        Self {
            presence,
            cluster,
            configured,
            address,
            text,
            active: 0,
            latency: Latency::default(),
            outcomes: Outcomes::default(),
            sticky: 0,
            idle: Vec::new(),
        }
    }

    fn vacant() -> Self {
        let nowhere = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
        Self::new(0, state::Backend::new(nowhere), Presence::Vacant)
    }
}

/// The place of a number in a table, which grows as far as it must.
fn place<T>(table: &mut Vec<T>, number: usize, vacant: impl FnMut() -> T) -> &mut T {
    if number >= table.len() {
        table.resize_with(number + 1, vacant);
    }
    &mut table[number]
}

/// Gives up the places at the end of a table that nothing has, and memory if that is much.
fn shrink<T>(table: &mut Vec<T>, is_vacant: impl Fn(&T) -> bool) {
    while table.last().is_some_and(&is_vacant) {
        table.pop();
    }
    if table.capacity() > 4 * table.len() + 64 {
        table.shrink_to(2 * table.len());
    }
}

fn taken(what: &str, number: usize) -> String {
    format!("{what} {number} is there already")
}

fn missing(what: &str, number: usize) -> String {
    format!("{what} {number} does not exist")
}

// Clusters.

impl Core {
    /// Makes a new cluster.
    pub(super) fn add_cluster(&mut self, number: u32, configured: state::Cluster) -> Result<(), String> {
        // Workers begin at different backends.
        let seed = self.random.next();
        let place = place(&mut self.clusters, number as usize, Cluster::vacant);
        if place.presence != Presence::Vacant {
            return Err(taken("cluster", number as usize));
        }
        let balancer = Balancer::new(&configured, seed);
        *place = Cluster { presence: Presence::Present, configured, balancer, ..Cluster::vacant() };
        Ok(())
    }

    /// Gives a cluster other settings. Requests under way go on as they began.
    pub(super) fn change_cluster(&mut self, number: u32, configured: state::Cluster) -> Result<(), String> {
        let cluster = self.present_cluster(number)?;
        cluster.balancer.configure(&configured);
        cluster.configured = configured;
        self.call_line(number);
        Ok(())
    }

    /// Removes a cluster that nothing leads to any more.
    pub(super) fn remove_cluster(&mut self, number: u32) -> Result<(), String> {
        self.present_cluster(number)?.presence = Presence::Leaving;
        self.check_cluster(number);
        Ok(())
    }

    fn present_cluster(&mut self, number: u32) -> Result<&mut Cluster, String> {
        let found = self.clusters.get_mut(number as usize);
        found
            .filter(|cluster| cluster.presence == Presence::Present)
            .ok_or_else(|| missing("cluster", number as usize))
    }

    /// Counts a request or a connection that is led to a cluster.
    #[inline]
    pub(super) fn enter_cluster(&mut self, number: u32) {
        self.clusters[number as usize].active += 1;
    }

    /// Counts it out again.
    #[inline]
    pub(super) fn leave_cluster(&mut self, number: u32) {
        let cluster = &mut self.clusters[number as usize];
        cluster.active -= 1;
        if cluster.presence == Presence::Leaving {
            self.check_cluster(number);
        }
    }

    /// Frees the place of a removed cluster if nothing uses it any more.
    #[cold]
    fn check_cluster(&mut self, number: u32) {
        let cluster = &mut self.clusters[number as usize];
        if cluster.presence == Presence::Leaving && cluster.active == 0 {
            *cluster = Cluster::vacant();
            shrink(&mut self.clusters, |cluster| cluster.presence == Presence::Vacant);
            self.finished.clusters.push(number);
        }
    }
}

// Backends.

impl Core {
    /// Makes a new backend.
    pub(super) fn add_backend(
        &mut self,
        number: u32,
        cluster: u32,
        backend: state::Backend,
    ) -> Result<(), String> {
        self.present_cluster(cluster)?;
        let place = place(&mut self.upstreams, number as usize, Upstream::vacant);
        if place.presence != Presence::Vacant {
            return Err(taken("backend", number as usize));
        }
        let cluster_number = cluster;
        let cluster = &mut self.clusters[cluster as usize];
        let sticky = sticky_of(self.sticky_key, &cluster.configured.name, &backend);
        cluster.upstreams.push(number);
        cluster.balancer.add(number, &backend, sticky, self.now.ms);
        *place = Upstream { sticky, ..Upstream::new(cluster_number, backend, Presence::Present) };
        self.call_line(cluster_number);
        self.check_backend(number);
        Ok(())
    }

    /// Gives a backend other settings. Requests under way go on as they began.
    pub(super) fn change_backend(&mut self, number: u32, backend: state::Backend) -> Result<(), String> {
        let upstream = self.present_backend(number)?;
        let cluster = upstream.cluster;
        upstream.configured = backend.clone();
        let found = &mut self.clusters[cluster as usize];
        let sticky = sticky_of(self.sticky_key, &found.configured.name, &backend);
        found.balancer.change(number, &backend, sticky);
        self.upstreams[number as usize].sticky = sticky;
        self.call_line(cluster);
        self.check_backend(number);
        Ok(())
    }

    /// Removes a backend: it gets no request any more, its idle connections are closed.
    pub(super) fn remove_backend(
        &mut self,
        connections: &mut Connections,
        number: u32,
    ) -> Result<(), String> {
        let upstream = self.present_backend(number)?;
        upstream.presence = Presence::Leaving;
        let cluster_number = upstream.cluster;
        let cluster = &mut self.clusters[cluster_number as usize];
        cluster.upstreams.retain(|other| *other != number);
        cluster.balancer.remove(number);
        self.call_line(cluster_number); // with the last of them goes all hope
        self.close_idle(connections, number);
        self.check_backend(number);
        Ok(())
    }

    /// Closes the idle connections to a backend.
    pub(super) fn close_idle(&mut self, connections: &mut Connections, number: u32) {
        while let Some(&key) = self.upstreams[number as usize].idle.last() {
            connection::close(self, connections, key);
        }
    }

    fn present_backend(&mut self, number: u32) -> Result<&mut Upstream, String> {
        let found = self.upstreams.get_mut(number as usize);
        found
            .filter(|upstream| upstream.presence == Presence::Present)
            .ok_or_else(|| missing("backend", number as usize))
    }

    /// Counts a request or a connection that a backend serves.
    #[inline]
    pub(super) fn enter_backend(&mut self, number: u32) {
        let upstream = &mut self.upstreams[number as usize];
        upstream.active += 1;
        self.metrics.backend(number).set(BackendCounter::Active, u64::from(upstream.active));
    }

    /// Counts it out again.
    #[inline]
    pub(super) fn leave_backend(&mut self, number: u32) {
        let upstream = &mut self.upstreams[number as usize];
        upstream.active -= 1;
        self.metrics.backend(number).set(BackendCounter::Active, u64::from(upstream.active));
        let cluster = upstream.cluster;
        if upstream.active == 0 && (upstream.presence == Presence::Leaving || upstream.configured.drain) {
            self.check_backend(number);
        }
        self.call_line(cluster);
    }

    /// Tells of a backend that is to get no request and has none left, and frees the place of one that was removed.
    ///
    /// A connection on its way to its end still has the number, but is of no request, and asks nothing of its backend.
    #[cold]
    fn check_backend(&mut self, number: u32) {
        let upstream = &mut self.upstreams[number as usize];
        if upstream.active > 0 {
            return;
        }
        match upstream.presence {
            Presence::Leaving => {
                debug_assert!(upstream.idle.is_empty(), "idle connections of a removed backend");
                *upstream = Upstream::vacant();
                shrink(&mut self.upstreams, |upstream| upstream.presence == Presence::Vacant);
                self.finished.backends.push(number);
            }
            Presence::Present if upstream.configured.drain => {
                self.finished.drained.push((number, self.revision));
            }
            Presence::Present | Presence::Vacant => {}
        }
    }
}

// Listeners.

impl Listening {
    fn vacant() -> Self {
        let nowhere = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
        Self {
            presence: Presence::Vacant,
            sessions: 0,
            socket: None,
            configured: state::Listener::new("", nowhere),
            scope: 0,
            names_scope: 0,
            default_cluster: None,
            port: Vec::new(),
            pending: false,
        }
    }
}

impl Core {
    /// Makes a new listener of a socket that listens already.
    pub(super) fn add_listener(
        &mut self,
        number: u16,
        default_cluster: Option<u32>,
        configured: state::Listener,
        descriptor: OwnedFd,
    ) -> Result<(), String> {
        let key = usize::from(number);
        if place(&mut self.listeners, key, Listening::vacant).presence != Presence::Vacant {
            return Err(taken("listener", key));
        }
        let name = configured.name.clone();
        let fault = |error: std::io::Error| format!("listener \"{name}\": {error}");
        let socket = std::net::TcpListener::from(descriptor);
        let port = socket.local_addr().map_err(fault)?.port();
        socket.set_nonblocking(true).map_err(fault)?;
        // Accepted sockets inherit it (tcp(7)): heads and small bodies go out at once.
        socket2::SockRef::from(&socket).set_tcp_nodelay(true).map_err(fault)?;
        // While this process drains, another one accepts.
        let mut socket = (!self.draining).then(|| TcpListener::from_std(socket));
        if let Some(socket) = &mut socket {
            let token = token(Kind::Listener, key, 0);
            self.registry.register(socket, token, Interest::READABLE).map_err(fault)?;
        }
        self.listeners[key] = Listening {
            presence: Presence::Present,
            sessions: 0,
            socket,
            scope: self.routes.hold_listener(&name),
            names_scope: self.server_names.hold_listener(&name),
            configured,
            default_cluster,
            port: port.to_string().into_bytes(),
            // Whatever came before the registration is looked for in the next turn.
            pending: !self.draining,
        };
        Ok(())
    }

    /// Gives a listener other settings, for the requests to come.
    pub(super) fn change_listener(
        &mut self,
        number: u16,
        default_cluster: Option<u32>,
        configured: state::Listener,
    ) -> Result<(), String> {
        let found = self.listeners.get_mut(usize::from(number));
        let listener = found
            .filter(|listener| listener.presence == Presence::Present)
            .ok_or_else(|| missing("listener", usize::from(number)))?;
        listener.configured = configured;
        listener.default_cluster = default_cluster;
        Ok(())
    }

    /// Counts a connection that came in by a listener.
    pub(super) fn enter_listener(&mut self, number: u16) {
        self.listeners[usize::from(number)].sessions += 1;
    }

    /// Counts it out again.
    pub(super) fn leave_listener(&mut self, number: u16) {
        self.listeners[usize::from(number)].sessions -= 1;
        self.check_listener(number);
    }

    /// Closes the socket of a listener, and lets nobody in by it any more. What waits in its queue should have been
    /// accepted.
    pub(super) fn close_listener(&mut self, number: u16) {
        let listener = &mut self.listeners[usize::from(number)];
        listener.pending = false;
        if let Some(mut socket) = listener.socket.take() {
            // While the supervisor holds the socket too, closing ours would leave it in epoll. It lets go as well, and
            // then what connects is refused by the kernel, or goes to a worker that still accepts.
            let _ = self.registry.deregister(&mut socket);
        }
    }

    /// Removes a listener whose socket has been closed.
    pub(super) fn remove_listener(&mut self, number: u16) {
        self.listeners[usize::from(number)].presence = Presence::Leaving;
        self.check_listener(number);
    }

    fn check_listener(&mut self, number: u16) {
        let listener = &mut self.listeners[usize::from(number)];
        if listener.presence == Presence::Leaving && listener.sessions == 0 {
            let name = std::mem::take(&mut listener.configured.name);
            *listener = Listening::vacant();
            self.routes.release_listener(&name);
            self.server_names.release_listener(&name);
            self.finished.listeners.push(number);
        }
    }
}

// Routes and settings.

impl Core {
    /// Puts a route in its place, or in the place of the one that matches the same.
    pub(super) fn put_route(&mut self, route: &state::Route, cluster: Option<u32>) -> Result<(), String> {
        let mut destination = Destination::new(route, cluster)?;
        destination.name = self.log.wants_route().then(|| Rc::new(route.key().to_string()));
        self.table(route.sni.is_some()).add(route, destination)
    }

    /// Takes a route out.
    pub(super) fn remove_route(&mut self, key: &state::RouteKey) {
        self.table(key.sni.is_some()).remove(key);
    }

    /// Puts a named answer in its place, or in the place of the one of its name.
    pub(super) fn put_answer(&mut self, answer: &state::Answer) -> Result<(), String> {
        self.own.put(answer)
    }

    /// Takes a named answer out.
    pub(super) fn remove_answer(&mut self, name: &str) {
        self.own.remove(name);
    }

    fn table(&mut self, by_name: bool) -> &mut Table {
        if by_name { &mut self.server_names } else { &mut self.routes }
    }

    /// Takes other settings. What pools are made of was settled at start, and is what it was.
    pub(super) fn change_settings(&mut self, settings: Settings) {
        let sized = &self.settings.limits;
        let limits = Limits {
            connections: sized.connections,
            buffers: sized.buffers,
            buffer_size: sized.buffer_size,
            head_size_max: sized.head_size_max,
            header_count_max: sized.header_count_max,
            target_size_max: sized.target_size_max,
            pipes: sized.pipes,
            pipe_size: sized.pipe_size,
            redirect_flows: sized.redirect_flows,
            redirect_credit: sized.redirect_credit,
            unsent_max: sized.unsent_max,
            ..settings.limits
        };
        self.settings = Settings { limits, ..settings };
    }
}
