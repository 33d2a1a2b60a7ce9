//! Parts of the configuration, page by page. What a page costs depends on what is looked at for it, and that is bounded.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::ops::Bound;

use underpass_command::api::{BackendEntry, PAGE_SIZE_MAX, Page, Select};
use underpass_command::live::Configuration;
use underpass_command::state::{Answer, Cluster, Listener, Route, RouteKey};

use crate::control::commands::Failure;

/// Items that one page looks at, where few of them are wanted. The page may then be short, even empty, and have a next one.
const LOOKED_AT_MAX: usize = 20_000;

/// The listeners.
pub(super) fn listeners(of: &Configuration, select: &Select) -> Result<Page<Listener>, Failure> {
    let all = of.listeners().range::<str, _>((after(select), Bound::Unbounded));
    page(of, select, all, |(name, listener)| Found {
        cursor: name.clone(),
        name: Cow::Borrowed(name),
        cluster: listener.default_cluster.as_deref(),
        item: || listener.clone(),
    })
}

/// The clusters, with their backends.
pub(super) fn clusters(of: &Configuration, select: &Select) -> Result<Page<Cluster>, Failure> {
    let all = of.clusters().range::<str, _>((after(select), Bound::Unbounded));
    page(of, select, all, |(name, entry)| Found {
        cursor: name.clone(),
        name: Cow::Borrowed(name),
        cluster: Some(name),
        item: || entry.whole(),
    })
}

/// The backends of all clusters, without what is known of them beside their configuration. A cursor is the cluster's name, a slash, and the backend's address.
pub(in crate::control) fn backends(
    of: &Configuration,
    select: &Select,
) -> Result<Page<BackendEntry>, Failure> {
    let mut from: (String, Option<SocketAddr>) = (String::new(), None);
    if let Some(text) = &select.after {
        let (cluster, address) = text.split_once('/').ok_or_else(unknown_cursor)?;
        from = (cluster.to_owned(), Some(address.parse().map_err(|_| unknown_cursor())?));
    }
    let (first, after) = from;
    // One cluster is found at once; to look for it page by page would take as many as there are clusters.
    let range = match &select.cluster {
        Some(name) => (Bound::Included(name.as_str()), Bound::Included(name.as_str())),
        None => (Bound::Included(first.as_str()), Bound::Unbounded),
    };
    let all = of.clusters().range::<str, _>(range).flat_map(|(name, entry)| {
        let rest = match after.filter(|_| *name == first) {
            Some(address) => Bound::Excluded(address),
            None => Bound::Unbounded,
        };
        entry.backends().range((rest, Bound::Unbounded)).map(move |(_, backend)| (name, backend))
    });
    page(of, select, all, |(cluster, backend)| Found {
        cursor: format!("{cluster}/{}", backend.address),
        name: Cow::Owned(backend.address.to_string()),
        cluster: Some(cluster),
        item: || BackendEntry::new(cluster, backend),
    })
}

/// The named answers.
pub(super) fn answers(of: &Configuration, select: &Select) -> Result<Page<Answer>, Failure> {
    let all = of.answers().range::<str, _>((after(select), Bound::Unbounded));
    page(of, select, all, |(name, answer)| Found {
        cursor: name.clone(),
        name: Cow::Borrowed(name),
        cluster: None,
        item: || answer.clone(),
    })
}

/// The routes. A cursor is what a route matches, as JSON.
pub(super) fn routes(of: &Configuration, select: &Select) -> Result<Page<Route>, Failure> {
    let from = match &select.after {
        Some(text) => Bound::Excluded(serde_json::from_str::<RouteKey>(text).map_err(|_| unknown_cursor())?),
        None => Bound::Unbounded,
    };
    page(of, select, of.routes().range((from, Bound::Unbounded)), |(key, route)| Found {
        // A key of plain texts and numbers can be written.
        cursor: serde_json::to_string(key).unwrap_or_default(),
        name: Cow::Owned(key.to_string()),
        cluster: route.cluster(),
        item: || route.clone(),
    })
}

/// An item, before it is known whether it is wanted.
struct Found<'a, F> {
    cursor: String,
    name: Cow<'a, str>,
    cluster: Option<&'a str>,
    item: F,
}

fn page<'a, E, T, F: FnOnce() -> T>(
    of: &Configuration,
    select: &Select,
    entries: impl Iterator<Item = E>,
    look_at: impl Fn(E) -> Found<'a, F>,
) -> Result<Page<T>, Failure> {
    let limit = select.limit.unwrap_or(PAGE_SIZE_MAX);
    if !(1..=PAGE_SIZE_MAX).contains(&limit) {
        let text = format!("limit={limit}: not from 1 to {PAGE_SIZE_MAX}");
        return Err(Failure::new(400, text, "ask for several pages: after=NEXT"));
    }
    let mut page = Page { revision: of.revision(), items: Vec::new(), next: None };
    let mut last = None;
    for (count, entry) in entries.enumerate() {
        if page.items.len() == limit || count == LOOKED_AT_MAX {
            page.next = last;
            break;
        }
        let found = look_at(entry);
        let named = select.name.as_ref().is_none_or(|part| found.name.contains(part.as_str()));
        let of_cluster = select.cluster.as_ref().is_none_or(|cluster| found.cluster == Some(cluster));
        if named && of_cluster {
            page.items.push((found.item)());
        }
        last = Some(found.cursor);
    }
    Ok(page)
}

/// Where a list that is sorted by name goes on.
fn after(select: &Select) -> Bound<&str> {
    select.after.as_deref().map_or(Bound::Unbounded, Bound::Excluded)
}

fn unknown_cursor() -> Failure {
    Failure::new(422, "after: this is no place in the list", "give next of the page before, as it was")
}

#[cfg(test)]
mod tests {
    use underpass_command::state::{Backend, PathMatch, State};

    use super::*;

    /// 30 clusters of 2 backends, each with a route.
    fn configuration() -> Configuration {
        let mut state = State::default();
        for number in 0..30_u16 {
            let mut cluster = Cluster::new(format!("c{number:02}"));
            for port in [2 * number + 1, 2 * number + 2] {
                cluster.backends.push(Backend::new(([127, 0, 0, 1], port).into()));
            }
            let path = PathMatch::Prefix(format!("/{number}"));
            state.routes.push(Route { path, ..Route::new(cluster.name.clone()) });
            state.clusters.push(cluster);
        }
        Configuration::new(state).expect("valid")
    }

    /// Every item, asked for page by page, and how many pages that took.
    fn all<T>(
        mut select: Select,
        list: impl Fn(&Configuration, &Select) -> Result<Page<T>, Failure>,
    ) -> (Vec<T>, usize) {
        let configuration = configuration();
        let (mut items, mut pages) = (Vec::new(), 0);
        loop {
            let page = list(&configuration, &select).expect("valid");
            items.extend(page.items);
            pages += 1;
            match page.next {
                Some(next) => select.after = Some(next),
                None => return (items, pages),
            }
        }
    }

    fn by(limit: usize) -> Select {
        Select { limit: Some(limit), ..Select::default() }
    }

    #[test]
    fn pages_put_together_are_the_list() {
        let configuration = configuration();
        let state = configuration.state();
        for limit in [1, 7, 30, 1000] {
            assert_eq!(all(by(limit), clusters).0, state.clusters, "{limit}");
            assert_eq!(all(by(limit), routes).0, state.routes, "{limit}");
            let (entries, _) = all(by(limit), backends);
            let expected: Vec<_> = state.clusters.iter().flat_map(|cluster| &cluster.backends).collect();
            assert_eq!(entries.iter().map(|entry| &entry.backend).collect::<Vec<_>>(), expected, "{limit}");
        }
        assert_eq!(all(by(7), clusters).1, 5);
        assert_eq!(all(by(1000), backends).1, 1);
    }

    #[test]
    fn only_what_is_wanted_is_listed() {
        let named = |name: &str| Select { name: Some(name.into()), ..Select::default() };
        let of = |cluster: &str| Select { cluster: Some(cluster.into()), ..by(1) };
        assert_eq!(all(named("c2"), clusters).0.len(), 10);
        assert_eq!(all(named("/29"), routes).0.len(), 1);
        let (entries, _) = all(of("c07"), backends);
        assert_eq!(entries.len(), 2);
        assert!(entries.iter().all(|entry| entry.cluster == "c07"));
        assert!(all(of("c"), backends).0.is_empty());
        assert_eq!(all(of("c07"), routes).0[0].cluster(), Some("c07"));
    }

    #[test]
    fn a_place_that_is_none_is_refused() {
        let configuration = configuration();
        let from = |after: &str| Select { after: Some(after.into()), ..Select::default() };
        for text in ["c07", "c07/", "c07/nowhere"] {
            assert_eq!(backends(&configuration, &from(text)).expect_err("no place").status, 422);
        }
        assert_eq!(routes(&configuration, &from("{\"a\":1}")).expect_err("no place").status, 422);
        assert_eq!(clusters(&configuration, &by(0)).expect_err("empty").status, 400);
        // Of what has gone meanwhile, the place is still known.
        assert_eq!(clusters(&configuration, &from("c07x")).expect("a place").items[0].name, "c08");
    }
}
