//! What callers can ask for.

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, FromRequestParts, Path, Query, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, ETAG};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use underpass_command::api::{
    BackendEntry, Draining, ErrorBody, Page, RedirectChange, RedirectStatus, Select, SessionSelect, Sessions,
    Status, SteeringChange, SteeringStatus, TOP_SIZE_MAX, Top, TopSelect, WorkerDrain, WorkerDraining,
    WorkerStatus,
};
use underpass_command::live::{ClusterEntry, Configuration};
use underpass_command::state::{self, Cluster, Listener, Route};

use super::audit::Audit;
use super::body::{Small, SmallOrNone, Turns};
use super::caller::Caller;
use super::connections::Deadline;
use super::endpoints::{ENDPOINTS, document};
use super::lists;
use super::stream::{self, Streams};
use crate::control::commands::{Failure, Handle};
use crate::metrics::Format;

/// What every request is served with.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) handle: Handle,
    pub(super) audit: Audit,
    streams: Streams,
}

/// The paths of the API: those of the table of endpoints, and nothing else.
pub(super) fn router(handle: Handle, audit: Audit) -> Router {
    let router = ENDPOINTS
        .iter()
        .fold(Router::new(), |router, endpoint| router.route(endpoint.path, (endpoint.handler)()));
    router
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(Extension(Turns::default()))
        .with_state(Context { handle, audit, streams: Streams::default() })
}

pub(super) type Answer<T> = Result<Json<T>, Failure>;

pub(super) async fn status(State(context): State<Context>) -> Answer<Status> {
    Ok(Json(context.handle.status().await?))
}

pub(super) async fn workers(State(context): State<Context>) -> Answer<Vec<WorkerStatus>> {
    Ok(Json(context.handle.status().await?.workers))
}

pub(super) async fn drain_worker(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    number: Result<Path<u16>, PathRejection>,
    SmallOrNone(order): SmallOrNone<WorkerDrain>,
) -> Answer<WorkerDraining> {
    let Path(worker) = number.map_err(|rejection| {
        Failure::new(400, rejection.body_text(), "GET /v1/workers lists the numbers of the workers")
    })?;
    let result = context.handle.drain_worker(worker, order).await;
    context.audit.note(caller, &format!("drain of worker {worker}"), result.as_ref().map(|_| None));
    Ok(Json(result?))
}

pub(super) async fn redirect(State(context): State<Context>) -> Answer<RedirectStatus> {
    Ok(Json(context.handle.status().await?.redirect))
}

pub(super) async fn set_redirect(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    Small(change): Small<RedirectChange>,
) -> Answer<RedirectStatus> {
    let mode = change.mode.map_or("inherited", |mode| mode.name());
    let action = format!("redirect mode of {} to {mode}", change.scope);
    let result = context.handle.set_redirect(change).await;
    context.audit.note(caller, &action, result.as_ref().map(|_| None));
    Ok(Json(result?))
}

pub(super) async fn steering(State(context): State<Context>) -> Answer<SteeringStatus> {
    Ok(Json(context.handle.status().await?.steering))
}

pub(super) async fn set_steering(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    Small(change): Small<SteeringChange>,
) -> Answer<SteeringStatus> {
    let result = context.handle.set_steering(change).await;
    let action = format!("steering policy to {}", change.policy);
    context.audit.note(caller, &action, result.as_ref().map(|_| None));
    Ok(Json(result?))
}

pub(super) async fn listeners(context: State<Context>, select: Parameters<Select>) -> Answer<Page<Listener>> {
    list(context, select, lists::listeners).await
}

pub(super) async fn clusters(context: State<Context>, select: Parameters<Select>) -> Answer<Page<Cluster>> {
    list(context, select, lists::clusters).await
}

pub(super) async fn backends(
    State(context): State<Context>,
    Parameters(select): Parameters<Select>,
) -> Answer<Page<BackendEntry>> {
    Ok(Json(context.handle.backends(select).await?))
}

pub(super) async fn routes(context: State<Context>, select: Parameters<Select>) -> Answer<Page<Route>> {
    list(context, select, lists::routes).await
}

pub(super) async fn answers(
    context: State<Context>,
    select: Parameters<Select>,
) -> Answer<Page<state::Answer>> {
    list(context, select, lists::answers).await
}

async fn list<T: Send + 'static>(
    State(context): State<Context>,
    Parameters(select): Parameters<Select>,
    list: fn(&Configuration, &Select) -> Result<Page<T>, Failure>,
) -> Answer<Page<T>> {
    let page = context.handle.read(move |configuration| list(configuration, &select)).await?;
    Ok(Json(page?))
}

pub(super) async fn cluster(
    State(context): State<Context>,
    name: Result<Path<String>, PathRejection>,
) -> Answer<Cluster> {
    let Path(name) = name.map_err(|rejection| {
        Failure::new(400, rejection.body_text(), "escape the name as RFC 3986 section 2.1 says")
    })?;
    let wanted = name.clone();
    let find =
        move |configuration: &Configuration| configuration.clusters().get(&wanted).map(ClusterEntry::whole);
    context.handle.read(find).await?.map(Json).ok_or_else(|| {
        Failure::new(404, format!("there is no cluster \"{name}\""), "GET /v1/clusters lists all of them")
    })
}

pub(super) async fn events(
    State(context): State<Context>,
    Extension(deadline): Extension<Deadline>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    stream::respond(&context.handle, &context.streams, &deadline, &headers)
}

pub(super) async fn drain(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
) -> Answer<Draining> {
    let deadline = |configuration: &Configuration| configuration.settings().timeouts.drain_ms;
    let deadline_ms = context.handle.read(deadline).await?;
    context.handle.drain().await;
    context.audit.note(caller, "drain", Ok(None));
    Ok(Json(Draining { deadline_ms }))
}

pub(super) async fn metrics(State(context): State<Context>, headers: HeaderMap) -> Result<Response, Failure> {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted_by(accept);
    let text = context.handle.metrics(format).await?;
    Ok(([(CONTENT_TYPE, format.content_type())], text).into_response())
}

pub(super) async fn top(
    State(context): State<Context>,
    Parameters(select): Parameters<TopSelect>,
) -> Answer<Top> {
    let limit = select.limit;
    if !(1..=TOP_SIZE_MAX).contains(&limit) {
        let text = format!("limit={limit}: not from 1 to {TOP_SIZE_MAX}");
        return Err(Failure::new(400, text, "ask for the busiest; /v1/metrics has all"));
    }
    Ok(Json(context.handle.top(limit as usize).await?))
}

pub(super) async fn sessions(
    State(context): State<Context>,
    Parameters(select): Parameters<SessionSelect>,
) -> Answer<Sessions> {
    Ok(Json(context.handle.sessions(select).await?))
}

pub(super) async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], document()).into_response()
}

async fn not_found() -> Failure {
    let mut paths: Vec<&str> = ENDPOINTS.iter().map(|endpoint| endpoint.path).collect();
    // A path of several methods is there several times, one after the other.
    paths.dedup();
    Failure::new(404, "there is no such path", format!("use one of: {}", paths.join(", ")))
}

async fn wrong_method() -> Failure {
    let remedy = "the field Allow names those that it takes; use GET to read, PUT or POST to change";
    Failure::new(405, "this path does not take the method", remedy)
}

/// For callers that are not on the allow-list, whatever they ask for.
pub(super) async fn forbidden() -> Failure {
    Failure::new(
        403,
        "the admin API is not for this user",
        "call it as root, as the user who started the proxy, or as one of settings.admin_uids",
    )
}

/// The query of a request.
pub(super) struct Parameters<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let query = Query::<T>::try_from_uri(&parts.uri).map_err(|rejection| {
            Failure::new(400, rejection.body_text(), "GET /v1/openapi.json describes every parameter")
        })?;
        Ok(Self(query.0))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // RFC 9110 section 13.1.1: who lost the race learns what the revision is now.
        let tag = self.body.revision.map(|revision| [(ETAG, format!("\"{revision}\""))]);
        (status, tag, Json::<ErrorBody>(self.body)).into_response()
    }
}
