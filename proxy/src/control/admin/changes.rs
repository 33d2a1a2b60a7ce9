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
    let known = condition(&headers, &IF_NONE_MATCH)?;
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
    let if_revision = match condition(&headers, &IF_MATCH)? {
        Some(Condition::Revision(revision)) => Some(revision),
        // There always is a configuration.
        Some(Condition::Any) | None => None,
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
}

impl Condition {
    fn meets(self, revision: u64) -> bool {
        match self {
            Self::Any => true,
            Self::Revision(wanted) => wanted == revision,
        }
    }
}

/// RFC 9110 sections 13.1.1 and 13.1.2, for one entity tag: a list of revisions would have no use.
fn condition(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Condition>, Failure> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    let wrong = || {
        Failure::new(
            400,
            format!("{name}: {text}: not a revision"),
            "write a revision in quotes, as \"7\", or *",
        )
    };
    if values.next().is_some() {
        return Err(wrong());
    }
    match text {
        "*" => return Ok(Some(Condition::Any)),
        // RFC 9110 section 5.6.1.2: a list may be empty, and then has no tag that matches. Revisions count from 1.
        "" => return Ok(Some(Condition::Revision(0))),
        _ => {}
    }
    let number = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    // A sign would make another text of the same number.
    let digits = number.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let revision = digits.and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?;
    Ok(Some(Condition::Revision(revision)))
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

    fn parsed(values: &[&str]) -> Result<Option<Condition>, u16> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IF_MATCH, HeaderValue::from_str(value).expect("a value"));
        }
        condition(&headers, &IF_MATCH).map_err(|failure| failure.status)
    }

    #[test]
    fn a_condition_is_a_revision_in_quotes() {
        assert_eq!(parsed(&[]), Ok(None));
        assert_eq!(parsed(&["\"7\""]), Ok(Some(Condition::Revision(7))));
        assert_eq!(parsed(&["*"]), Ok(Some(Condition::Any)));
        assert_eq!(parsed(&[""]), Ok(Some(Condition::Revision(0))), "no revision is meant");
        for wrong in ["7", "\"\"", "\"x\"", "\"+7\"", "W/\"7\"", "\"7\", \"8\"", "\"99999999999999999999\""] {
            assert_eq!(parsed(&[wrong]), Err(400), "{wrong}");
        }
        assert_eq!(parsed(&["\"7\"", "\"8\""]), Err(400));
    }

    #[test]
    fn a_long_change_is_described_in_short() {
        let operations = vec![Operation::RemoveCluster { name: "a".into() }; 25];
        let text = describe(&ChangeRequest { operations, ..ChangeRequest::default() });
        assert!(text.starts_with("change of 25 operations: remove_cluster \"a\", "), "{text}");
        assert!(text.ends_with(", and 5 more"), "{text}");
    }
}
