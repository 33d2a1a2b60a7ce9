//! What callers can ask for.

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use underpass_command::api::{
    ErrorBody, RedirectChange, RedirectStatus, Status, SteeringChange, SteeringStatus,
};

use super::audit::Audit;
use super::body::Small;
use super::caller::Caller;
use crate::control::commands::{Failure, Handle};

/// What every request is served with.
#[derive(Clone, Debug)]
struct Context {
    handle: Handle,
    audit: Audit,
}

/// The paths of the API.
pub(super) fn router(handle: Handle, audit: Audit) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/redirect", get(redirect).put(set_redirect))
        .route("/v1/steering", get(steering).put(set_steering))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Context { handle, audit })
}

type Answer<T> = Result<Json<T>, Failure>;

async fn status(State(context): State<Context>) -> Answer<Status> {
    Ok(Json(context.handle.status().await?))
}

async fn redirect(State(context): State<Context>) -> Answer<RedirectStatus> {
    Ok(Json(context.handle.status().await?.redirect))
}

async fn set_redirect(
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

async fn steering(State(context): State<Context>) -> Answer<SteeringStatus> {
    Ok(Json(context.handle.status().await?.steering))
}

async fn set_steering(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    Small(change): Small<SteeringChange>,
) -> Answer<SteeringStatus> {
    let result = context.handle.set_steering(change).await;
    context.audit.note(
        caller,
        &format!("steering policy to {}", change.policy),
        result.as_ref().map(|_| None),
    );
    Ok(Json(result?))
}

async fn not_found() -> Failure {
    Failure::new(404, "there is no such path", "use /v1/status, /v1/redirect or /v1/steering")
}

async fn wrong_method() -> Failure {
    Failure::new(
        405,
        "this path does not take the method",
        "use GET to read, PUT to change what can be changed",
    )
}

/// For callers that are not on the allow-list, whatever they ask for.
pub(super) async fn forbidden() -> Failure {
    Failure::new(
        403,
        "the admin API is not for this user",
        "call it as root, as the user who started the proxy, or as one of settings.admin_uids",
    )
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json::<ErrorBody>(self.body)).into_response()
    }
}
