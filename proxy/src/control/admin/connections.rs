//! Connections of callers: accepted while there is room, kept for many requests, cut when they stand still.
//!
//! Each wait has its end: a head comes within [`HEAD_TIMEOUT`], which is also how long a connection may be idle, a body
//! within its own time, an answer is taken without standing still for [`STALL_TIMEOUT`], and all of it is over within
//! [`EXCHANGE_TIMEOUT`]. Only a stream of events lasts, as long as its caller reads it.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};

use super::caller::{AllowList, CONNECTIONS_MAX, Caller, Full, Shares};
use super::routes;
use super::stall::Impatient;

/// From the end of an answer, or from accept, until the head of the next request must be there.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// From the head of a request to the end of its answer.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Without a byte of an answer being read.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests on one connection before it is closed.
const REQUESTS_MAX: u32 = 100_000;
/// The longest head in bytes.
const HEAD_SIZE_MAX: usize = 16 * 1024;
/// Between attempts to accept while the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// What a connection is answered that is not served; the process has its share, so reading its request can wait for ever.
const BUSY_BODY: &str =
    r#"{"error":"too many connections of one caller","remedy":"close some, or send more requests on each"}"#;

/// Accepts callers until the process ends. `router` serves those who are allowed.
pub(super) async fn accept(listener: UnixListener, router: Router, allowed: AllowList) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let shares = Shares::default();
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("admin API: a caller cannot be accepted: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let caller = match Caller::of(&stream) {
            Ok(caller) => caller,
            Err(error) => {
                tracing::warn!("admin API: caller of unknown identity refused: {error}");
                continue;
            }
        };
        let is_allowed = allowed.allows(caller.uid);
        if !is_allowed {
            tracing::warn!("admin API: caller refused: {caller}");
        }
        let share = match shares.take(caller, is_allowed) {
            Ok(share) => share,
            Err(Full::Share(text)) => {
                tracing::warn!("admin API: caller refused: {text}");
                refuse(&stream);
                continue;
            }
            Err(Full::Strangers) => continue,
        };
        let router = match is_allowed {
            true => router.clone().layer(Extension(caller)),
            false => Router::new().fallback(routes::forbidden),
        };
        tokio::spawn(async move {
            serve(stream, router, caller).await;
            drop((share, slot));
        });
    }
}

/// Says why nothing is served here. The socket is new, so there is room for so little.
fn refuse(stream: &UnixStream) {
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\nRetry-After: 1\r\n\
         Connection: close\r\n\r\n{BUSY_BODY}",
        BUSY_BODY.len()
    );
    // Who has gone already does not miss it.
    let _: io::Result<usize> = stream.try_write(answer.as_bytes());
}

/// When a connection is cut; only ever later than before.
#[derive(Clone, Debug)]
pub(super) struct Deadline(Arc<Mutex<Instant>>);

impl Deadline {
    fn after(time: Duration) -> Self {
        Self(Arc::new(Mutex::new(Instant::now() + time)))
    }

    fn extend(&self, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + time;
    }

    /// What is sent from here on has no end.
    pub(super) fn lift(&self) {
        // Ten years: for ever, and no overflow.
        self.extend(Duration::from_secs(10 * 365 * 24 * 3600));
    }

    async fn passed(&self) {
        loop {
            let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

async fn serve(stream: UnixStream, router: Router, caller: Caller) {
    let deadline = Deadline::after(EXCHANGE_TIMEOUT);
    let requests = Arc::new(AtomicU32::new(0));
    let of_each_request = {
        let deadline = deadline.clone();
        move |request: Request, next: Next| {
            deadline.extend(EXCHANGE_TIMEOUT);
            let count = requests.fetch_add(1, Ordering::Relaxed) + 1;
            async move { last_of_many(next.run(request).await, count) }
        }
    };
    let router = router.layer(Extension(deadline.clone())).layer(from_fn(of_each_request));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_SIZE_MAX)
        // A caller may say that it sends no more, and still read its answer.
        .half_close(true)
        .serve_connection(
            TokioIo::new(Impatient::new(stream, STALL_TIMEOUT)),
            TowerToHyperService::new(router),
        );
    tokio::select! {
        result = connection => match result {
            Ok(()) => {}
            Err(error) if error.is_timeout() => tracing::debug!("admin API: no request from {caller}: {error}"),
            Err(error) => tracing::debug!("admin API: connection of {caller} failed: {error}"),
        },
        () = deadline.passed() => {
            tracing::warn!("admin API: caller cut, not done within {} s: {caller}", EXCHANGE_TIMEOUT.as_secs());
        }
    }
}

/// Closes a connection that had its requests.
fn last_of_many(mut response: Response, count: u32) -> Response {
    if count >= REQUESTS_MAX {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
