//! What the supervisor says: the state at start, changes while running, the end.

use std::io;
use std::os::fd::OwnedFd;

use mio::Interest;
use mio::net::TcpListener;
use underpass_command::state;

use super::core::{Cluster, Core, Listening, Upstream};
use super::event_loop::{Kind, Worker, token};
use crate::balance::{Balancer, Latency};
use crate::ipc::{ToSupervisor, ToWorker};
use crate::route::Destination;

impl Worker {
    /// Takes all messages that have come.
    pub(super) fn control(&mut self) {
        loop {
            match self.channel.receive::<ToWorker>() {
                Ok(Some((message, descriptors))) => self.obey(message, descriptors),
                // The supervisor has ended: so does its worker, once its connections are finished.
                Ok(None) => return self.drain(self.core.settings.timeouts.drain_ms),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    eprintln!("underpass worker: a control message was not understood: {error}");
                }
                Err(error) => {
                    eprintln!("underpass worker: control channel: {error}; draining");
                    return self.drain(self.core.settings.timeouts.drain_ms);
                }
            }
        }
    }

    fn obey(&mut self, message: ToWorker, descriptors: Vec<OwnedFd>) {
        match message {
            ToWorker::SetRedirect { id, scope, mode } => {
                let error = self.core.set_redirect(&scope, mode).err();
                self.tell(&ToSupervisor::Done { id, error });
            }
            ToWorker::Drain { deadline_ms } => self.drain(deadline_ms),
            other => {
                if let Err(reason) = apply(&mut self.core, other, descriptors) {
                    eprintln!("underpass worker: a change was refused: {reason}");
                    self.tell(&ToSupervisor::Refused { reason });
                }
            }
        }
    }

    /// Sends a message. A supervisor that does not read is no reason to stop serving.
    fn tell(&self, message: &ToSupervisor) {
        if let Err(error) = self.channel.send(message, &[]) {
            eprintln!("underpass worker: the supervisor could not be told: {error}");
        }
    }
}

/// Takes one piece of state.
///
/// # Errors
/// A sentence that says what is wrong with it; nothing was changed then.
pub(super) fn apply(core: &mut Core, message: ToWorker, descriptors: Vec<OwnedFd>) -> Result<(), String> {
    match message {
        ToWorker::AddCluster(cluster) => add_cluster(core, cluster),
        ToWorker::AddBackend { cluster, backend } => add_backend(core, &cluster, &backend),
        ToWorker::AddRoute(route) => {
            let cluster = route.cluster.as_deref().ok_or_else(|| "a route without a cluster".to_owned())?;
            let cluster = cluster_number(core, cluster)?;
            let table = if route.sni.is_some() { &mut core.server_names } else { &mut core.routes };
            table.add(&route, Destination { cluster: Some(cluster), allow_connect: route.allow_connect })
        }
        ToWorker::AddListener(listener) => add_listener(core, listener, descriptors),
        ToWorker::Hello { .. } | ToWorker::Run | ToWorker::SetRedirect { .. } | ToWorker::Drain { .. } => {
            Err("a message came out of its turn".to_owned())
        }
    }
}

fn add_cluster(core: &mut Core, mut configured: state::Cluster) -> Result<(), String> {
    let number = u32::try_from(core.clusters.len()).map_err(|_| "too many clusters".to_owned())?;
    if core.cluster_numbers.contains_key(&configured.name) {
        return Err(format!("cluster \"{}\" is there already", configured.name));
    }
    let backends = std::mem::take(&mut configured.backends);
    let name = configured.name.clone();
    let balancer = Balancer::new(&configured, core.random.next());
    core.clusters.push(Cluster { configured, balancer, upstreams: Vec::new() });
    core.cluster_numbers.insert(name.clone(), number);
    backends.iter().try_for_each(|backend| add_backend(core, &name, backend))
}

fn add_backend(core: &mut Core, cluster: &str, backend: &state::Backend) -> Result<(), String> {
    let cluster = cluster_number(core, cluster)? as usize;
    let number = u32::try_from(core.upstreams.len()).map_err(|_| "too many backends".to_owned())?;
    let idle = Vec::with_capacity(core.settings.limits.backend_idle as usize);
    let text = backend.address.to_string().into_bytes();
    core.upstreams.push(Upstream {
        address: backend.address,
        text,
        active: 0,
        latency: Latency::default(),
        idle,
    });
    core.clusters[cluster].upstreams.push(number);
    core.clusters[cluster].balancer.add(number, backend, 0, core.now.ms);
    Ok(())
}

fn add_listener(
    core: &mut Core,
    configured: state::Listener,
    descriptors: Vec<OwnedFd>,
) -> Result<(), String> {
    let name = configured.name.clone();
    let fault = |what: String| format!("listener \"{name}\": {what}");
    let Ok([descriptor]) = <[OwnedFd; 1]>::try_from(descriptors) else {
        return Err(fault("its message must carry one socket".to_owned()));
    };
    let default_cluster = match &configured.default_cluster {
        Some(cluster) => Some(cluster_number(core, cluster)?),
        None => None,
    };
    let socket = std::net::TcpListener::from(descriptor);
    let port = socket.local_addr().map_err(|error| fault(error.to_string()))?.port();
    socket.set_nonblocking(true).map_err(|error| fault(error.to_string()))?;
    // Accepted sockets inherit it (tcp(7)): heads and small bodies go out at once.
    socket2::SockRef::from(&socket).set_tcp_nodelay(true).map_err(|error| fault(error.to_string()))?;
    let mut socket = TcpListener::from_std(socket);
    let key = core.listeners.len();
    if key > usize::from(u16::MAX) {
        return Err(fault("there are too many listeners".to_owned()));
    }
    core.registry
        .register(&mut socket, token(Kind::Listener, key, 0), Interest::READABLE)
        .map_err(|error| fault(error.to_string()))?;
    let scope = core.routes.hold_listener(&name);
    let names_scope = core.server_names.hold_listener(&name);
    let port = port.to_string().into_bytes();
    // Whatever came before the registration is looked for in the first turn.
    core.listeners.push(Listening {
        socket: Some(socket),
        configured,
        scope,
        names_scope,
        default_cluster,
        port,
        pending: true,
    });
    Ok(())
}

fn cluster_number(core: &Core, name: &str) -> Result<u32, String> {
    core.cluster_numbers.get(name).copied().ok_or_else(|| format!("cluster \"{name}\" does not exist"))
}
