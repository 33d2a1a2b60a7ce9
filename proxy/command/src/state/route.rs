//! Which requests go where, and what is done with them on the way.

use serde::{Deserialize, Serialize};

use super::RedirectMode;
use super::names::named;

/// What is done with the requests that match: exactly one of `cluster`, `respond` and `redirect_to` says so.
///
/// Which route a request takes does not depend on the order in which they were added. The first difference decides:
///
/// 1. host: exact, then the longest wildcard, then regular expressions, then any host;
/// 2. listener: its own routes, then everybody's;
/// 3. path: exact, then regular expressions, then the longest prefix;
/// 4. conditions: more `headers` first, then `methods` before none and few before many.
///
/// Among regular expressions the higher `priority` comes first, then the longer pattern, then the smaller text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Only for requests that came in here; none: every listener.
    #[serde(default)]
    pub listener: Option<String>,
    /// Host name without port, `*.example.com` for every name below, none for every host.
    #[serde(default)]
    pub host: Option<String>,
    /// Instead of `host`: a regular expression that must match the whole host, in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_regex: Option<String>,
    /// For connections to TCP listeners: the server name in the TLS ClientHello (RFC 6066 section 3), or `*.example.com`
    /// for every name below it. Such a route has neither host nor path.
    #[serde(default)]
    pub sni: Option<String>,
    /// Which paths.
    #[serde(default)]
    pub path: PathMatch,
    /// Only for these methods; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Only for requests whose header fields meet all of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// Order among regular expressions for hosts or paths: higher first. Means nothing without one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u16,
    /// The cluster that serves them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Or: the proxy answers itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub respond: Option<Respond>,
    /// Or: the client is sent to another address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_to: Option<RedirectTo>,
    /// Whether CONNECT is allowed, and opens a tunnel to the cluster.
    #[serde(default)]
    pub allow_connect: bool,
    /// Overrides the redirect mode of the cluster, the listener and the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<RedirectMode>,
    /// What the cluster is asked for instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Rewrite>,
    /// Changes of header fields, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edits: Vec<FieldEdit>,
    /// Who may ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<BasicAuth>,
}

/// Everything a route matches on: its identity. Two routes with the same key cannot stand beside each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RouteKey {
    /// As [`Route::listener`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    /// As [`Route::host`], in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// As [`Route::host_regex`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_regex: Option<String>,
    /// As [`Route::sni`], in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// As [`Route::path`].
    #[serde(default)]
    pub path: PathMatch,
    /// As [`Route::methods`], sorted, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// As [`Route::headers`], names in lower case, sorted, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// As [`Route::priority`]; 0 where it means nothing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u16,
}

/// Which paths a route takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum PathMatch {
    /// This path and nothing else; the query does not count.
    Exact(String),
    /// Paths that begin so, at a segment's border: `/a` takes `/a` and `/a/b`, not `/ab`.
    Prefix(String),
    /// Paths that this regular expression matches as a whole.
    Regex(String),
}

/// A condition on the header fields of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct HeaderMatch {
    /// The field's name, in any case.
    pub name: String,
    /// What the value of at least one line of this name must be.
    #[serde(default)]
    pub value: ValueMatch,
    /// The condition is met when there is no such line.
    #[serde(default)]
    pub not: bool,
}

/// Which values of a header field.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ValueMatch {
    /// Whatever it is: the field is there.
    #[default]
    Any,
    /// This value and nothing else.
    Exact(String),
    /// Values that this regular expression matches as a whole.
    Regex(String),
}

/// An answer of the proxy itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Respond {
    /// The status, unless the named answer has one of its own.
    #[serde(default = "Respond::forbidden")]
    pub status: u16,
    /// The name of an [`Answer`](super::Answer); none: a line of text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

/// Where a client is sent: what is not given stays as the client asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RedirectTo {
    /// 301, 302, 303, 307 or 308 (RFC 9110 section 15.4).
    #[serde(default = "RedirectTo::found")]
    pub status: u16,
    /// The scheme; none: http.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// The host, without port; a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The port. 0: that of the scheme where `scheme` or `host` is given, else the client's.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub port: u16,
    /// The path, and a query where it has one; a template. Without it path and query stay; without a query in it the
    /// client's stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What stands in the place of the route's path prefix. Excludes `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

named! {
    /// The scheme of a URL.
    Scheme {
        /// http
        Http = "http",
        /// https
        Https = "https",
    }
}

/// What a backend is asked for in place of what the client wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rewrite {
    /// The Host field, with a port where it has one; a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The path, and a query where it has one; a template. Without a query in it the client's stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What stands in the place of the route's path prefix. Excludes `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

/// One change of a header field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FieldEdit {
    /// In which head.
    #[serde(default)]
    pub on: EditOn,
    /// What is done.
    #[serde(default)]
    pub action: EditAction,
    /// The field's name, in any case.
    pub name: String,
    /// The new value, a template; empty where the field is removed.
    #[serde(default)]
    pub value: String,
}

named! {
    /// Which head is edited.
    #[derive(Default)]
    EditOn {
        /// That of the request, on its way to the backend.
        #[default]
        Request = "request",
        /// That of the response, on its way to the client.
        Response = "response",
    }
}

named! {
    /// What is done with a header field.
    #[derive(Default)]
    EditAction {
        /// All lines of this name are replaced by one.
        #[default]
        Set = "set",
        /// A line is added.
        Append = "append",
        /// All lines of this name are removed.
        Remove = "remove",
    }
}

/// Basic authentication (RFC 7617).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct BasicAuth {
    /// What the client is told that its password is for.
    pub realm: String,
    /// Who may ask.
    pub users: Vec<User>,
}

/// A user and what is kept of the password.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The name, without a colon.
    pub name: String,
    /// `SALT$HASH`: 8 to 64 letters and digits, and the SHA-256 of salt and password, one after the other, in hexadecimal
    /// digits.
    pub password: Secret,
}

/// A text that no log and no message shows.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// What a route does, where it says one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// The cluster of this name serves.
    Forward(&'a str),
    /// The proxy answers.
    Respond(&'a Respond),
    /// The client is sent elsewhere.
    RedirectTo(&'a RedirectTo),
}

impl Default for PathMatch {
    fn default() -> Self {
        Self::Prefix("/".into())
    }
}

impl Route {
    /// A route that sends every request of every listener to a cluster.
    pub fn new(cluster: impl Into<String>) -> Self {
        Self { cluster: Some(cluster.into()), ..Self::default() }
    }

    /// A route that answers every request with a status.
    pub fn respond(status: u16) -> Self {
        Self { respond: Some(Respond { status, answer: None }), ..Self::default() }
    }

    /// Everything it matches on.
    pub fn key(&self) -> RouteKey {
        let mut headers: Vec<_> = self.headers.clone();
        headers.iter_mut().for_each(|header| header.name.make_ascii_lowercase());
        headers.sort_unstable();
        headers.dedup();
        let mut methods = self.methods.clone();
        methods.sort_unstable();
        methods.dedup();
        let ordered = self.host_regex.is_some() || matches!(self.path, PathMatch::Regex(_));
        RouteKey {
            listener: self.listener.clone(),
            host: self.host.as_deref().map(str::to_ascii_lowercase),
            host_regex: self.host_regex.clone(),
            sni: self.sni.as_deref().map(str::to_ascii_lowercase),
            path: self.path.clone(),
            methods,
            headers,
            priority: if ordered { self.priority } else { 0 },
        }
    }

    /// The cluster that it leads to, if it leads to one.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// What it does; none where it says nothing, or more than one thing.
    pub fn action(&self) -> Option<Action<'_>> {
        match (&self.cluster, &self.respond, &self.redirect_to) {
            (Some(cluster), None, None) => Some(Action::Forward(cluster)),
            (None, Some(respond), None) => Some(Action::Respond(respond)),
            (None, None, Some(redirect)) => Some(Action::RedirectTo(redirect)),
            _ => None,
        }
    }
}

impl RouteKey {
    /// The key as [`Route::key`] makes it, of one that somebody has written.
    pub fn canonical(&self) -> Self {
        let Self { listener, host, host_regex, sni, path, methods, headers, priority } = self.clone();
        Route { listener, host, host_regex, sni, path, methods, headers, priority, ..Route::default() }.key()
    }
}

impl std::fmt::Display for RouteKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(name) = &self.sni {
            write!(f, "sni {name}")?;
        } else {
            match (&self.host, &self.host_regex) {
                (Some(host), _) => write!(f, "{host}")?,
                (None, Some(regex)) => write!(f, "~{regex} ")?,
                (None, None) => write!(f, "*")?,
            }
            match &self.path {
                PathMatch::Exact(path) => write!(f, "{path}")?,
                PathMatch::Prefix(path) => write!(f, "{path}...")?,
                PathMatch::Regex(regex) => write!(f, " ~{regex}")?,
            }
        }
        if !self.methods.is_empty() {
            write!(f, " {}", self.methods.join(","))?;
        }
        for HeaderMatch { name, value, not } in &self.headers {
            write!(f, " {}{name}", if *not { "!" } else { "" })?;
            match value {
                ValueMatch::Any => {}
                ValueMatch::Exact(value) => write!(f, "={value:?}")?,
                ValueMatch::Regex(regex) => write!(f, "~{regex:?}")?,
            }
        }
        match &self.listener {
            Some(listener) => write!(f, " on \"{listener}\""),
            None => Ok(()),
        }
    }
}

impl Respond {
    fn forbidden() -> u16 {
        403
    }
}

impl RedirectTo {
    fn found() -> u16 {
        302
    }
}

impl Default for Respond {
    fn default() -> Self {
        Self { status: Self::forbidden(), answer: None }
    }
}

impl Default for RedirectTo {
    fn default() -> Self {
        Self { status: Self::found(), scheme: None, host: None, port: 0, path: None, prefix: None }
    }
}

/// Tells serde what to leave out.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde wants")]
fn is_zero(number: &u16) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_same_however_it_is_written() {
        let header = |name: &str| HeaderMatch { name: name.into(), ..HeaderMatch::default() };
        let a = Route {
            host: Some("A.Example".into()),
            methods: vec!["PUT".into(), "GET".into(), "PUT".into()],
            headers: vec![header("X-B"), header("x-a")],
            ..Route::new("app")
        };
        let b = Route {
            host: Some("a.example".into()),
            methods: vec!["GET".into(), "PUT".into()],
            headers: vec![header("X-A"), header("x-b")],
            allow_connect: true,
            ..Route::respond(403)
        };
        assert_eq!(a.key(), b.key());
        let written = RouteKey {
            host: Some("A.EXAMPLE".into()),
            headers: vec![header("X-B"), header("X-A")],
            ..a.key()
        };
        assert_eq!(written.canonical(), a.key());
        assert_eq!(a.key(), Route { priority: 1, ..a.clone() }.key());
        let regex = Route { path: PathMatch::Regex("/a".into()), ..a.clone() };
        assert_ne!(regex.key(), Route { priority: 1, ..regex.clone() }.key());
        assert_ne!(a.key(), Route { path: PathMatch::Exact("/".into()), ..a.clone() }.key());
    }

    #[test]
    fn a_route_as_it_always_was() {
        let text = r#"{"host":"a.example","path":{"exact":"/x"},"cluster":"app"}"#;
        let route: Route = serde_json::from_str(text).expect("a route");
        let path = PathMatch::Exact("/x".into());
        assert_eq!(route, Route { host: Some("a.example".into()), path, ..Route::new("app") });
        assert_eq!(route.action(), Some(Action::Forward("app")));
        let key = r#"{"host":"a.example","path":{"exact":"/x"}}"#;
        assert_eq!(serde_json::from_str::<RouteKey>(key).expect("the key of a route"), route.key());
    }

    #[test]
    fn a_key_in_words() {
        let key = Route {
            listener: Some("web".into()),
            host: Some("a.example".into()),
            path: PathMatch::Regex("/v[0-9]+".into()),
            methods: vec!["GET".into()],
            headers: vec![HeaderMatch { name: "X-Old".into(), not: true, ..HeaderMatch::default() }],
            ..Route::new("app")
        }
        .key();
        assert_eq!(key.to_string(), "a.example ~/v[0-9]+ GET !x-old on \"web\"");
        assert_eq!(Route::new("app").key().to_string(), "*/...");
    }

    #[test]
    fn one_action_only() {
        assert_eq!(Route::default().action(), None);
        assert_eq!(Route { cluster: Some("app".into()), ..Route::respond(403) }.action(), None);
        let respond = Respond { status: 410, answer: None };
        assert_eq!(Route::respond(410).action(), Some(Action::Respond(&respond)));
    }

    #[test]
    fn no_message_shows_a_password() {
        let user = User { name: "ann".into(), password: Secret("salt$1234".into()) };
        assert!(!format!("{user:?}").contains("1234"));
    }
}
