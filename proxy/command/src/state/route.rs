//! Which requests go where.

use serde::{Deserialize, Serialize};

/// Sends the requests that match to a cluster.
///
/// A route with a host is preferred to one without, an exact host to a wildcard, a longer wildcard to a shorter; then an
/// exact path to a prefix, a longer prefix to a shorter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Only for requests that came in here; none: every listener.
    #[serde(default)]
    pub listener: Option<String>,
    /// Host name without port, `*.example.com` for every name below, none for every host.
    #[serde(default)]
    pub host: Option<String>,
    /// For connections to TCP listeners: the server name in the TLS ClientHello (RFC 6066 section 3), or `*.example.com`
    /// for every name below. Such a route has neither host nor path.
    #[serde(default)]
    pub sni: Option<String>,
    /// Which paths.
    #[serde(default)]
    pub path: PathMatch,
    /// The cluster that serves them.
    pub cluster: String,
    /// Whether CONNECT is allowed, and opens a tunnel to the cluster.
    #[serde(default)]
    pub allow_connect: bool,
}

/// Which paths a route takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathMatch {
    /// This path and nothing else; the query does not count.
    Exact(String),
    /// Paths that begin so, at a segment's border: `/a` takes `/a` and `/a/b`, not `/ab`.
    Prefix(String),
}

impl Default for PathMatch {
    fn default() -> Self {
        Self::Prefix("/".into())
    }
}

impl Route {
    /// A route that sends every request of every listener to a cluster.
    pub fn new(cluster: impl Into<String>) -> Self {
        Self {
            listener: None,
            host: None,
            sni: None,
            path: PathMatch::default(),
            cluster: cluster.into(),
            allow_connect: false,
        }
    }
}

/// Everything that a route matches on: its identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteKey {
    /// As in the route.
    #[serde(default)]
    pub listener: Option<String>,
    /// In lower case.
    #[serde(default)]
    pub host: Option<String>,
    /// In lower case.
    #[serde(default)]
    pub sni: Option<String>,
    /// As in the route.
    #[serde(default)]
    pub path: PathMatch,
}

impl Route {
    /// What it matches on.
    pub fn key(&self) -> RouteKey {
        RouteKey {
            listener: self.listener.clone(),
            host: self.host.as_ref().map(|host| host.to_ascii_lowercase()),
            sni: self.sni.as_ref().map(|sni| sni.to_ascii_lowercase()),
            path: self.path.clone(),
        }
    }

    /// The cluster that it leads to.
    pub fn cluster(&self) -> Option<&str> {
        Some(&self.cluster)
    }
}

impl std::fmt::Display for RouteKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.sni, &self.path) {
            (Some(name), _) => write!(f, "sni {name}")?,
            (None, PathMatch::Exact(path)) => write!(f, "{}{path}", self.host.as_deref().unwrap_or("*"))?,
            (None, PathMatch::Prefix(path)) => write!(f, "{}{path}...", self.host.as_deref().unwrap_or("*"))?,
        }
        match &self.listener {
            Some(listener) => write!(f, " on \"{listener}\""),
            None => Ok(()),
        }
    }
}
