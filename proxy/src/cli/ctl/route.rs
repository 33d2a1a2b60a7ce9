//! `underpass ctl route`.

use clap::{Args, Subcommand};
use underpass_command::api::Select;
use underpass_command::live::Operation;
use underpass_command::state::{PathMatch, Route, RouteKey};

use super::super::Failure;
use super::change::change;
use super::item::{Setting, edit};
use super::{Conditions, Context, Filter, tables};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show the routes
    List {
        /// Only those that lead to this cluster
        #[arg(long)]
        cluster: Option<String>,
        #[command(flatten)]
        filter: Filter,
    },
    /// Add a route
    Add {
        #[command(flatten)]
        matching: Matching,
        /// The cluster that serves
        #[arg(long)]
        cluster: Option<String>,
        /// A field and its value, as redirect_to.scheme=https; may be repeated
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<Setting>,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Change what a route does; what it matches stays
    Change {
        #[command(flatten)]
        matching: Matching,
        /// The cluster that serves from now on
        #[arg(long, required_unless_present = "set")]
        cluster: Option<String>,
        /// A field and its value; without a value it gets its default; may be repeated
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<Setting>,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Remove a route
    Remove {
        #[command(flatten)]
        matching: Matching,
        #[command(flatten)]
        conditions: Conditions,
    },
}

/// What a route matches: together it is the route's identity.
#[derive(Clone, Debug, Args)]
pub(super) struct Matching {
    /// Only requests that come in by this listener
    #[arg(long)]
    listener: Option<String>,
    /// Only this host, or *. and a host for every name below it
    #[arg(long, conflicts_with_all = ["host_regex", "sni"])]
    host: Option<String>,
    /// Only hosts that this regular expression matches as a whole
    #[arg(long, value_name = "REGEX", conflicts_with = "sni")]
    host_regex: Option<String>,
    /// Of connections to TCP listeners: only those whose ClientHello names this server
    #[arg(long)]
    sni: Option<String>,
    /// Only this very path
    #[arg(long, conflicts_with_all = ["path_prefix", "path_regex", "sni"])]
    path: Option<String>,
    /// Only paths that begin so, at a segment's border
    #[arg(long, value_name = "PATH", conflicts_with_all = ["path_regex", "sni"])]
    path_prefix: Option<String>,
    /// Only paths that this regular expression matches as a whole
    #[arg(long, value_name = "REGEX", conflicts_with = "sni")]
    path_regex: Option<String>,
    /// Only this method; may be repeated
    #[arg(long, value_name = "METHOD")]
    method: Vec<String>,
    /// Anything else that it matches, as priority=5 or 'headers=[{"name":"x-beta"}]'; may be repeated
    #[arg(long = "match", value_name = "KEY=VALUE")]
    more: Vec<Setting>,
}

impl Matching {
    fn key(&self) -> Result<RouteKey, Failure> {
        let path = match (&self.path, &self.path_prefix, &self.path_regex) {
            (Some(path), _, _) => PathMatch::Exact(path.clone()),
            (_, Some(prefix), _) => PathMatch::Prefix(prefix.clone()),
            (_, _, Some(regex)) => PathMatch::Regex(regex.clone()),
            (None, None, None) => PathMatch::default(),
        };
        let key = RouteKey {
            listener: self.listener.clone(),
            host: self.host.clone(),
            host_regex: self.host_regex.clone(),
            sni: self.sni.clone(),
            path,
            methods: self.method.clone(),
            ..RouteKey::default()
        };
        edit("route", &key, &self.more)
    }

    /// A route that matches so and does nothing yet.
    fn route(&self) -> Result<Route, Failure> {
        let RouteKey { listener, host, host_regex, sni, path, methods, headers, priority } = self.key()?;
        Ok(Route { listener, host, host_regex, sni, path, methods, headers, priority, ..Route::default() })
    }
}

pub(super) fn run(context: &Context, action: Action) -> Result<(), Failure> {
    match action {
        Action::List { cluster, filter } => {
            let routes =
                super::state::pages(&filter, filter.select(cluster), |select| context.client.routes(select))?;
            context.show(&routes, tables::routes)
        }
        Action::Add { matching, cluster, set, conditions } => {
            let route = Route { cluster, ..matching.route()? };
            let route = Box::new(edit("route", &route, &set)?);
            change(context, vec![Operation::AddRoute { route }], conditions)
        }
        Action::Change { matching, cluster, set, conditions } => {
            let mut route = find(context, &matching.route()?.key())?;
            if cluster.is_some() {
                route.cluster = cluster;
            }
            let route = Box::new(edit("route", &route, &set)?);
            change(context, vec![Operation::ChangeRoute { route }], conditions)
        }
        Action::Remove { matching, conditions } => {
            let route = matching.route()?.key();
            change(context, vec![Operation::RemoveRoute { route }], conditions)
        }
    }
}

fn find(context: &Context, key: &RouteKey) -> Result<Route, Failure> {
    let mut select = Select { name: Some(key.to_string()), ..Select::default() };
    loop {
        let page = context.client.routes(&select).map_err(Failure::runtime)?;
        if let Some(route) = page.items.into_iter().find(|route| route.key() == *key) {
            return Ok(route);
        }
        match page.next {
            Some(next) => select.after = Some(next),
            None => break,
        }
    }
    Err(Failure::runtime(format!("there is no route {key}; underpass ctl route list shows all")))
}

/// What removes the routes that lead to a cluster.
pub(super) fn removals(context: &Context, cluster: &str) -> Result<Vec<Operation>, Failure> {
    let mut select = Select { cluster: Some(cluster.to_owned()), ..Select::default() };
    let mut operations = Vec::new();
    loop {
        let page = context.client.routes(&select).map_err(Failure::runtime)?;
        operations.extend(page.items.iter().map(|route| Operation::RemoveRoute { route: route.key() }));
        match page.next {
            Some(next) => select.after = Some(next),
            None => return Ok(operations),
        }
    }
}
