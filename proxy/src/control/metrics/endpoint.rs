//! The address that Prometheus reads from: `GET /metrics` over HTTP, and nothing else.
//!
//! Whoever reaches it can make the supervisor read its counters, so that is bounded: few connections, one text in the
//! making at a time, and an end to each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::control::commands::{Failure, Handle};
use crate::metrics::Format;

/// Connections served at a time; more wait in the socket's queue.
const CONNECTIONS_MAX: usize = 8;
/// For the head of a request to come.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest head in bytes.
const HEAD_SIZE_MAX: usize = 16 * 1024;
/// For the whole connection, which is one request and its answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Between attempts to accept while the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The endpoint, open or not.
#[derive(Debug)]
pub(in crate::control) struct Server {
    address: Option<SocketAddr>,
    listener: Option<TcpListener>,
}

impl Server {
    /// Opens the address; without one there is no endpoint.
    pub(in crate::control) fn bind(address: Option<SocketAddr>) -> io::Result<Self> {
        let Some(address) = address else { return Ok(Self { address: None, listener: None }) };
        let socket = std::net::TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        tracing::info!("metrics: http://{address}/metrics");
        Ok(Self { address: Some(address), listener: Some(TcpListener::from_std(socket)?) })
    }

    /// Where it listens; where port 0 was configured, with the port that the kernel chose.
    pub(in crate::control) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Serves callers from now on, as long as the process runs.
    pub(in crate::control) fn serve(&mut self, handle: Handle) {
        if let Some(listener) = self.listener.take() {
            tokio::spawn(accept(listener, router(handle)));
        }
    }
}

async fn accept(listener: TcpListener, router: Router) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    serve(stream, router).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!("metrics: a caller cannot be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, router: Router) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_SIZE_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("metrics: connection failed: {error}"),
        Err(_) => {
            tracing::warn!("metrics: caller cut, not done within {} s", CONNECTION_TIMEOUT.as_secs());
        }
    }
}

fn router(handle: Handle) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is only /metrics\n") })
        .method_not_allowed_fallback(|| async { (StatusCode::METHOD_NOT_ALLOWED, "use GET\n") })
        .with_state(handle)
}

async fn metrics(State(handle): State<Handle>, headers: HeaderMap) -> Result<Response, Failure> {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted_by(accept);
    let text = handle.metrics(format).await?;
    Ok(([(CONTENT_TYPE, format.content_type())], text).into_response())
}
