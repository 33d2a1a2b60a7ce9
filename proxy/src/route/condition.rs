//! What routes for the same host and path differ in: methods and header fields.

use std::cmp::Reverse;

use regex::bytes::Regex;
use underpass_command::state::{HeaderMatch, RouteKey, ValueMatch};

use super::{Asked, pattern};

/// The conditions of a route that has some.
#[derive(Debug)]
pub(super) struct Conditions {
    methods: Vec<String>,
    headers: Vec<HeaderMatch>,
    /// For each of `headers` whose value is a regular expression.
    patterns: Vec<Option<Regex>>,
}

impl Conditions {
    /// The conditions of a route; none where it has none.
    pub(super) fn new(key: &RouteKey) -> Result<Option<Box<Self>>, String> {
        if key.methods.is_empty() && key.headers.is_empty() {
            return Ok(None);
        }
        let compiled = |header: &HeaderMatch| match &header.value {
            ValueMatch::Regex(text) => pattern::compile(text).map(Some),
            ValueMatch::Any | ValueMatch::Exact(_) => Ok(None),
        };
        let patterns = key.headers.iter().map(compiled).collect::<Result<_, _>>()?;
        let (methods, headers) = (key.methods.clone(), key.headers.clone());
        Ok(Some(Box::new(Self { methods, headers, patterns })))
    }

    /// Whether these are the conditions of a route.
    pub(super) fn are_of(conditions: Option<&Self>, key: &RouteKey) -> bool {
        match conditions {
            None => key.methods.is_empty() && key.headers.is_empty(),
            Some(own) => own.methods == key.methods && own.headers == key.headers,
        }
    }

    /// What their order among others is: the smaller is tried first. Nothing at all comes last.
    pub(super) fn rank(conditions: Option<&Self>) -> impl Ord + '_ {
        let (headers, methods) =
            conditions.map_or((&[][..], &[][..]), |own| (own.headers.as_slice(), own.methods.as_slice()));
        // An empty list of methods takes them all.
        let count = if methods.is_empty() { usize::MAX } else { methods.len() };
        (Reverse(headers.len()), count, headers, methods)
    }

    /// Whether a request meets them.
    pub(super) fn hold(&self, asked: &Asked<'_>) -> bool {
        let method =
            self.methods.is_empty() || self.methods.iter().any(|method| method.as_bytes() == asked.method);
        method && self.hold_but_method(asked)
    }

    /// Whether a request meets those of header fields.
    pub(super) fn hold_but_method(&self, asked: &Asked<'_>) -> bool {
        self.headers.iter().zip(&self.patterns).all(|(header, pattern)| meets(header, pattern, asked))
    }

    /// The methods, of which a request must have one; none for any.
    pub(super) fn methods(&self) -> &[String] {
        &self.methods
    }
}

fn meets(header: &HeaderMatch, pattern: &Option<Regex>, asked: &Asked<'_>) -> bool {
    let found = asked.fields.list().iter().any(|field| {
        field.name.of(asked.bytes).eq_ignore_ascii_case(header.name.as_bytes()) && {
            let value = field.value.of(asked.bytes);
            match (&header.value, pattern) {
                (ValueMatch::Exact(exact), _) => value == exact.as_bytes(),
                (_, Some(pattern)) => pattern.is_match(value),
                (_, None) => true,
            }
        }
    });
    found != header.not
}
