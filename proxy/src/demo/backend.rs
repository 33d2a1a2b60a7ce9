//! Two small HTTP servers for the demo, together on one thread.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, oneshot};

/// Byte `i` of a body of `/size/N` is `i` modulo this, which no power of two divides: a shifted block does not match.
pub(super) const PERIOD: usize = 251;
/// The largest body on demand.
const SIZE_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// Connections of one backend.
const CONNECTIONS_MAX: usize = 4096;
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The servers; they end when this is dropped.
pub(super) struct Backends {
    addresses: Vec<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Backends {
    /// Starts a server for each name, on ports that the kernel chooses.
    pub(super) fn start(names: &[&'static str]) -> io::Result<Self> {
        let mut addresses = Vec::new();
        let mut listeners = Vec::new();
        for name in names {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            addresses.push(listener.local_addr()?);
            listeners.push((*name, listener));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let pattern = pattern();
        let thread = std::thread::Builder::new().name("demo-backends".into()).spawn(move || {
            runtime.block_on(async {
                for (name, listener) in listeners {
                    tokio::spawn(serve(name, listener, pattern.clone()));
                }
                // Told to end, or forgotten: the same.
                let _ = stopped.await;
            });
        })?;
        Ok(Self { addresses, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic has ended the process before.
            let _ = thread.join();
        }
    }
}

/// Two periods more than a block, so that a block can begin at any place of the period.
fn pattern() -> Bytes {
    (0..64 * 1024 + 2 * PERIOD)
        .map(|index| u8::try_from(index % PERIOD).unwrap_or(0))
        .collect::<Vec<u8>>()
        .into()
}

async fn serve(name: &'static str, listener: TcpListener, pattern: Bytes) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("backend {name} of the demo: {error}"),
    };
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("backend {name} of the demo: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("backend {name} of the demo: TCP_NODELAY: {error}");
        }
        let pattern = pattern.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(name, request, &pattern);
                async { Ok::<_, Infallible>(answer) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!("backend {name} of the demo: {error}");
            }
            drop(slot);
        });
    }
}

type AnswerBody = Either<Either<Full<Bytes>, Pattern>, Incoming>;

fn answer(name: &str, request: Request<Incoming>, pattern: &Bytes) -> Response<AnswerBody> {
    let path = request.uri().path();
    if path == "/" {
        return text(StatusCode::OK, format!("Hello from the {name} backend.\n"));
    }
    if path == "/echo" {
        return Response::new(Either::Right(request.into_body()));
    }
    if let Some(size) = path.strip_prefix("/size/") {
        return match size.parse::<u64>() {
            Ok(size) if size <= SIZE_MAX => {
                let body = Pattern { block: pattern.clone(), sent: 0, left: size };
                Response::new(Either::Left(Either::Right(body)))
            }
            _ => {
                text(StatusCode::BAD_REQUEST, format!("/size/N takes a number of bytes up to {SIZE_MAX}.\n"))
            }
        };
    }
    text(StatusCode::NOT_FOUND, "There are /, /size/N and /echo.\n".into())
}

fn text(status: StatusCode, text: String) -> Response<AnswerBody> {
    let mut response = Response::new(Either::Left(Either::Left(Full::new(Bytes::from(text)))));
    *response.status_mut() = status;
    let plain = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, plain);
    response
}

/// A body of known length whose bytes can be checked; made of slices of one block.
struct Pattern {
    block: Bytes,
    sent: u64,
    left: u64,
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let begin = usize::try_from(self.sent % PERIOD as u64).unwrap_or(0);
        let room = self.block.len() - begin;
        let length = usize::try_from(self.left).unwrap_or(room).min(room);
        if length == 0 {
            return Poll::Ready(None);
        }
        self.sent += length as u64;
        self.left -= length as u64;
        let frame = Frame::data(self.block.slice(begin..begin + length));
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    fn exchange(address: SocketAddr, request: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(address).expect("listens");
        stream.write_all(request.as_bytes()).expect("taken");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("answered");
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        (String::from_utf8_lossy(&answer[..end]).into_owned(), answer[end..].to_vec())
    }

    fn get(address: SocketAddr, path: &str) -> (String, Vec<u8>) {
        exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n"))
    }

    #[test]
    fn the_backends_answer_as_documented() {
        let backends = Backends::start(&["one", "two"]).expect("loopback");
        let [one, two] = backends.addresses() else { panic!("two addresses") };
        assert!(get(*one, "/").1.starts_with(b"Hello from the one"));
        assert!(get(*two, "/").1.starts_with(b"Hello from the two"));
        let (head, body) = get(*one, "/size/1000000");
        assert!(head.contains("content-length: 1000000"), "{head}");
        assert_eq!(body.len(), 1_000_000);
        assert!(body.iter().enumerate().all(|(index, byte)| usize::from(*byte) == index % PERIOD));
        assert!(get(*one, "/size/-1").0.starts_with("HTTP/1.1 400"));
        assert!(get(*one, "/other").0.starts_with("HTTP/1.1 404"));
        let request =
            "POST /echo HTTP/1.1\r\nHost: demo\r\nConnection: close\r\nContent-Length: 5\r\n\r\nabcde";
        assert_eq!(exchange(*two, request).1, b"abcde");
    }

    #[test]
    fn an_empty_body_has_length_zero() {
        let backends = Backends::start(&["one"]).expect("loopback");
        let (head, body) = get(backends.addresses()[0], "/size/0");
        assert!(head.contains("content-length: 0") && body.is_empty(), "{head}");
    }
}
