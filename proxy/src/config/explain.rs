//! What the configuration file may hold, in words: the text of `underpass check --explain` and the man page.

use std::fmt::Write;

use underpass_command::state::{Backend, Cluster, Listener, Route, Settings};

use super::keys::{self, Blank};
use super::table::{Access, Key, Need, quote};

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
        comment(&mut out, section.doc);
        if !section.header.is_empty() {
            let _ = writeln!(out, "{}", section.header);
        }
        for row in section.rows {
            out.push('\n');
            comment(&mut out, row.doc);
            match row.value {
                Value::Default(literal) => {
                    comment(&mut out, &format!("Takes: {}. Default: {literal}.", row.takes));
                    let _ = writeln!(out, "{} = {literal}", row.name);
                }
                Value::Optional(example) => {
                    comment(&mut out, &format!("Takes: {}. No default.", row.takes));
                    let _ = writeln!(out, "# {} = {example}", row.name);
                }
                Value::Required(example) => {
                    comment(&mut out, &format!("Takes: {}. Required.", row.takes));
                    let _ = writeln!(out, "{} = {example}", row.name);
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
        let _ = writeln!(out, ".SH \"{}\"\n{}", roff(title), roff(section.doc));
        for row in section.rows {
            let value = match row.value {
                Value::Default(literal) => format!("Default: {literal}."),
                Value::Optional(example) => format!("No default; for example: {example}."),
                Value::Required(example) => format!("Required; for example: {example}."),
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
    doc: &'static str,
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
    Required(String),
}

pub(super) fn sections() -> Vec<Section> {
    let settings = Settings::default();
    vec![
        section("", "Settings of the process. They stand above the first table.", keys::ROOT, &settings),
        section("[log]", "What is logged, and where.", keys::LOG, &settings),
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
            "Sends the requests that match to a cluster. Once for each. A route with a host is preferred to one \
             without, an exact host to a wildcard, a longer wildcard to a shorter; then an exact path to a prefix, a \
             longer prefix to a shorter.",
            keys::ROUTE,
            &Route::blank(),
        ),
    ]
}

fn section<T>(header: &'static str, doc: &'static str, keys: &[Key<T>], blank: &T) -> Section {
    Section { header, doc, rows: keys.iter().map(|key| row(key, blank)).collect() }
}

fn row<T>(key: &Key<T>, blank: &T) -> Row {
    let value = match key.need {
        Need::Default => Value::Default(key.literal(blank).unwrap_or_else(|| quote(""))),
        Need::Optional(example) => Value::Optional(quote(example)),
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
