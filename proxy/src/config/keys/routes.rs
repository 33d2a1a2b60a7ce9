//! Keys of routes, of the tables below them, and of named answers.

use underpass_command::state::{
    Answer, AnswerField, AnswerFor, BasicAuth, EditAction, EditOn, FieldEdit, HeaderMatch, PathMatch,
    RedirectTo, Respond, Rewrite, Route, Scheme, User, ValueMatch,
};

use super::{Blank, redirect_modes, store};
use crate::config::syntax::{Syntax, parse_choice, parse_methods};
use crate::config::table::{Access, Key, Need};

/// Keys of `[[route]]` that mean nothing beside `sni`, and the tables below it.
pub(in crate::config) const ROUTE_HTTP_ONLY: [&str; 15] = [
    "host",
    "host_regex",
    "path",
    "path_prefix",
    "path_regex",
    "methods",
    "priority",
    "allow_connect",
    "redirect",
    "respond",
    "redirect_to",
    "rewrite",
    "auth",
    "header",
    "edit",
];

/// Tables and lists below `[[route]]`.
pub(in crate::config) const ROUTE_PARTS: [&str; 6] =
    ["respond", "redirect_to", "rewrite", "auth", "header", "edit"];

/// Text that may be left out, in a field that is an option.
macro_rules! option {
    ($name:literal, $($field:ident).+, $example:literal, $syntax:expr, $doc:literal) => {
        Key {
            name: $name,
            doc: $doc,
            need: Need::Optional($example),
            access: Access::Text {
                syntax: $syntax,
                get: |item| item.$($field).+.clone(),
                set: |item, text| {
                    item.$($field).+ = Some(text.to_owned());
                    Ok(())
                },
            },
        }
    };
}

/// The text of one of the variants of a field.
macro_rules! variant {
    ($name:literal, $field:ident, $variant:path, $need:expr, $syntax:expr, $doc:literal) => {
        Key {
            name: $name,
            doc: $doc,
            need: $need,
            access: Access::Text {
                syntax: $syntax,
                get: |item| if let $variant(text) = &item.$field { Some(text.clone()) } else { None },
                set: |item, text| {
                    item.$field = $variant(text.to_owned());
                    Ok(())
                },
            },
        }
    };
}

/// Keys of `[[route]]`.
pub(in crate::config) static ROUTE: &[Key<Route>] = &[
    option!(
        "listener",
        listener,
        "web",
        Syntax::Name,
        "Only for requests or connections that came in by this listener. Without it: by any."
    ),
    Key {
        name: "sni",
        doc: "For tcp listeners: only for connections whose TLS ClientHello names this server, or with *. in front for \
              every name below it. TLS passes untouched. Excludes everything below but cluster.",
        need: Need::Optional("*.example.com"),
        access: Access::Text {
            syntax: Syntax::ServerName,
            get: |route| route.sni.clone(),
            set: |route, text| {
                route.sni = Some(text.to_ascii_lowercase());
                Ok(())
            },
        },
    },
    Key {
        name: "host",
        doc: "Only for this host, or with *. in front for every name below it. Without it: for every host.",
        need: Need::Optional("*.example.com"),
        access: Access::Text {
            syntax: Syntax::Host,
            get: |route| route.host.clone(),
            set: |route, text| {
                // RFC 3986 3.2.2: hosts compare without regard to case.
                route.host = Some(text.to_ascii_lowercase());
                Ok(())
            },
        },
    },
    option!(
        "host_regex",
        host_regex,
        "(?P<tenant>[a-z]+)\\.example\\.com",
        Syntax::Pattern,
        "Instead of host: a regular expression that must match the whole host, which is in lower case."
    ),
    variant!(
        "path",
        path,
        PathMatch::Exact,
        Need::Optional("/favicon.ico"),
        Syntax::UrlPath,
        "Only for this very path; the query does not count. Excludes path_prefix and path_regex."
    ),
    variant!(
        "path_prefix",
        path,
        PathMatch::Prefix,
        Need::Optional("/api"),
        Syntax::UrlPath,
        "Only for paths that begin so, at a segment's border: /a takes /a and /a/b, not /ab. Without path, path_prefix \
         and path_regex: for every path."
    ),
    variant!(
        "path_regex",
        path,
        PathMatch::Regex,
        Need::Optional("/v([0-9]+)/.*"),
        Syntax::Pattern,
        "Only for paths that this regular expression matches as a whole."
    ),
    Key {
        name: "methods",
        doc: "Only for these methods, separated by commas. Without it: for all.",
        need: Need::Optional("GET, HEAD"),
        access: Access::Text {
            syntax: Syntax::Methods,
            get: |route| (!route.methods.is_empty()).then(|| route.methods.join(", ")),
            set: |route, text| {
                route.methods = parse_methods(text)?;
                Ok(())
            },
        },
    },
    integer!(
        "priority",
        priority,
        0..=65_535,
        "",
        "Order among regular expressions for hosts or paths: higher first. Means nothing without one."
    ),
    Key {
        name: "cluster",
        doc: "Cluster that serves the requests or connections. A route has one of cluster, respond and redirect_to.",
        need: Need::OneOf("app"),
        access: Access::Text {
            syntax: Syntax::Name,
            get: |route| route.cluster.clone(),
            set: |route, text| {
                route.cluster = Some(text.to_owned());
                Ok(())
            },
        },
    },
    boolean!(
        "allow_connect",
        allow_connect,
        "Whether CONNECT is allowed, and opens a tunnel to the cluster."
    ),
    redirect_override!("Overrides the redirect mode of the process, of the listener and of the cluster."),
];

/// Keys of `[route.respond]`.
pub(in crate::config) static RESPOND: &[Key<Respond>] = &[
    integer!("status", status, 200..=599, "", "The status, unless the named answer has one of its own."),
    option!(
        "answer",
        answer,
        "maintenance",
        Syntax::Name,
        "The [[answer]] that is given. Without it: a line of text."
    ),
];

/// Keys of `[route.redirect_to]`.
pub(in crate::config) static REDIRECT_TO: &[Key<RedirectTo>] = &[
    integer!("status", status, 301..=308, "", "301, 302, 303, 307 or 308."),
    Key {
        name: "scheme",
        doc: "The scheme. Without it: http.",
        need: Need::Optional("https"),
        access: Access::Text {
            syntax: Syntax::Choice(|| Scheme::ALL.iter().map(|scheme| scheme.name()).collect()),
            get: |to| to.scheme.map(|scheme| scheme.name().to_owned()),
            set: |to, text| {
                let names: Vec<_> = Scheme::ALL.iter().map(|scheme| scheme.name()).collect();
                to.scheme = Some(parse_choice(&names, text)?);
                Ok(())
            },
        },
    },
    option!(
        "host",
        host,
        "www.example.com",
        Syntax::Template,
        "The host, without port; a template (see [[route]]). Without it: the host that was asked for."
    ),
    integer!(
        "port",
        port,
        0..=65_535,
        "",
        "The port. 0 is that of the scheme where scheme or host is given, else the one that was asked for."
    ),
    option!(
        "path",
        path,
        "/new/$1",
        Syntax::Template,
        "The path, a template; with a query in it the client's is left out. Without it: the path that was asked for."
    ),
    option!(
        "prefix",
        prefix,
        "/new",
        Syntax::UrlPath,
        "Instead of path: what takes the place of path_prefix."
    ),
];

/// Keys of `[route.rewrite]`.
pub(in crate::config) static REWRITE: &[Key<Rewrite>] = &[
    option!(
        "host",
        host,
        "${tenant}.internal",
        Syntax::Template,
        "The Host field that the backend gets; a template."
    ),
    option!(
        "path",
        path,
        "/$1",
        Syntax::Template,
        "The path that the backend is asked for, a template; with a query in it the client's is left out."
    ),
    option!("prefix", prefix, "/", Syntax::UrlPath, "Instead of path: what takes the place of path_prefix."),
];

/// Keys of `[route.auth]`.
pub(in crate::config) static AUTH: &[Key<BasicAuth>] = &[text!(
    "realm",
    realm,
    Need::Required("staff"),
    Syntax::Line,
    "What the client is told that its password is for."
)];

/// Keys of `[[route.auth.user]]`.
pub(in crate::config) static USER: &[Key<User>] = &[
    text!(
        "name",
        name,
        Need::Required("ann"),
        Syntax::Line,
        "The name, without a colon. Unique in its route."
    ),
    Key {
        name: "password",
        doc: "SALT$HASH: 8 to 64 letters and digits, and the SHA-256 of salt and password in hexadecimal digits, as \
              salt=$(openssl rand -hex 16); printf %s \"$salt$password\" | sha256sum gives it. Verifying is quick, so that it \
              does not hold up other requests; use long random passwords.",
        need: Need::Required(
            "0123456789abcdef$a82a3210f69c0ac67e8a254d6e6c7d27c042352a0b14534d400553d9bfe0bcb3",
        ),
        access: Access::Text {
            syntax: Syntax::Secret,
            get: |user| Some(user.password.0.clone()),
            set: |user, text| {
                text.clone_into(&mut user.password.0);
                Ok(())
            },
        },
    },
];

/// Keys of `[[route.header]]`.
pub(in crate::config) static HEADER: &[Key<HeaderMatch>] = &[
    text!("name", name, Need::Required("X-Version"), Syntax::Token, "The field's name, in any case."),
    variant!(
        "value",
        value,
        ValueMatch::Exact,
        Need::Optional("2"),
        Syntax::Line,
        "What the value of one of its lines must be. Without value and value_regex: the field must be there."
    ),
    variant!(
        "value_regex",
        value,
        ValueMatch::Regex,
        Need::Optional("2\\..*"),
        Syntax::Pattern,
        "Instead of value: a regular expression that must match the whole value of one of its lines."
    ),
    boolean!("not", not, "Whether there must be no such line."),
];

/// Keys of `[[route.edit]]`.
pub(in crate::config) static EDIT: &[Key<FieldEdit>] = &[
    choice!(
        "on",
        on,
        EditOn,
        "Which head is changed: that of the request to the backend, or of the response to the client."
    ),
    choice!(
        "action",
        action,
        EditAction,
        "set replaces all lines of this name by one, append adds a line, remove takes them out. What the proxy would write \
         under this name itself is left out for set and remove."
    ),
    text!(
        "name",
        name,
        Need::Required("X-Client"),
        Syntax::Token,
        "The field's name. Those that frame a message or belong to its connection cannot be changed."
    ),
    text!("value", value, Need::Default, Syntax::Template, "The value; a template."),
];

/// Keys of `[[answer]]`.
pub(in crate::config) static ANSWER: &[Key<Answer>] = &[
    text!("name", name, Need::Required("maintenance"), Syntax::Name, "Unique among answers."),
    integer!(
        "status",
        status,
        0..=599,
        "",
        "The status. 0 is that of the case in which the answer is given."
    ),
    text!("content_type", content_type, Need::Default, Syntax::Line, "The type of the body."),
    text!(
        "body",
        body,
        Need::Default,
        Syntax::Body,
        "The body, in which ${status}, ${phrase}, ${explanation}, ${client} and ${request_id} stand for what they say, and $$ \
         for a dollar. It must fit into limits.buffer_size."
    ),
];

/// Keys of `[[answer.field]]`.
pub(in crate::config) static ANSWER_FIELD: &[Key<AnswerField>] = &[
    text!("name", name, Need::Required("Retry-After"), Syntax::Token, "The field's name."),
    text!("value", value, Need::Required("120"), Syntax::Line, "Its value, as it is sent."),
];

/// Keys of `[[listener.answer]]` and `[[cluster.answer]]`.
pub(in crate::config) static ANSWER_FOR: &[Key<AnswerFor>] = &[
    integer!("status", status, 400..=599, "", "The status that the proxy would answer with."),
    text!(
        "answer",
        answer,
        Need::Required("maintenance"),
        Syntax::Name,
        "The [[answer]] that is given instead."
    ),
];

/// Items whose default has nothing in it that a file must give.
macro_rules! blank {
    ($($kind:ty),+) => {
        $(impl Blank for $kind {
            fn blank() -> Self {
                Self::default()
            }
        })+
    };
}

blank!(Respond, RedirectTo, Rewrite, BasicAuth, User, HeaderMatch, AnswerField);

impl Blank for FieldEdit {
    fn blank() -> Self {
        Self {
            on: EditOn::default(),
            action: EditAction::default(),
            name: String::new(),
            value: String::new(),
        }
    }
}

impl Blank for Answer {
    fn blank() -> Self {
        Self::new("", 0, "")
    }
}

impl Blank for AnswerFor {
    fn blank() -> Self {
        Self { status: 503, answer: String::new() }
    }
}
