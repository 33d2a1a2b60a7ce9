//! Checks a change of the running configuration: what it has touched, together with what that depends on.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use underpass_command::live::{Configuration, OperationError, Touched};
use underpass_command::state::{Cluster, Listener, Protocol, Route, RouteKey, Settings, State};

use super::super::problem::{Place, Problem, Severity};
use super::{answers, check_items, validate};

/// What is wrong with a change, and what is probably not meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeProblems {
    /// Why it must be taken back.
    pub errors: Vec<OperationError>,
    /// What works all the same.
    pub warnings: Vec<String>,
}

/// The items to be checked, each with the step of the change that has touched it last.
#[derive(Default)]
struct Part {
    state: State,
    listeners: Vec<Option<usize>>,
    clusters: Vec<Option<usize>>,
    backends: Vec<Vec<Option<usize>>>,
    routes: Vec<Option<usize>>,
    answers: Vec<Option<usize>>,
}

/// Checks what a change that has been applied leads to. Names and counts have been checked when it was.
///
/// What it costs depends on the size of the change, unless it touches listeners or settings: then everything is looked at.
pub fn check_change(configuration: &Configuration, touched: &Touched) -> ChangeProblems {
    let whole = touched.listeners().next().is_some()
        || touched.settings().is_some()
        || leads_to_itself(configuration, touched);
    let part = if whole { whole_state(configuration, touched) } else { touched_part(configuration, touched) };
    let problems = if whole { validate(&part.state) } else { check_items(&part.state) };
    let mut found = ChangeProblems::default();
    if let Some(before) = touched.settings_before() {
        found.errors.extend(restart_only(before, configuration.settings(), touched.settings()));
    }
    for problem in problems {
        match problem.severity {
            Severity::Warning => found.warnings.push(problem.to_string()),
            Severity::Error => found.errors.push(part.error(&problem, touched)),
        }
    }
    found
}

impl Part {
    fn step(&self, place: Place, touched: &Touched) -> Option<usize> {
        match place {
            Place::Whole => None,
            Place::Settings => touched.settings(),
            Place::Listener(index) => *self.listeners.get(index)?,
            Place::Cluster(index) => *self.clusters.get(index)?,
            Place::Backend { cluster, backend } => *self.backends.get(cluster)?.get(backend)?,
            Place::Route(index) => *self.routes.get(index)?,
            Place::Answer(index) => *self.answers.get(index)?,
        }
    }

    fn error(&self, problem: &Problem, touched: &Touched) -> OperationError {
        // Of a route its number means nothing here.
        let label = match problem.place {
            Place::Route(index) => match self.state.routes.get(index) {
                Some(route) => format!("route {}", route.key()),
                None => problem.label.clone(),
            },
            _ => problem.label.clone(),
        };
        let parts = [label.as_str(), problem.key.as_str(), problem.value.as_deref().unwrap_or("")];
        let what: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        OperationError {
            step: self.step(problem.place, touched),
            what: what.join(" "),
            reason: problem.reason.clone(),
            remedy: problem.remedy.clone(),
        }
    }

    fn add_listener(&mut self, listener: &Listener, step: Option<usize>) {
        self.state.listeners.push(listener.clone());
        self.listeners.push(step);
    }

    fn add_cluster(&mut self, cluster: Cluster, step: Option<usize>, backends: Vec<Option<usize>>) {
        self.state.clusters.push(cluster);
        self.clusters.push(step);
        self.backends.push(backends);
    }

    fn add_route(&mut self, route: &Route, step: Option<usize>) {
        self.state.routes.push(route.clone());
        self.routes.push(step);
    }
}

fn whole_state(configuration: &Configuration, touched: &Touched) -> Part {
    let mut part = Part { state: configuration.state(), ..Part::default() };
    let listeners = &part.state.listeners;
    part.listeners = listeners.iter().map(|listener| touched.listener(&listener.name)).collect();
    let clusters = &part.state.clusters;
    part.clusters = clusters.iter().map(|cluster| touched.cluster(&cluster.name)).collect();
    for cluster in clusters {
        let step = |address| touched.backend(&cluster.name, address);
        part.backends.push(cluster.backends.iter().map(|backend| step(backend.address)).collect());
    }
    part.routes = part.state.routes.iter().map(|route| touched.route(&route.key())).collect();
    part.answers = part.state.answers.iter().map(|answer| touched.answer(&answer.name)).collect();
    part
}

fn touched_part(configuration: &Configuration, touched: &Touched) -> Part {
    let mut part = Part::default();
    part.state.settings = configuration.settings().clone();
    for listener in configuration.listeners().values() {
        part.add_listener(listener, None);
        // Without default cluster it needs a route by server name, touched or not.
        if listener.protocol == Protocol::Tcp
            && listener.default_cluster.is_none()
            && let Some(route) = route_by_name(configuration, listener)
        {
            part.add_route(route, touched.route(&route.key()));
        }
    }
    let mut names: BTreeSet<&str> = touched.clusters().map(|(name, _)| name).collect();
    names.extend(touched.backends().map(|(name, _, _)| name));
    for name in names {
        let Some(entry) = configuration.clusters().get(name) else { continue };
        let mut cluster = entry.own().clone();
        let mut steps = Vec::new();
        for (address, step) in touched.backends_of(name) {
            if let Some(backend) = entry.backends().get(&address) {
                cluster.backends.push(backend.clone());
                steps.push(Some(step));
            }
        }
        part.add_cluster(cluster, touched.cluster(name), steps);
    }
    for (key, step) in touched.routes() {
        if let Some(route) = configuration.routes().get(key)
            // Only those by server name can be there already, and they are few.
            && !(route.sni.is_some() && part.state.routes.contains(route))
        {
            part.add_route(route, Some(step));
        }
    }
    for (name, step) in touched.answers() {
        if let Some(answer) = configuration.answers().get(name) {
            part.state.answers.push(answer.clone());
            part.answers.push(Some(step));
        }
    }
    part
}

/// Whether a backend that was touched, or that a touched route leads to, may be the proxy itself. Rare, and then worth a look
/// at everything.
fn leads_to_itself(configuration: &Configuration, touched: &Touched) -> bool {
    let is_own = |address: SocketAddr| {
        configuration.listeners().values().any(|listener| {
            listener.address.port() == address.port() && answers(listener.address.ip(), address.ip())
        })
    };
    let routed = touched.routes().filter_map(|(key, _)| configuration.routes().get(key)?.cluster());
    let mut routed = routed.filter_map(|name| configuration.clusters().get(name));
    touched.backends().any(|(_, address, _)| is_own(address))
        || routed.any(|entry| entry.backends().keys().any(|address| is_own(*address)))
}

/// Any route by server name that a listener takes.
fn route_by_name<'a>(configuration: &'a Configuration, listener: &Listener) -> Option<&'a Route> {
    [Some(listener.name.clone()), None].into_iter().find_map(|listener| {
        // Keys are sorted by listener first; those by server name have no host and stand together.
        let first = RouteKey { listener: listener.clone(), sni: Some(String::new()), ..RouteKey::default() };
        let (key, route) = configuration.routes().range(first..).next()?;
        (key.listener == listener && key.sni.is_some()).then_some(route)
    })
}

/// The keys of those settings that only a start can settle and that are not the same in both.
pub fn settled_differently(before: &Settings, after: &Settings) -> Vec<&'static str> {
    let (old, new) = (&before.limits, &after.limits);
    let settled = [
        ("workers", before.workers == after.workers),
        ("user", before.user == after.user),
        ("saved_state", before.saved_state == after.saved_state),
        ("sticky_secret", before.sticky_secret == after.sticky_secret),
        ("admin_socket", before.admin_socket == after.admin_socket),
        ("metrics.address", before.metrics.address == after.metrics.address),
        ("log.level", before.log.level == after.log.level),
        ("log.access", before.log.access == after.log.access),
        ("log.access_template", before.log.access_template == after.log.access_template),
        ("log.access_escape", before.log.access_escape == after.log.access_escape),
        ("log.access_file", before.log.access_file == after.log.access_file),
        ("limits.connections", old.connections == new.connections),
        ("limits.buffers", old.buffers == new.buffers),
        ("limits.buffer_size", old.buffer_size == new.buffer_size),
        ("limits.head_size_max", old.head_size_max == new.head_size_max),
        ("limits.header_count_max", old.header_count_max == new.header_count_max),
        ("limits.target_size_max", old.target_size_max == new.target_size_max),
        ("limits.pipes", old.pipes == new.pipes),
        ("limits.pipe_size", old.pipe_size == new.pipe_size),
        ("limits.redirect_flows", old.redirect_flows == new.redirect_flows),
        ("limits.redirect_credit", old.redirect_credit == new.redirect_credit),
        ("limits.unsent_max", old.unsent_max == new.unsent_max),
        ("limits.backlog", old.backlog == new.backlog),
    ];
    settled.into_iter().filter(|(_, same)| !same).map(|(key, _)| key).collect()
}

/// Settings that only a start can change are refused.
fn restart_only(before: &Settings, after: &Settings, step: Option<usize>) -> Vec<OperationError> {
    let changed = settled_differently(before, after).into_iter();
    changed
        .map(|key| OperationError {
            step,
            what: key.to_owned(),
            reason: "it is settled when the proxy starts".to_owned(),
            remedy: "leave it as it is here, change it in the file, and restart".to_owned(),
        })
        .collect()
}

/// Takes what is settled at start from a file, and the rest from a configuration that was saved.
pub fn keep_settled(saved: &mut Settings, file: &Settings) {
    let limits = saved.limits.clone();
    saved.workers = file.workers;
    saved.user.clone_from(&file.user);
    saved.admin_socket.clone_from(&file.admin_socket);
    saved.sticky_secret.clone_from(&file.sticky_secret);
    saved.saved_state.clone_from(&file.saved_state);
    saved.metrics.address = file.metrics.address;
    saved.log = file.log.clone();
    saved.limits = underpass_command::state::Limits {
        request_body_size_max: limits.request_body_size_max,
        backend_receive_size: limits.backend_receive_size,
        backend_idle: limits.backend_idle,
        requests_per_connection: limits.requests_per_connection,
        ..file.limits.clone()
    };
}
