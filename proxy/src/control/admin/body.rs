//! Bodies of requests: JSON, bounded for each path, read within a time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::control::commands::Failure;

/// Of a body that says something about one thing.
pub(super) const SMALL_SIZE_MAX: usize = 64 * 1024;
/// Of a list of operations, or a whole state.
pub(super) const LARGE_SIZE_MAX: usize = 32 * 1024 * 1024;
/// For a body to come as a whole.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What is larger is parsed on another thread, so that workers' messages and other callers do not wait for it.
const PARSE_HERE_MAX: usize = 64 * 1024;
/// Large bodies that are held at a time; more wait for their turn, unread.
const LARGE_BODIES_MAX: usize = 4;

/// A body of JSON, of at most [`SMALL_SIZE_MAX`].
pub(super) struct Small<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Small<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let bytes = read(request, SMALL_SIZE_MAX).await?;
        parse(&bytes).map(Self)
    }
}

/// The same, or no body, which stands for the defaults.
pub(super) struct SmallOrNone<T>(pub(super) T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for SmallOrNone<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let bytes = read(request, SMALL_SIZE_MAX).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        parse(&bytes).map(Self)
    }
}

/// A body of JSON, of at most [`LARGE_SIZE_MAX`].
pub(super) struct Large<T>(pub(super) T);

impl<T, S> FromRequest<S> for Large<T>
where
    T: DeserializeOwned + Send + 'static,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let small = request.body().size_hint().exact().is_some_and(|size| size <= PARSE_HERE_MAX as u64);
        if small {
            return parse(&read(request, SMALL_SIZE_MAX).await?).map(Self);
        }
        let turns = request.extensions().get::<Turns>().cloned().unwrap_or_default();
        let waited = timeout(TIMEOUT, turns.0.acquire_owned()).await;
        // The semaphore is never closed.
        let Ok(Ok(turn)) = waited else {
            return Err(Failure::new(503, "too many large bodies are under way", "try it again later"));
        };
        let bytes = read(request, LARGE_SIZE_MAX).await?;
        let parsed = tokio::task::spawn_blocking(move || parse(&bytes)).await;
        drop(turn);
        parsed.map_err(|_| Failure::new(500, "the body was not parsed to its end", "try it again"))?.map(Self)
    }
}

/// Whose turn it is to send a large body; the same for all connections.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LARGE_BODIES_MAX)))
    }
}

async fn read(request: Request, size_max: usize) -> Result<Bytes, Failure> {
    check_type(&request)?;
    let too_large = || {
        let remedy = format!("send at most {size_max} bytes; several changes in a row are as good as one");
        Failure::new(413, "the body is too large", remedy)
    };
    // Where the head tells, nobody has to wait for what would be thrown away.
    if request.body().size_hint().lower() > size_max as u64 {
        return Err(too_large());
    }
    let body = Limited::new(request.into_body(), size_max);
    match timeout(TIMEOUT, BodyExt::collect(body)).await {
        Err(_) => {
            let text = format!("the body was not whole within {} s", TIMEOUT.as_secs());
            Err(Failure::new(408, text, "send as much as Content-Length says"))
        }
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(Failure::new(400, format!("the body is broken: {error}"), "send it again")),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
    }
}

/// A body that says what it is must be JSON (RFC 9110 section 8.3); one that does not is taken for it.
fn check_type(request: &Request<Body>) -> Result<(), Failure> {
    let Some(value) = request.headers().get(CONTENT_TYPE) else { return Ok(()) };
    let kind = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    // What curl says where it is not told otherwise; no form is ever meant here.
    let known = ["application/json", "application/x-www-form-urlencoded"];
    if known.iter().any(|known| kind.eq_ignore_ascii_case(known)) {
        return Ok(());
    }
    Err(Failure::new(
        415,
        format!("a body of type \"{kind}\""),
        "send JSON, as Content-Type: application/json",
    ))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        let remedy = "send JSON as GET /v1/openapi.json describes it";
        // RFC 9110 section 15.5.21: the syntax is right, what it says cannot be.
        let status = if error.is_data() { 422 } else { 400 };
        Failure::new(status, format!("the body is not understood: {error}"), remedy)
    })
}
