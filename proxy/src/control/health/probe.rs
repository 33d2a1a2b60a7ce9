//! One check of one backend: how it goes, and why it fails.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use underpass_command::state::{Check, Cluster, SendProxy, StatusRanges};

/// The longest status line that is waited for, in bytes; of it the first twelve tell the status.
const STATUS_LINE_SIZE_MAX: usize = 1024;
/// What is read of the rest of an answer, so that the backend is not told of a reset.
const REST_SIZE_MAX: u64 = 64 * 1024;
/// How long that may take.
const REST_TIMEOUT: Duration = Duration::from_millis(100);

/// How the backends of a cluster are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    check: Check,
    pub(super) interval: Duration,
    timeout: Duration,
    pub(super) rise: u16,
    pub(super) fall: u16,
    path: String,
    host: Option<String>,
    expected: StatusRanges,
    send_proxy: SendProxy,
}

impl Plan {
    /// The plan of a cluster; none if its backends are not checked.
    pub(super) fn of(cluster: &Cluster) -> Option<Self> {
        (cluster.check != Check::Off).then(|| Self {
            check: cluster.check,
            interval: Duration::from_millis(cluster.check_interval_ms),
            timeout: Duration::from_millis(cluster.check_timeout_ms),
            rise: cluster.check_rise,
            fall: cluster.check_fall,
            path: cluster.check_path.clone(),
            host: cluster.check_host.clone(),
            expected: cluster.check_status.clone(),
            send_proxy: cluster.send_proxy,
        })
    }

    /// Checks a backend. The outcome is what was found, in words.
    pub(super) async fn run(&self, address: SocketAddr) -> Result<String, String> {
        match timeout(self.timeout, self.attempt(address)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {} ms", self.timeout.as_millis())),
        }
    }

    async fn attempt(&self, address: SocketAddr) -> Result<String, String> {
        let mut stream =
            TcpStream::connect(address).await.map_err(|error| format!("cannot be connected to: {error}"))?;
        if self.check != Check::Http {
            return Ok("takes connections".to_owned());
        }
        let mut request = self.introduction().to_vec();
        request.extend_from_slice(self.request(address).as_bytes());
        stream.write_all(&request).await.map_err(|error| format!("does not take a request: {error}"))?;
        let status = read_status(&mut stream).await?;
        let mut rest = [0; 4096];
        let mut left = REST_SIZE_MAX;
        let drain = async {
            while left > 0
                && let Ok(count @ 1..) = stream.read(&mut rest).await
            {
                left = left.saturating_sub(count as u64);
            }
        };
        // Whatever becomes of the rest: the status has come.
        let _ = timeout(REST_TIMEOUT, drain).await;
        match self.expected.contains(status) {
            true => Ok(format!("answers with {status}")),
            false => Err(format!("answers with {status}, not one of {}", self.expected)),
        }
    }

    fn request(&self, address: SocketAddr) -> String {
        let mut text = format!("GET {} HTTP/1.1\r\nHost: ", self.path);
        // Writing to a string cannot fail.
        let _ = match &self.host {
            Some(host) => write!(text, "{host}"),
            None => write!(text, "{address}"),
        };
        text.push_str("\r\nUser-Agent: underpass-check\r\nAccept: */*\r\nConnection: close\r\n\r\n");
        text
    }

    /// A PROXY protocol header that tells of no client: the proxy asks for itself. proxy-protocol.txt sections 2.1 (UNKNOWN)
    /// and 2.2 (LOCAL).
    fn introduction(&self) -> &'static [u8] {
        match self.send_proxy {
            SendProxy::Off => b"",
            SendProxy::V1 => b"PROXY UNKNOWN\r\n",
            SendProxy::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00",
        }
    }
}

/// Reads until the status is known.
async fn read_status(stream: &mut TcpStream) -> Result<u16, String> {
    let mut line = Vec::with_capacity(STATUS_LINE_SIZE_MAX);
    loop {
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            return parse_status(&line[..end]).ok_or_else(|| "does not answer in HTTP/1".to_owned());
        }
        if line.len() >= STATUS_LINE_SIZE_MAX {
            return Err("does not answer in HTTP/1".to_owned());
        }
        let mut part = [0; 256];
        match stream.read(&mut part).await {
            Ok(0) if line.is_empty() => return Err("closed the connection without an answer".to_owned()),
            Ok(0) => return Err("closed the connection within its status line".to_owned()),
            Ok(count) => line.extend_from_slice(&part[..count]),
            Err(error) => return Err(format!("broke the connection: {error}")),
        }
    }
}

/// RFC 9112 section 4: `HTTP-version SP status-code SP [ reason-phrase ]`.
fn parse_status(line: &[u8]) -> Option<u16> {
    let rest = line.strip_prefix(b"HTTP/1.0 ").or_else(|| line.strip_prefix(b"HTTP/1.1 "))?;
    let (digits, behind) = rest.split_at_checked(3)?;
    let ends = matches!(behind.first(), None | Some(b' ' | b'\r'));
    let status = std::str::from_utf8(digits).ok()?;
    (ends && digits.iter().all(u8::is_ascii_digit)).then(|| status.parse().ok())?
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn plan(check: Check) -> Plan {
        let cluster = Cluster {
            check,
            check_path: "/ready?deep=1".into(),
            check_timeout_ms: 20_000,
            ..Cluster::new("app")
        };
        Plan::of(&cluster).expect("checks are on")
    }

    /// The outcome of a check of a server that answers so, and what the server was asked.
    async fn against(plan: Plan, answer: &'static [u8]) -> (Result<String, String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut asked = vec![0; 4096];
            let count = stream.read(&mut asked).await.expect("a request");
            asked.truncate(count);
            let _ = stream.write_all(answer).await;
            String::from_utf8_lossy(&asked).into_owned()
        });
        let outcome = plan.run(address).await;
        (outcome, server.await.expect("no panic").replace(&address.to_string(), "ADDRESS"))
    }

    #[tokio::test]
    async fn an_http_check_asks_and_looks_at_the_status() {
        let (outcome, asked) = against(plan(Check::Http), b"HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(outcome, Ok("answers with 204".into()));
        let expected = "GET /ready?deep=1 HTTP/1.1\r\nHost: ADDRESS\r\nUser-Agent: underpass-check\r\nAccept: */*\r\n\
                        Connection: close\r\n\r\n";
        assert_eq!(asked, expected);
        let named = Plan { host: Some("app.example".into()), send_proxy: SendProxy::V1, ..plan(Check::Http) };
        let (outcome, asked) = against(named, b"HTTP/1.0 503 Out\r\n\r\n").await;
        assert_eq!(outcome, Err("answers with 503, not one of 200-399".into()));
        assert!(
            asked.starts_with("PROXY UNKNOWN\r\nGET ") && asked.contains("\r\nHost: app.example\r\n"),
            "{asked}"
        );
    }

    #[tokio::test]
    async fn what_is_no_answer_is_said() {
        for (answer, expected) in [
            (&b""[..], "closed the connection without an answer"),
            (b"HTTP/1.1 2", "closed the connection within its status line"),
            (b"SSH-2.0-x\r\n", "does not answer in HTTP/1"),
            (b"HTTP/1.1 2x0 OK\r\n", "does not answer in HTTP/1"),
            (b"HTTP/1.1 2000 OK\r\n", "does not answer in HTTP/1"),
        ] {
            assert_eq!(against(plan(Check::Http), answer).await.0, Err(expected.into()));
        }
        let endless = [b'x'; 4096].as_slice();
        let outcome = against(plan(Check::Http), Vec::leak(endless.to_vec())).await.0;
        assert_eq!(outcome, Err("does not answer in HTTP/1".into()));
    }

    #[tokio::test]
    async fn a_tcp_check_wants_a_connection_only() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        assert_eq!(plan(Check::Tcp).run(address).await, Ok("takes connections".into()));
        drop(listener);
        let refused = plan(Check::Tcp).run(address).await.expect_err("nobody listens");
        assert!(refused.starts_with("cannot be connected to: "), "{refused}");
    }

    #[tokio::test]
    async fn a_silent_backend_has_failed_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let short = Plan { timeout: Duration::from_millis(30), ..plan(Check::Http) };
        assert_eq!(short.run(address).await, Err("no answer within 30 ms".into()));
    }

    #[test]
    fn a_cluster_without_checks_has_no_plan() {
        assert_eq!(Plan::of(&Cluster::new("app")), None);
    }
}
