//! A scripted backend: what a connection does is a function of the test.

use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use crate::message::Message;
use crate::peer::Peer;

/// A server on a port of its own; each connection has its own thread.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stopping: AtomicBool,
    connections: AtomicUsize,
    requests: Mutex<Vec<Message>>,
    /// To end the connections when the test is over, and to know what became of their threads.
    open: Mutex<Vec<(Weak<TcpStream>, JoinHandle<()>)>>,
}

/// One connection as its script sees it.
#[derive(Debug)]
pub struct Connection {
    /// The connection.
    pub peer: Peer,
    /// How many were accepted before.
    pub number: usize,
    shared: Arc<Shared>,
}

impl Connection {
    /// Reads the next request and keeps a copy for [`Backend::requests`]; none when the proxy has closed.
    #[track_caller]
    pub fn request(&mut self) -> Option<Message> {
        let request = self.request_without_copy()?;
        lock(&self.shared.requests).push(request.clone());
        Some(request)
    }

    /// Reads the next request; none when the proxy has closed. For many requests, or large ones.
    #[track_caller]
    pub fn request_without_copy(&mut self) -> Option<Message> {
        match self.peer.try_request() {
            Ok(request) => request,
            // The test is over: its end is the script's end.
            Err(_) if self.shared.stopping.load(Ordering::SeqCst) => None,
            Err(error) => panic!("backend: reading a request: {error}"),
        }
    }

    /// Answers every request with these bytes until the proxy closes.
    #[track_caller]
    pub fn answer_all(&mut self, response: impl AsRef<[u8]>) {
        while self.request().is_some() {
            self.peer.send(&response);
        }
    }
}

impl Backend {
    /// Starts one that plays the script on each connection. The connection closes when the script returns.
    #[track_caller]
    pub fn start(script: impl Fn(&mut Connection) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        Self::on(listener, script)
    }

    /// Starts one on a listener that is there.
    #[track_caller]
    pub fn on(listener: TcpListener, script: impl Fn(&mut Connection) + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().expect("the address of a bound socket");
        let shared = Arc::new(Shared::default());
        let script = Arc::new(script);
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept_all(&listener, &shared, &script)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// Starts one that answers every request with these bytes and keeps the connection.
    #[track_caller]
    pub fn answering(response: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self::start(move |connection| connection.answer_all(&response))
    }

    /// Starts one that reads a request, waits until it may answer, and answers with these bytes. Each value sent lets one answer
    /// go; when the sender is dropped, connections end without an answer.
    #[track_caller]
    pub fn holding(response: impl AsRef<[u8]> + Send + Sync + 'static) -> (Self, Sender<()>) {
        let (permit, permits) = mpsc::channel();
        let permits = Mutex::new(permits);
        let backend = Self::start(move |connection| {
            while connection.request().is_some() && lock(&permits).recv().is_ok() {
                connection.peer.send(&response);
            }
        });
        (backend, permit)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections came so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// The requests that scripts have read so far, in the order of their ends.
    pub fn requests(&self) -> Vec<Message> {
        lock(&self.shared.requests).clone()
    }

    /// Asserts that nobody connected.
    #[track_caller]
    pub fn expect_untouched(&self) {
        assert_eq!(self.connections(), 0, "connections to a backend that nothing should reach");
    }

    /// Ends all connections and fails if a script did.
    #[track_caller]
    fn stop(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.shared.stopping.store(true, Ordering::SeqCst);
        // The acceptor sleeps in accept; this connection wakes it.
        drop(TcpStream::connect(self.address));
        let mut failed = acceptor.join().is_err();
        for (stream, script) in std::mem::take(&mut *lock(&self.shared.open)) {
            if let Some(stream) = stream.upgrade() {
                // Fails where the connection has ended already.
                let _ = stream.shutdown(Shutdown::Both);
            }
            failed |= script.join().is_err();
        }
        assert!(!failed || thread::panicking(), "a backend's script failed; see its message above");
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept_all<S>(listener: &TcpListener, shared: &Arc<Shared>, script: &Arc<S>)
where
    S: Fn(&mut Connection) + Send + Sync + 'static,
{
    loop {
        let (stream, _) = listener.accept().expect("accepting a connection");
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        let mut connection = Connection { peer: Peer::over(stream), number, shared: Arc::clone(shared) };
        let handle = connection.peer.handle();
        let script = Arc::clone(script);
        let script = thread::spawn(move || script(&mut connection));
        lock(&shared.open).push((handle, script));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
