//! Rules of clusters and their backends.

use underpass_command::state::{Balance, Cluster, HashKey, State};

use super::{label, repeated};
use crate::config::problem::{Place, Problem};
use crate::config::table::{Fault, quote};

/// Everything that is wrong with clusters beyond their single values.
pub(super) fn check(state: &State, problems: &mut Vec<Problem>) {
    for (index, cluster) in state.clusters.iter().enumerate() {
        check_backend_names(index, cluster, problems);
        let place = Place::Cluster(index);
        let label = label(place, &cluster.name);
        if cluster.eject_ms > cluster.eject_ms_max {
            let reason = format!("above eject_ms_max, {}", cluster.eject_ms_max);
            let fault = Fault::new(reason, "lower it, or raise eject_ms_max");
            let value = Some(cluster.eject_ms.to_string());
            let problem = Problem::error(place, &label, "eject_ms", value, fault);
            problems.push(problem.follows_from(place, "eject_ms_max"));
        }
        if cluster.hash != HashKey::Ip && cluster.balance != Balance::Maglev {
            let reason = format!("balance is {:?}, which chooses by nothing", cluster.balance.name());
            let fault = Fault::new(reason, "use balance = \"maglev\", or remove it");
            let value = Some(quote(&cluster.hash.to_string()));
            let problem = Problem::warning(place, &label, "hash", value, fault);
            problems.push(problem.follows_from(place, "balance"));
        }
    }
}

/// Sticky cookies are made from names.
fn check_backend_names(index: usize, cluster: &Cluster, problems: &mut Vec<Problem>) {
    let named = |backend| Place::Backend { cluster: index, backend };
    let names = cluster.backends.iter().map(|backend| backend.name.as_deref()).enumerate();
    for (second, first) in repeated(names.filter(|(_, name)| name.is_some())) {
        let reason = format!("backend {} of this cluster has this name already", first + 1);
        let fault = Fault::new(reason, "give each its own, or none");
        let value = cluster.backends[second].name.as_deref().map(quote);
        let label = label(named(second), &cluster.name);
        let problem = Problem::error(named(second), &label, "name", value, fault);
        problems.push(problem.follows_from(named(first), "name"));
    }
}
