//! The configuration, and changes of it, as the steps that workers take: with the numbers of what they are about.

use underpass_command::api::Changed;
use underpass_command::live::Operation;
use underpass_command::state::{Backend, Cluster};

use super::link::Letter;
use super::numbers::{Registry, Waiting};
use super::supervisor::Supervisor;
use crate::ipc::{Step, pieces};

impl Supervisor {
    /// The sockets that a worker needs for the listeners among these steps.
    pub(super) fn sockets_of(
        &self,
        steps: &[Step],
        worker: usize,
    ) -> Vec<std::sync::Arc<std::os::fd::OwnedFd>> {
        let added = steps.iter().filter_map(|step| match step {
            Step::AddListener { listener, .. } => self.sockets.get(&listener.name),
            _ => None,
        });
        added.filter_map(|sockets| sockets.sockets.get(worker).cloned().flatten()).collect()
    }

    /// The steps of a change, with the numbers of what it is about.
    pub(super) fn steps(&mut self, changed: &Changed, running: &Waiting) -> Vec<Step> {
        let mut steps = Vec::with_capacity(changed.effects.len());
        for effect in &changed.effects {
            self.add_steps(effect, changed.revision, running, &mut steps);
        }
        steps
    }

    fn add_steps(&mut self, effect: &Operation, revision: u64, running: &Waiting, steps: &mut Vec<Step>) {
        let registry = &mut self.registry;
        let cluster_of = |registry: &Registry, name: Option<&str>| registry.cluster(name?);
        match effect {
            Operation::ChangeSettings { settings } => steps.push(Step::Settings(settings.clone())),
            Operation::AddAnswer { answer } | Operation::ChangeAnswer { answer } => {
                steps.push(Step::PutAnswer { answer: answer.clone() });
            }
            Operation::RemoveAnswer { name } => steps.push(Step::RemoveAnswer { name: name.clone() }),
            Operation::AddCluster { cluster } => {
                let number = registry.add_cluster(&cluster.name);
                let own = Cluster { backends: Vec::new(), ..cluster.clone() };
                steps.push(Step::AddCluster { number, cluster: own });
                for backend in &cluster.backends {
                    self.add_backend_steps(&cluster.name, backend, revision, running, steps);
                }
            }
            Operation::ChangeCluster { cluster } => {
                if let Some(number) = registry.cluster(&cluster.name) {
                    steps.push(Step::ChangeCluster { number, cluster: cluster.clone() });
                }
            }
            Operation::RemoveCluster { name } => {
                for address in registry.backends_of(name) {
                    let number = registry.remove_backend(name, address, running);
                    steps.extend(number.map(|number| Step::RemoveBackend { number }));
                }
                let number = registry.remove_cluster(name, running);
                steps.extend(number.map(|number| Step::RemoveCluster { number }));
            }
            Operation::AddBackend { cluster, backend } => {
                self.add_backend_steps(cluster, backend, revision, running, steps);
            }
            Operation::ChangeBackend { cluster, backend } => {
                registry.set_drain(cluster, backend.address, backend.drain, revision, running);
                if let Some(number) = registry.backend(cluster, backend.address) {
                    steps.push(Step::ChangeBackend { number, backend: backend.clone() });
                }
            }
            Operation::RemoveBackend { cluster, address } => {
                let number = registry.remove_backend(cluster, *address, running);
                steps.extend(number.map(|number| Step::RemoveBackend { number }));
            }
            Operation::AddListener { listener } => {
                let number = registry.add_listener(&listener.name);
                let default_cluster = cluster_of(registry, listener.default_cluster.as_deref());
                steps.push(Step::AddListener { number, default_cluster, listener: listener.clone() });
            }
            Operation::ChangeListener { listener } => {
                let default_cluster = cluster_of(registry, listener.default_cluster.as_deref());
                if let Some(number) = registry.listener(&listener.name) {
                    let listener = listener.clone();
                    steps.push(Step::ChangeListener { number, default_cluster, listener });
                }
            }
            Operation::RemoveListener { name } => {
                let number = registry.remove_listener(name, running);
                steps.extend(number.map(|number| Step::RemoveListener { number }));
            }
            Operation::AddRoute { route } | Operation::ChangeRoute { route } => {
                let cluster = cluster_of(registry, route.cluster());
                steps.push(Step::PutRoute { cluster, route: route.clone() });
            }
            Operation::RemoveRoute { route } => steps.push(Step::RemoveRoute { route: route.clone() }),
        }
    }

    fn add_backend_steps(
        &mut self,
        cluster: &str,
        backend: &Backend,
        revision: u64,
        running: &Waiting,
        steps: &mut Vec<Step>,
    ) {
        let number = self.registry.add_backend(cluster, backend.address);
        self.registry.set_drain(cluster, backend.address, backend.drain, revision, running);
        let Some(cluster) = self.registry.cluster(cluster) else { return };
        steps.push(Step::AddBackend { number, cluster, backend: backend.clone() });
    }

    /// The whole configuration, as a worker takes it when it starts.
    pub(super) fn start_steps(&mut self) -> Vec<Step> {
        let answers = self.configuration.answers().values();
        let mut steps: Vec<Step> = answers.map(|answer| Step::PutAnswer { answer: answer.clone() }).collect();
        let number_of = |name: &str| self.registry.cluster(name);
        for (name, entry) in self.configuration.clusters() {
            let Some(number) = number_of(name) else { continue };
            steps.push(Step::AddCluster { number, cluster: entry.own().clone() });
            for (address, backend) in entry.backends() {
                if let Some(backend_number) = self.registry.backend(name, *address) {
                    let backend = backend.clone();
                    steps.push(Step::AddBackend { number: backend_number, cluster: number, backend });
                }
            }
        }
        for route in self.configuration.routes().values() {
            let cluster = route.cluster().and_then(number_of);
            steps.push(Step::PutRoute { cluster, route: Box::new(route.clone()) });
        }
        for (name, listener) in self.configuration.listeners() {
            let Some(number) = self.registry.listener(name) else { continue };
            let default_cluster = listener.default_cluster.as_deref().and_then(number_of);
            steps.push(Step::AddListener { number, default_cluster, listener: listener.clone() });
        }
        steps
    }

    /// The start of a worker: the whole configuration in letters.
    pub(super) fn configuration_letters(&mut self, worker: usize) -> Vec<Letter> {
        let steps = self.start_steps();
        let pieces = pieces(0, self.configuration.revision(), &steps);
        let letters = pieces
            .into_iter()
            .map(|(message, range)| Letter { message, descriptors: self.sockets_of(&steps[range], worker) });
        letters.collect()
    }

    /// Gives numbers to everything that is configured at start.
    pub(super) fn number_everything(&mut self) {
        let none = Waiting::new();
        let mut steps = Vec::new();
        let clusters: Vec<Operation> = self
            .configuration
            .clusters()
            .values()
            .map(|entry| Operation::AddCluster { cluster: entry.whole() })
            .collect();
        let listeners = self.configuration.listeners().values();
        let listeners: Vec<Operation> =
            listeners.map(|listener| Operation::AddListener { listener: listener.clone() }).collect();
        for operation in clusters.iter().chain(&listeners) {
            self.add_steps(operation, self.configuration.revision(), &none, &mut steps);
        }
        self.health.follow(&steps);
    }
}
