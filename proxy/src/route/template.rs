//! Texts with variables in them, for rewritten targets, header fields, addresses and answers.
//!
//! `${name}` is a variable or a named group of the route's regular expression, `$1` to `$9` and `${12}` are groups of the one
//! for the path, `$$` is a dollar. A group that took part in nothing is empty.

use std::cell::RefCell;

use regex::bytes::{CaptureLocations, Regex};

/// The longest template in bytes; the body of an answer has a bound of its own.
pub const TEMPLATE_SIZE_MAX: usize = 4096;

/// Declares the variables by their names.
macro_rules! variables {
    ($($(#[$meta:meta])* $variant:ident $field:ident = $name:literal,)+) => {
        /// What a template may ask for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Variable { $($(#[$meta])* $variant,)+ }

        impl Variable {
            const ALL: &'static [(&'static str, Self)] = &[$(($name, Self::$variant),)+];

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        /// The values of the variables.
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Values<'a> { $($(#[$meta])* pub $field: &'a [u8],)+ }

        impl<'a> Values<'a> {
            fn of(&self, variable: Variable) -> &'a [u8] {
                match variable { $(Variable::$variant => self.$field,)+ }
            }
        }
    };
}

variables! {
    /// The client's address.
    Client client = "client",
    /// The request's id.
    RequestId request_id = "request_id",
    /// The host that was asked for, without port.
    Host host = "host",
    /// The path that was asked for, without query.
    Path path = "path",
    /// The query that was asked for, without question mark.
    Query query = "query",
    /// The method.
    Method method = "method",
    /// The listener's name.
    Listener listener = "listener",
    /// The cluster's name.
    Cluster cluster = "cluster",
    /// The backend's address.
    Backend backend = "backend",
    /// The status.
    Status status = "status",
    /// The standard words for the status.
    Phrase phrase = "phrase",
    /// A sentence that says why.
    Explanation explanation = "explanation",
}

/// Known when a request is passed on.
pub(super) const IN_REQUEST: &[Variable] = &[
    Variable::Client,
    Variable::RequestId,
    Variable::Host,
    Variable::Path,
    Variable::Query,
    Variable::Method,
    Variable::Listener,
    Variable::Cluster,
    Variable::Backend,
];
/// Known before a backend is chosen.
pub(super) const IN_TARGET: &[Variable] =
    &[Variable::Host, Variable::Path, Variable::Query, Variable::Method, Variable::Listener];
/// Known when a response is passed on: the request's bytes are gone by then.
pub(super) const IN_RESPONSE: &[Variable] =
    &[Variable::Client, Variable::RequestId, Variable::Listener, Variable::Cluster, Variable::Backend];
/// Known when the proxy answers, and harmless in every kind of text.
pub const IN_ANSWER: &[Variable] =
    &[Variable::Status, Variable::Phrase, Variable::Explanation, Variable::Client, Variable::RequestId];

/// The groups of a route's regular expressions.
#[derive(Debug, Default)]
pub struct Groups {
    path: Option<(Regex, RefCell<CaptureLocations>)>,
    host: Option<(Regex, RefCell<CaptureLocations>)>,
}

impl Groups {
    /// The groups of the regular expressions for the path and for the host.
    pub fn new(path: Option<Regex>, host: Option<Regex>) -> Self {
        let with_locations = |regex: Regex| {
            let locations = RefCell::new(regex.capture_locations());
            (regex, locations)
        };
        Self { path: path.map(with_locations), host: host.map(with_locations) }
    }

    /// Finds the groups in what was asked for; the host in lower case.
    fn read<'a>(&'a self, path: &'a [u8], host: &'a [u8]) -> Captured<'a> {
        let run = |side: &Option<(Regex, RefCell<CaptureLocations>)>, text: &[u8]| {
            if let Some((regex, locations)) = side {
                // Where nothing matches, which cannot be after a lookup, every group is empty.
                let _ = regex.captures_read(&mut locations.borrow_mut(), text);
            }
        };
        run(&self.path, path);
        run(&self.host, host);
        Captured { groups: self, path, host }
    }

    fn find(&self, name: &str) -> Option<Part> {
        let index = |side: &Option<(Regex, _)>| {
            side.as_ref()?.0.capture_names().position(|group| group == Some(name))
        };
        index(&self.path).map(Part::PathGroup).or_else(|| index(&self.host).map(Part::HostGroup))
    }

    fn path_group(&self, number: usize) -> Result<Part, String> {
        let count = self.path.as_ref().map_or(0, |(regex, _)| regex.captures_len());
        match number < count {
            true => Ok(Part::PathGroup(number)),
            false if count == 0 => Err(format!("${number} is a group of path_regex, which is not given")),
            false => Err(format!("path_regex has no group {number}")),
        }
    }
}

struct Captured<'a> {
    groups: &'a Groups,
    path: &'a [u8],
    host: &'a [u8],
}

impl<'a> Captured<'a> {
    fn group(&self, side: &Option<(Regex, RefCell<CaptureLocations>)>, text: &'a [u8], n: usize) -> &'a [u8] {
        let range = side.as_ref().and_then(|(_, locations)| locations.borrow().get(n));
        range.and_then(|(start, end)| text.get(start..end)).unwrap_or_default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<[u8]>),
    Variable(Variable),
    PathGroup(usize),
    HostGroup(usize),
}

/// A template, ready for use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

impl Template {
    /// Reads a template in which these variables and groups may stand.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn new(text: &str, allowed: &[Variable], groups: &Groups) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            literal.extend_from_slice(before.as_bytes());
            if let Some(after) = after.strip_prefix('$') {
                literal.push(b'$');
                rest = after;
                continue;
            }
            let (part, after) = reference(after, allowed, groups)?;
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal).into()));
            }
            parts.push(part);
            rest = after;
        }
        literal.extend_from_slice(rest.as_bytes());
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(Self { parts })
    }

    /// The text that it begins with whatever the variables are.
    pub fn beginning(&self) -> &[u8] {
        match self.parts.first() {
            Some(Part::Literal(text)) => text,
            _ => b"",
        }
    }

    /// Adds its text to `out`. `asked` are the path and the lower-case host in which the groups are found.
    pub fn expand(&self, values: &Values<'_>, groups: &Groups, asked: (&[u8], &[u8]), out: &mut Vec<u8>) {
        let grouped = self.parts.iter().any(|part| matches!(part, Part::PathGroup(_) | Part::HostGroup(_)));
        let captured = if grouped {
            groups.read(asked.0, asked.1)
        } else {
            Captured { groups, path: asked.0, host: asked.1 }
        };
        for part in &self.parts {
            out.extend_from_slice(match part {
                Part::Literal(text) => text,
                Part::Variable(variable) => values.of(*variable),
                Part::PathGroup(n) => captured.group(&captured.groups.path, captured.path, *n),
                Part::HostGroup(n) => captured.group(&captured.groups.host, captured.host, *n),
            });
        }
    }
}

/// What stands behind a dollar, and the rest of the text.
fn reference<'t>(after: &'t str, allowed: &[Variable], groups: &Groups) -> Result<(Part, &'t str), String> {
    if let Some(digit) = after.chars().next().and_then(|first| first.to_digit(10)) {
        return Ok((groups.path_group(digit as usize)?, &after[1..]));
    }
    let inner = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
    let Some((name, rest)) = inner else {
        return Err("a $ that begins neither a group nor a variable; write $$ for a dollar".to_owned());
    };
    if let Ok(number) = name.parse::<usize>() {
        return Ok((groups.path_group(number)?, rest));
    }
    // A variable's name is never a group's: a template means the same whatever the pattern.
    if let Some((_, variable)) = Variable::ALL.iter().find(|(known, _)| *known == name) {
        return match allowed.contains(variable) {
            true => Ok((Part::Variable(*variable), rest)),
            false => Err(format!("${{{name}}} is not known here; use one of {}", names(allowed))),
        };
    }
    match groups.find(name) {
        Some(part) => Ok((part, rest)),
        None => Err(format!("there is no variable or group \"{name}\"; use one of {}", names(allowed))),
    }
}

fn names(variables: &[Variable]) -> String {
    variables.iter().map(|variable| variable.name()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::pattern::compile;
    use super::*;

    fn groups() -> Groups {
        let path = compile("/v(?P<version>[0-9]+)/([a-z]+)(/x)?").expect("a pattern");
        let host = compile("(?P<tenant>[a-z]+)\\.example").expect("a pattern");
        Groups::new(Some(path), Some(host))
    }

    fn expanded(text: &str) -> Result<String, String> {
        let groups = groups();
        let template = Template::new(text, IN_REQUEST, &groups)?;
        let values = Values { client: b"192.0.2.1", path: b"/v2/abc", ..Values::default() };
        let mut out = Vec::new();
        template.expand(&values, &groups, (b"/v2/abc", b"shop.example"), &mut out);
        Ok(String::from_utf8(out).expect("text"))
    }

    #[test]
    fn variables_groups_and_dollars() {
        let ok = |text: &str| Ok(text.to_owned());
        assert_eq!(expanded(""), ok(""));
        assert_eq!(expanded("plain"), ok("plain"));
        assert_eq!(expanded("${client}, $$5"), ok("192.0.2.1, $5"));
        assert_eq!(expanded("/$2/${1}/${version}$0"), ok("/abc/2/2/v2/abc"));
        assert_eq!(expanded("${tenant}[$3]"), ok("shop[]"));
    }

    #[test]
    fn what_is_refused() {
        let refused = |text: &str| expanded(text).expect_err("it must be refused");
        assert!(refused("5$").contains("$$"));
        assert!(refused("${client").contains("$$"));
        assert_eq!(refused("$4"), "path_regex has no group 4");
        assert!(refused("${nobody}").starts_with("there is no variable or group \"nobody\""));
        assert!(refused("${status}").contains("not known here; use one of client, request_id"));
        let none = Template::new("$1", IN_REQUEST, &Groups::default()).expect_err("no pattern");
        assert_eq!(none, "$1 is a group of path_regex, which is not given");
    }
}
