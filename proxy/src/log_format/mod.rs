//! Lines of the access log as operators want them: what is known of a request, by name, and templates of that.
//!
//! Names stand behind a dollar as in nginx, because that is the syntax that most who write a log format know. No value that a
//! client has chosen can end its line, its quotes, or, outside of quotes, its word: see [`Escape`].
#![deny(clippy::disallowed_methods)]

mod escape;
mod field;
mod template;

pub(crate) use escape::{Escape, write_escaped};
pub(crate) use field::{FIELDS, Field};
pub(crate) use template::{HEADER_SIZE_MAX, LINE_SIZE_MAX, Template, TemplateError, Value, Values};

/// The format `combined`, as Apache and nginx write it.
pub(crate) const COMBINED: &str =
    r#"$client - $user [$time_local] "$request" $status $bytes "$http_referer" "$http_user_agent""#;

#[cfg(test)]
mod tests;
