//! The configuration that is churned: names and addresses by number, and the changes that are drawn.

use std::net::{Ipv4Addr, SocketAddr};

use underpass_command::live::Operation;
use underpass_command::state::{Backend, Cluster, PathMatch, Route};

/// The cluster that the load goes to.
pub(super) const BUSY: &str = "busy";
/// The host of the load's requests.
pub(super) const BUSY_HOST: &str = "lab.test";

/// How much is configured beside the busy cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) clusters: u32,
    pub(super) backends: u32,
    pub(super) routes: u32,
}

/// The address of backend number `number`: the benchmark's backend, by one of the many names that loopback has.
pub(super) fn backend_address(number: u32, port: u16) -> SocketAddr {
    let [_, a, b, c] = number.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 1 + a, b, c), port))
}

pub(super) fn cluster_name(number: u32) -> String {
    format!("app-{number}")
}

/// The cluster that a backend or a route belongs to.
fn owner(number: u32, size: Size) -> String {
    cluster_name(number % size.clusters)
}

/// A route: many hosts, some of them with several paths.
pub(super) fn route(number: u32, size: Size) -> Route {
    let host = format!("host-{}.example", number / 2);
    let path = if number.is_multiple_of(2) { "/" } else { "/api" };
    Route { host: Some(host), path: PathMatch::Prefix(path.into()), ..Route::new(owner(number, size)) }
}

/// The cluster that the load goes to, and its route.
pub(super) fn busy(port: u16) -> [Operation; 2] {
    // Apart from the numbers of the others.
    let backends = (0..4).map(|number| busy_backend(number, port)).collect();
    let cluster = Cluster { backends, ..Cluster::new(BUSY) };
    let route = Route { host: Some(BUSY_HOST.into()), ..Route::new(BUSY) };
    [Operation::AddCluster { cluster }, Operation::AddRoute { route: Box::new(route) }]
}

/// A backend of the busy cluster.
pub(super) fn busy_backend(number: u32, port: u16) -> Backend {
    Backend::new(backend_address(0x00f0_0000 + number, port))
}

/// Everything else, in the order in which it can be added.
pub(super) fn everything(size: Size, port: u16) -> impl Iterator<Item = Operation> {
    let clusters = (0..size.clusters).map(move |number| {
        let backends = (number..size.backends).step_by(size.clusters as usize);
        let backends = backends.map(|number| Backend::new(backend_address(number, port))).collect();
        Operation::AddCluster { cluster: Cluster { backends, ..Cluster::new(cluster_name(number)) } }
    });
    let routes =
        (0..size.routes).map(move |number| Operation::AddRoute { route: Box::new(route(number, size)) });
    clusters.chain(routes)
}

/// What takes everything away again.
pub(super) fn nothing(size: Size) -> impl Iterator<Item = Operation> {
    let routes =
        (0..size.routes).map(move |number| Operation::RemoveRoute { route: route(number, size).key() });
    let clusters = (0..size.clusters).map(|number| Operation::RemoveCluster { name: cluster_name(number) });
    routes.chain(clusters)
}

/// Draws changes that leave the number of items as it is, in the long run: what one adds another removes.
///
/// Several draw at a time, each its own share of the items, so that none undoes what another relies on.
pub(super) struct Drawer {
    size: Size,
    port: u16,
    /// This one's number, and how many there are.
    share: (u32, u32),
    state: u64,
    /// What takes back what was added.
    undo: Vec<Operation>,
    added: u32,
}

impl Drawer {
    pub(super) fn new(size: Size, port: u16, share: (u32, u32), seed: u32) -> Self {
        Self {
            size,
            port,
            share,
            state: u64::from(share.0 + 1) << 32 | u64::from(seed),
            undo: Vec::new(),
            added: 0,
        }
    }

    /// SplitMix64, below `end`.
    fn below(&mut self, end: u32) -> u32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((mixed ^ (mixed >> 31)) % u64::from(end.max(1))).unwrap_or(0)
    }

    /// A number of this one's share, of `count` items.
    fn mine(&mut self, count: u32) -> u32 {
        let (number, shares) = self.share;
        self.below(count / shares) * shares + number
    }

    /// A number that nobody has had.
    fn new_number(&mut self) -> u32 {
        self.added += 1;
        self.added * self.share.1 + self.share.0
    }

    /// The next change.
    pub(super) fn next(&mut self) -> Operation {
        // An open end of what was begun is closed sooner or later.
        if self.undo.len() > 64 || (!self.undo.is_empty() && self.below(3) == 0) {
            let index = self.below(u32::try_from(self.undo.len()).unwrap_or(1)) as usize;
            return self.undo.swap_remove(index);
        }
        match self.below(10) {
            0..4 => {
                let number = self.mine(self.size.backends);
                let weight = u16::try_from(1 + self.below(9)).unwrap_or(1);
                let backend = Backend { weight, ..Backend::new(backend_address(number, self.port)) };
                Operation::ChangeBackend { cluster: owner(number, self.size), backend }
            }
            4..6 => {
                // A backend that nobody else has, for a cluster.
                let number = self.mine(self.size.clusters);
                let cluster = cluster_name(number);
                let backend = Backend::new(backend_address(0x0080_0000 + self.new_number(), self.port));
                self.with_undo(
                    Operation::RemoveBackend { cluster: cluster.clone(), address: backend.address },
                    Operation::AddBackend { cluster, backend },
                )
            }
            6..8 => {
                let number = self.mine(self.size.routes);
                let path = format!("/extra-{}", self.new_number());
                let route = Route { path: PathMatch::Prefix(path), ..route(number, self.size) };
                self.with_undo(
                    Operation::RemoveRoute { route: route.key() },
                    Operation::AddRoute { route: Box::new(route) },
                )
            }
            8 => {
                let number = self.mine(self.size.clusters);
                let cluster =
                    Cluster { chunked_requests: self.below(2) == 0, ..Cluster::new(cluster_name(number)) };
                Operation::ChangeCluster { cluster }
            }
            // Where the load is: a backend more, which has requests when it is removed.
            _ => {
                let backend = busy_backend(16 + self.new_number(), self.port);
                let cluster = BUSY.to_owned();
                self.with_undo(
                    Operation::RemoveBackend { cluster: cluster.clone(), address: backend.address },
                    Operation::AddBackend { cluster, backend },
                )
            }
        }
    }

    fn with_undo(&mut self, undo: Operation, operation: Operation) -> Operation {
        self.undo.push(undo);
        operation
    }

    /// What must still be done for everything to be as it was.
    pub(super) fn rest(&mut self) -> Vec<Operation> {
        std::mem::take(&mut self.undo)
    }
}
