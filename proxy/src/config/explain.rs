//! What the configuration file may hold, in words: the text of `underpass check --explain` and the man page.

use std::fmt::Write;

use underpass_command::state::{
    Answer, AnswerField, AnswerFor, Backend, BasicAuth, Cluster, FieldEdit, HeaderMatch, Listener,
    RedirectTo, Respond, Rewrite, Route, Settings, User,
};

use super::keys::{self, Blank};
use super::table::{Access, Key, Need, quote};
use crate::log_format::FIELDS;

/// Width of the text in columns.
const WIDTH: usize = 79;

/// A configuration file with every key, its meaning, type, range and default. It is valid as it stands, and keys that
/// have a default have it.
pub fn explain() -> String {
    let mut out = String::new();
    comment(
        &mut out,
        "Every key of the configuration file. A key that is left out has the value shown here; keys behind a # \
         have none.",
    );
    for section in sections() {
        out.push('\n');
        section.doc.lines().for_each(|line| comment(&mut out, line));
        let mark = if section.optional { "# " } else { "" };
        if !section.header.is_empty() {
            let _ = writeln!(out, "{mark}{}", section.header);
        }
        for row in section.rows {
            out.push('\n');
            comment(&mut out, row.doc);
            match row.value {
                Value::Default(literal) => {
                    comment(&mut out, &format!("Takes: {}. Default: {literal}.", row.takes));
                    let _ = writeln!(out, "{mark}{} = {literal}", row.name);
                }
                Value::Optional(example) => {
                    comment(&mut out, &format!("Takes: {}. No default.", row.takes));
                    let _ = writeln!(out, "# {} = {example}", row.name);
                }
                Value::Required(example) => {
                    comment(&mut out, &format!("Takes: {}. Required.", row.takes));
                    let _ = writeln!(out, "{mark}{} = {example}", row.name);
                }
                Value::OneOf(example) => {
                    comment(&mut out, &format!("Takes: {}.", row.takes));
                    let _ = writeln!(out, "{mark}{} = {example}", row.name);
                }
            }
        }
    }
    out
}

/// The manual page `underpass.toml(5)`, in the format of man(7).
pub fn man_page() -> String {
    let mut out = String::from(concat!(
        ".TH UNDERPASS.TOML 5 \"\" \"underpass ",
        env!("CARGO_PKG_VERSION"),
        "\" \"File formats\"\n",
        ".SH NAME\nunderpass.toml \\- configuration of the reverse proxy underpass\n",
        ".SH DESCRIPTION\n",
        "A file in TOML.\n",
        "Unknown keys are refused.\n",
        "Units stand last in the name of a key: _ms is milliseconds, _size and _size_max are bytes.\n",
        ".B underpass check\n.I file\n",
        "tells everything that is wrong with a file;\n",
        ".B underpass check \\-\\-explain\n",
        "prints a file with every key and its default.\n",
    ));
    for section in sections() {
        let title = if section.header.is_empty() { "TOP OF THE FILE" } else { section.header };
        let _ = writeln!(out, ".SH \"{}\"", roff(title));
        let lines: Vec<String> = section.doc.lines().map(roff).collect();
        let _ = writeln!(out, "{}", lines.join("\n.br\n"));
        for row in section.rows {
            let value = match row.value {
                Value::Default(literal) => format!("Default: {literal}."),
                Value::Optional(example) => format!("No default; for example: {example}."),
                Value::Required(example) => format!("Required; for example: {example}."),
                Value::OneOf(example) => format!("For example: {example}."),
            };
            let _ = writeln!(out, ".TP\n.B {}\n{}", roff(row.name), roff(row.doc));
            let _ = writeln!(out, ".br\nTakes: {}.\n.br\n{}", roff(&row.takes), roff(&value));
        }
    }
    out
}

/// One table of the file.
pub(super) struct Section {
    /// As it stands in a file; empty for the top.
    pub(super) header: &'static str,
    /// Its lines are paragraphs.
    doc: String,
    /// It may be left out as a whole, and then none of its keys has a value.
    optional: bool,
    pub(super) rows: Vec<Row>,
}

/// One key, in words.
pub(super) struct Row {
    pub(super) name: &'static str,
    doc: &'static str,
    takes: String,
    value: Value,
}

/// The default of a key, or an example for one that has none.
enum Value {
    Default(String),
    Optional(String),
    OneOf(String),
    Required(String),
}

pub(super) fn sections() -> Vec<Section> {
    let settings = Settings::default();
    vec![
        section("", "Settings of the process. They stand above the first table.", keys::ROOT, &settings),
        section("[log]", &log_doc(), keys::LOG, &settings),
        section("[metrics]", "What is published for Prometheus.", keys::METRICS, &settings),
        section(
            "[limits]",
            "Bounds of each worker. Pools are sized from them at start and never grow.",
            keys::LIMITS,
            &settings,
        ),
        section(
            "[timeouts]",
            "The deadline of each kind of wait. Every wait ends.",
            keys::TIMEOUTS,
            &settings,
        ),
        section(
            "[[listener]]",
            "Where connections come in. Once for each.",
            keys::LISTENER,
            &Listener::blank(),
        ),
        section(
            "[[cluster]]",
            "A group of backends that serve the same application. Once for each.",
            keys::CLUSTER,
            &Cluster::blank(),
        ),
        section(
            "[[cluster.backend]]",
            "One server of the cluster above it. Once for each.",
            keys::BACKEND,
            &Backend::blank(),
        ),
        section(
            "[[route]]",
            "What is done with the requests that match. Once for each. A request takes the first that it matches, \
             whatever their order here: exact hosts come before wildcards, longer wildcards before shorter, then regular \
             expressions, then routes for any host; then a listener's own before everybody's; then exact paths, longer \
             prefixes before shorter, regular expressions; then more header conditions before fewer, few methods before \
             many. Among regular expressions a higher priority comes first, then the longer, then the smaller text. In \
             templates ${client}, ${request_id}, ${host}, ${path}, ${query}, ${method}, ${listener}, ${cluster} and \
             ${backend} stand for what they say, $1 for a group of path_regex, ${name} for a named group of path_regex or \
             host_regex, $$ for a dollar. In redirect_to and rewrite only host, path, query, method and listener are known, in \
             changes of responses only client, request_id, listener, cluster and backend.",
            keys::ROUTE,
            &Route::blank(),
        ),
        part("[route.respond]", "The proxy answers itself.", keys::RESPOND, &Respond::blank()),
        part(
            "[route.redirect_to]",
            "The client is sent to another address.",
            keys::REDIRECT_TO,
            &RedirectTo::blank(),
        ),
        part("[route.rewrite]", "What the cluster is asked for instead.", keys::REWRITE, &Rewrite::blank()),
        part(
            "[route.auth]",
            "Who may ask: basic authentication (RFC 7617).",
            keys::AUTH,
            &BasicAuth::blank(),
        ),
        part("[[route.auth.user]]", "One who may. Once for each.", keys::USER, &User::blank()),
        part(
            "[[route.header]]",
            "A header field that requests must have to take the route. Once for each.",
            keys::HEADER,
            &HeaderMatch::blank(),
        ),
        part(
            "[[route.edit]]",
            "A change of a header field. Once for each, in this order.",
            keys::EDIT,
            &FieldEdit::blank(),
        ),
        part("[[answer]]", "An answer of the proxy itself. Once for each.", keys::ANSWER, &Answer::blank()),
        part(
            "[[answer.field]]",
            "A header field of the answer above it. Once for each.",
            keys::ANSWER_FIELD,
            &AnswerField::blank(),
        ),
        part(
            "[[listener.answer]]",
            "The answer that is given in place of the proxy's own. Once for each status. The same below [[cluster]], as \
             [[cluster.answer]], which comes first.",
            keys::ANSWER_FOR,
            &AnswerFor::blank(),
        ),
    ]
}

/// What `[log]` is, with the fields of templates.
fn log_doc() -> String {
    let mut doc = "What is logged, and where. In access_template $name or ${name} stands for what is known of a request, \
                   as in nginx, $$ for a dollar:"
        .to_owned();
    for (_, name, what) in FIELDS {
        let _ = write!(doc, "\n${name}: {what}.");
    }
    doc + "\n$http_name: that header field of the request, as $http_user_agent, at most 16 of them and 512 bytes of each."
}

/// A table that may be left out.
fn part<T>(header: &'static str, doc: &str, keys: &[Key<T>], blank: &T) -> Section {
    Section { optional: true, ..section(header, doc, keys, blank) }
}

fn section<T>(header: &'static str, doc: &str, keys: &[Key<T>], blank: &T) -> Section {
    let doc = doc.to_owned();
    Section { header, doc, optional: false, rows: keys.iter().map(|key| row(key, blank)).collect() }
}

fn row<T>(key: &Key<T>, blank: &T) -> Row {
    let value = match key.need {
        Need::Default => Value::Default(key.literal(blank).unwrap_or_else(|| quote(""))),
        Need::Optional(example) => Value::Optional(quote(example)),
        Need::OneOf(example) => Value::OneOf(quote(example)),
        Need::Required(example) => Value::Required(quote(example)),
    };
    let takes = match &key.access {
        Access::Integer { range, unit: "", .. } => format!("{} to {}", range.start(), range.end()),
        Access::Integer { range, unit, .. } => format!("{} to {} {unit}", range.start(), range.end()),
        Access::Boolean { .. } => "true or false".into(),
        Access::Text { syntax, .. } => syntax.describe(),
    };
    Row { name: key.name, doc: key.doc, takes, value }
}

/// Writes a comment in lines of at most [`WIDTH`] columns.
fn comment(out: &mut String, text: &str) {
    let mut column = 0;
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if column == 0 || column + 1 + width > WIDTH {
            out.push_str(if column == 0 { "# " } else { "\n# " });
            column = 2;
        } else {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += width;
    }
    out.push('\n');
}

/// Text that roff shows as it is.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-").replace('"', "\\(dq");
    // A period or apostrophe at the start of a line would begin a request.
    if escaped.starts_with(['.', '\'']) { format!("\\&{escaped}") } else { escaped }
}
