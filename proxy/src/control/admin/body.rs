//! Bodies of requests: JSON, bounded for each path, read within a time.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::control::commands::Failure;

/// Of a body that says something about one thing.
pub(super) const SMALL_SIZE_MAX: usize = 64 * 1024;
/// For a body to come as a whole.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A body of JSON, of at most [`SMALL_SIZE_MAX`].
pub(super) struct Small<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Small<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let bytes = read(request, SMALL_SIZE_MAX).await?;
        parse(&bytes).map(Self)
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
        Failure::new(400, format!("the body is not understood: {error}"), remedy)
    })
}
