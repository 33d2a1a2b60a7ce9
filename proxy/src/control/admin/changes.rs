//! The configuration as a whole: read, changed, read again from its file, saved.

use std::fmt::Display;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::header::{CONTENT_TYPE, ETAG, HeaderName, IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use underpass_command::api::{ChangeRequest, Changed, Saved};
use underpass_command::live::Configuration;

use super::body::Large;
use super::caller::Caller;
use super::routes::{Answer, Context, Parameters};
use crate::control::commands::Failure;

/// Operations that the audit log names one by one.
const OPERATIONS_NAMED: usize = 20;

/// The query of what can be tried without doing it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Trial {
    dry_run: bool,
}

pub(super) async fn state(State(context): State<Context>, headers: HeaderMap) -> Result<Response, Failure> {
    let known = condition(&headers, &IF_NONE_MATCH);
    let revision = context.handle.read(Configuration::revision).await?;
    if known.is_some_and(|known| known.meets(revision)) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag(revision))]).into_response());
    }
    let document = context.handle.state().await?;
    let fields = [(ETAG, tag(document.revision))];
    // It may be large: other callers and the workers' messages do not wait for it.
    let json = tokio::task::spawn_blocking(move || serde_json::to_vec(&document)).await;
    match json {
        Ok(Ok(json)) => Ok((fields, [(CONTENT_TYPE, "application/json")], Body::from(json)).into_response()),
        Ok(Err(error)) => Err(unwritable(&error)),
        Err(error) => Err(unwritable(&error)),
    }
}

pub(super) async fn change(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    Parameters(trial): Parameters<Trial>,
    headers: HeaderMap,
    Large(body): Large<ChangeRequest>,
) -> Result<Response, Failure> {
    let if_revision = match condition(&headers, &IF_MATCH) {
        Some(Condition::Revision(revision)) => Some(revision),
        // There always is a configuration.
        Some(Condition::Any) | None => None,
        Some(Condition::Never) => return Err(never(&context).await?),
    };
    let request = ChangeRequest { if_revision, dry_run: trial.dry_run, ..body };
    let action = describe(&request);
    let result = context.handle.change(request).await;
    if !trial.dry_run {
        context.audit.note(caller, &action, result.as_ref().map(|changed| Some(changed.revision)));
    }
    let changed = result?;
    Ok(([(ETAG, tag(changed.revision))], Json(changed)).into_response())
}

pub(super) async fn reload(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    Parameters(trial): Parameters<Trial>,
) -> Answer<Changed> {
    let result = context.handle.reload(trial.dry_run).await;
    if !trial.dry_run {
        context.audit.note(caller, "reload", result.as_ref().map(|changed| Some(changed.revision)));
    }
    Ok(Json(result?))
}

pub(super) async fn save(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
) -> Answer<Saved> {
    let result = context.handle.save().await;
    context.audit.note(caller, "save", result.as_ref().map(|saved| Some(saved.revision)));
    Ok(Json(result?))
}

/// The value of `If-Match` or `If-None-Match`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Any,
    Revision(u64),
    /// A tag that no configuration ever has.
    Never,
}

impl Condition {
    fn meets(self, revision: u64) -> bool {
        match self {
            Self::Any => true,
            Self::Revision(wanted) => wanted == revision,
            Self::Never => false,
        }
    }
}

/// RFC 9110 sections 13.1.1 and 13.1.2, for one entity tag: a list of revisions would have no use. Tags are opaque, so one
/// that is no revision is no error, it just never matches. The quotes may be left out.
fn condition(headers: &HeaderMap, name: &HeaderName) -> Option<Condition> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Some(Condition::Any);
    }
    let quoted = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    // A sign would make another text of the same number.
    let digits = Some(quoted).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let revision = digits.and_then(|digits| digits.parse().ok()).filter(|_| values.next().is_none());
    Some(revision.map_or(Condition::Never, Condition::Revision))
}

/// The answer to a change for something that is no revision.
async fn never(context: &Context) -> Result<Failure, Failure> {
    let revision = context.handle.read(Configuration::revision).await?;
    let mut failure = Failure::new(
        412,
        format!("If-Match: this is no revision; the configuration has revision {revision}"),
        "write the revision that is meant in quotes",
    );
    failure.body.revision = Some(revision);
    Ok(failure)
}

fn tag(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// A change for the audit log.
fn describe(request: &ChangeRequest) -> String {
    let count = request.operations.len();
    let mut named: Vec<String> =
        request.operations.iter().take(OPERATIONS_NAMED).map(ToString::to_string).collect();
    if count > OPERATIONS_NAMED {
        named.push(format!("and {} more", count - OPERATIONS_NAMED));
    }
    format!("change of {count} operations: {}", named.join(", "))
}

fn unwritable(error: &dyn Display) -> Failure {
    Failure::new(500, format!("the document cannot be written: {error}"), "report it as a bug")
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use underpass_command::live::Operation;

    use super::*;

    fn parsed(values: &[&str]) -> Option<Condition> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IF_MATCH, HeaderValue::from_str(value).expect("a value"));
        }
        condition(&headers, &IF_MATCH)
    }

    #[test]
    fn a_condition_is_a_revision() {
        assert_eq!(parsed(&[]), None);
        assert_eq!(parsed(&["\"7\""]), Some(Condition::Revision(7)));
        assert_eq!(parsed(&["7"]), Some(Condition::Revision(7)));
        assert_eq!(parsed(&["*"]), Some(Condition::Any));
        for other in ["", "\"\"", "\"x\"", "\"+7\"", "W/\"7\"", "\"7\", \"8\"", "\"99999999999999999999\""] {
            assert_eq!(parsed(&[other]), Some(Condition::Never), "{other}");
        }
        assert_eq!(parsed(&["\"7\"", "\"8\""]), Some(Condition::Never));
    }

    #[test]
    fn a_long_change_is_described_in_short() {
        let operations = vec![Operation::RemoveCluster { name: "a".into() }; 25];
        let text = describe(&ChangeRequest { operations, ..ChangeRequest::default() });
        assert!(text.starts_with("change of 25 operations: remove_cluster \"a\", "), "{text}");
        assert!(text.ends_with(", and 5 more"), "{text}");
    }
}
