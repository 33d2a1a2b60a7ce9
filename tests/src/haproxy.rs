//! A real HAProxy in front of the proxy, in TCP mode.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::ports::ReservedPort;
use crate::wait::until;

/// A running HAProxy that passes connections on as they are.
#[derive(Debug)]
pub struct Haproxy {
    child: Child,
    folder: TempDir,
    port: ReservedPort,
}

impl Haproxy {
    /// Starts one that connects to `server`, with options for that server, as `send-proxy`.
    #[track_caller]
    pub fn start(server: SocketAddr, options: &str) -> Self {
        let folder =
            tempfile::Builder::new().prefix("underpass-haproxy-").tempdir().expect("a temporary folder");
        let port = ReservedPort::new();
        let config = folder.path().join("haproxy.cfg");
        fs::write(&config, configuration(port.address(), server, options))
            .expect("writing the configuration");
        let log = File::create(folder.path().join("log")).expect("a log file");
        let child = Command::new("haproxy")
            .arg("-db")
            .arg("-f")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second descriptor of the log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("haproxy cannot be started: {error}; on Debian: apt-get install haproxy")
            });
        let mut haproxy = Self { child, folder, port };
        until("haproxy listens", || {
            if let Ok(Some(status)) = haproxy.child.try_wait() {
                panic!("haproxy ended with {status}: {}", haproxy.log());
            }
            TcpStream::connect(haproxy.address()).ok()
        });
        haproxy
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(listen: SocketAddr, server: SocketAddr, options: &str) -> String {
    format!(
        "global
    maxconn 200
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
listen front
    bind {listen}
    server back {server} {options}
"
    )
}
