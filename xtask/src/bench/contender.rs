//! The proxies that are compared: how each is configured and started.

use std::fmt;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::process::{Launcher, Process};
use crate::tools::{Tool, find};

/// A proxy in one configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub(super) enum Contender {
    /// Receives and sends, nothing else
    Floor,
    /// The same with responses through pipes
    FloorSplice,
    /// HAProxy, copying
    Haproxy,
    /// HAProxy, splicing
    HaproxySplice,
    /// nginx
    Nginx,
    /// underpass as it decides by itself
    Underpass,
    /// underpass, copying
    UnderpassCopy,
    /// underpass, splicing
    UnderpassSplice,
    /// underpass, redirecting by sockmap
    UnderpassSockmap,
}

/// The programs that have to be installed.
pub(crate) const HAPROXY: Tool = Tool::new("haproxy", "haproxy");
const NGINX: Tool = Tool::new("nginx", "nginx-light");

/// How often a port is taken anew when another process was quicker to take it.
const START_ATTEMPTS: usize = 3;

impl Contender {
    /// All of them.
    pub(super) fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// What has to be installed for it.
    pub(super) fn tool(self) -> Option<Tool> {
        match self {
            Self::Haproxy | Self::HaproxySplice => Some(HAPROXY),
            Self::Nginx => Some(NGINX),
            _ => None,
        }
    }

    /// Whether it is what this workspace builds.
    pub(super) fn is_underpass(self) -> bool {
        matches!(self, Self::Underpass | Self::UnderpassCopy | Self::UnderpassSplice | Self::UnderpassSockmap)
    }

    /// What it is, with its version.
    pub(super) fn describe(self, launcher: &Launcher) -> Result<String> {
        match self {
            Self::Floor => {
                Ok("only receives and sends, one backend connection for each client connection".into())
            }
            Self::FloorSplice => Ok("the same, and responses go through a pipe of 1 MiB".into()),
            Self::Haproxy | Self::HaproxySplice => first_line(Command::new(path_of(HAPROXY)?).arg("-v")),
            Self::Nginx => first_line(Command::new(path_of(NGINX)?).arg("-v")),
            Self::Underpass | Self::UnderpassCopy | Self::UnderpassSplice | Self::UnderpassSockmap => {
                first_line(Command::new(launcher.underpass()?).arg("--version"))
            }
        }
    }

    /// Its configuration; a floor has none.
    pub(super) fn configuration(
        self,
        listen: SocketAddr,
        backend: SocketAddr,
        folder: &Path,
    ) -> Option<String> {
        match self {
            Self::Floor | Self::FloorSplice => None,
            Self::Haproxy => Some(haproxy(listen, backend, false)),
            Self::HaproxySplice => Some(haproxy(listen, backend, true)),
            Self::Nginx => Some(nginx(listen, backend, folder)),
            Self::Underpass => Some(underpass(listen, backend, folder, "auto")),
            Self::UnderpassCopy => Some(underpass(listen, backend, folder, "copy")),
            Self::UnderpassSplice => Some(underpass(listen, backend, folder, "splice")),
            Self::UnderpassSockmap => Some(underpass(listen, backend, folder, "sockmap")),
        }
    }

    /// Starts it on a core, with a port from the system, and waits until it forwards.
    pub(super) fn start(self, launcher: &Launcher, core: usize, backend: SocketAddr) -> Result<Started> {
        let mut attempt = 1;
        loop {
            match self.try_start(launcher, core, backend) {
                Err(error) if attempt == START_ATTEMPTS => return Err(error),
                Err(_) => attempt += 1,
                started => return started,
            }
        }
    }

    fn try_start(self, launcher: &Launcher, core: usize, backend: SocketAddr) -> Result<Started> {
        let (mut process, address) = match self {
            Self::Floor | Self::FloorSplice => self.start_floor(launcher, core, backend)?,
            _ => self.start_proxy(launcher, core, backend)?,
        };
        process.ready(|| forwards(address))?;
        let workers = match process.children()? {
            children if children.is_empty() => vec![process.pid()],
            children => children,
        };
        Ok(Started { address, workers, _process: process })
    }

    fn start_floor(
        self,
        launcher: &Launcher,
        core: usize,
        backend: SocketAddr,
    ) -> Result<(Process, SocketAddr)> {
        let mut arguments = vec!["floor".to_owned(), format!("--backend={backend}")];
        if self == Self::FloorSplice {
            arguments.push("--splice".into());
        }
        let mut process = launcher.start_own(&self.to_string(), core, arguments)?;
        let address = process.printed_address()?;
        Ok((process, address))
    }

    fn start_proxy(
        self,
        launcher: &Launcher,
        core: usize,
        backend: SocketAddr,
    ) -> Result<(Process, SocketAddr)> {
        let name = self.to_string();
        let listen = free_address()?;
        let file = launcher.folder.join(format!("{name}.conf"));
        let text = self.configuration(listen, backend, &launcher.folder).unwrap_or_default();
        fs::write(&file, text).with_context(|| format!("{}: cannot write", file.display()))?;
        let file = file.into_os_string();
        let (program, arguments) = match self {
            Self::Nginx => {
                let prefix = launcher.folder.clone().into_os_string();
                (path_of(NGINX)?, vec!["-p".into(), prefix, "-e".into(), "stderr".into(), "-c".into(), file])
            }
            _ if self.is_underpass() => {
                (launcher.underpass()?.to_owned(), vec!["start".into(), "--config".into(), file])
            }
            // In the foreground; without a master process there is one process to watch.
            _ => (path_of(HAPROXY)?, vec!["-db".into(), "-f".into(), file]),
        };
        Ok((launcher.start(&name, &[core], &program, arguments)?, listen))
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.pad(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// A proxy that forwards.
pub(super) struct Started {
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// The processes that do its work.
    pub(super) workers: Vec<u32>,
    _process: Process,
}

/// One thread, connections to the backend shared and kept, nothing logged. The rest is as HAProxy has it.
fn haproxy(listen: SocketAddr, backend: SocketAddr, splice: bool) -> String {
    // `splice-auto` doesn't splice here: it waits for signs of streaming. Pipes of 1 MiB halve the cost of large bodies.
    let (pipes, options) = if splice {
        ("    tune.pipesize 1048576\n", "    option splice-request\n    option splice-response\n")
    } else {
        ("", "")
    };
    format!(
        "\
global
    nbthread 1
    maxconn 4096
{pipes}
defaults
    mode http
    option http-keep-alive
    http-reuse always
{options}    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout http-keep-alive 60s

frontend web
    bind {listen}
    default_backend app

backend app
    server one {backend}
"
    )
}

/// One worker, connections kept on both sides, nothing logged, no body on disk. Of the buffers that were tried, from
/// the default of 8 x 4k to 16 x 64k, and without buffering, these cost the least over all sizes.
fn nginx(listen: SocketAddr, backend: SocketAddr, folder: &Path) -> String {
    let user = if crate::tools::is_root() { "user root;\n" } else { "" };
    let folder = folder.display();
    format!(
        "\
{user}daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr crit;

events {{
    worker_connections 4096;
    multi_accept on;
}}

http {{
    access_log off;
    keepalive_timeout 60s;
    keepalive_requests 1000000000;
    tcp_nodelay on;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    scgi_temp_path {folder}/nginx-scgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;

    upstream app {{
        server {backend};
        keepalive 128;
        keepalive_requests 1000000000;
        keepalive_timeout 60s;
    }}

    server {{
        listen {listen};
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_max_temp_file_size 0;
            proxy_buffer_size 16k;
            proxy_buffers 8 64k;
            proxy_busy_buffers_size 256k;
        }}
    }}
}}
"
    )
}

/// One worker, nothing logged, and nothing added to heads, as the others add nothing. The rest is as it comes.
fn underpass(listen: SocketAddr, backend: SocketAddr, folder: &Path, redirect: &str) -> String {
    let admin_socket = folder.join("admin.sock");
    underpass_with(
        listen,
        backend,
        &admin_socket,
        &format!("workers = 1\nredirect = \"{redirect}\"\nsteering = \"off\"\n"),
    )
}

/// The same with these settings instead.
pub(crate) fn underpass_with(
    listen: SocketAddr,
    backend: SocketAddr,
    admin_socket: &Path,
    settings: &str,
) -> String {
    let admin_socket = admin_socket.display();
    format!(
        "\
{settings}admin_socket = \"{admin_socket}\"
via = \"\"

[log]
level = \"warn\"

[limits]
connections = 4096

[timeouts]
drain_ms = 1000

[[listener]]
name = \"web\"
address = \"{listen}\"
default_cluster = \"app\"
x_forwarded = \"off\"
forwarded = \"off\"
request_id = \"off\"

[[cluster]]
name = \"app\"

[[cluster.backend]]
address = \"{backend}\"
"
    )
}

/// A port of the loopback address that is free now; it may be taken by another when it is used.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?)
}

/// Whether a request comes through.
pub(crate) fn forwards(address: SocketAddr) -> bool {
    let patience = Duration::from_secs(1);
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"GET /size/0 HTTP/1.1\r\nHost: bench.test\r\nConnection: close\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(&status == b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}

pub(crate) fn path_of(tool: Tool) -> Result<PathBuf> {
    find(tool.program).with_context(|| format!("{}: not installed, package {}", tool.program, tool.package))
}

/// The first line that a program prints, on either output.
pub(crate) fn first_line(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?} could not be started"))?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}
