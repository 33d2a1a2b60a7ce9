//! `cargo xtask api-check`: schemathesis against the OpenAPI document that a running proxy serves.
//!
//! Schemathesis speaks HTTP over TCP, the admin API is served on a Unix socket: a forwarder on loopback joins the two. Both
//! run for as long as the check does. Schemathesis lies in a virtual environment of its own below target/.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use underpass_command::Client;

use crate::test::build_proxy;
use crate::tools::{Tool, ensure, run, workspace_root};

/// Pinned: what a newer one finds should not fail a change that has nothing to do with it.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";
/// What makes the virtual environment.
const TOOLS: &[Tool] = &[Tool::new("python3", "python3-venv")];
/// What would end the proxy, or never end.
const EXCLUDED: [&str; 2] = ["/v1/drain", "/v1/events"];
/// Until the proxy must answer.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// Until the whole check must be over.
const CHECK_PATIENCE: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(50);

/// How thoroughly to check.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Requests that are tried for each path and method
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    examples: u32,
    /// Beginning of the random choices; the same one gives the same requests
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Don't install missing programs, say which they are
    #[arg(long)]
    no_install: bool,
}

/// Runs the check; an error if schemathesis finds something, or the proxy does not live through it.
pub(crate) fn run_check(options: &Options) -> Result<()> {
    ensure(TOOLS, !options.no_install)?;
    let schemathesis = schemathesis()?;
    let folder = tempfile::tempdir()?;
    let mut proxy = Proxy::start(&executable()?, folder.path())?;
    let port = forward(proxy.socket.clone())?;
    let config = folder.path().join("schemathesis.toml");
    fs::write(&config, CONFIGURATION)?;
    let mut command = Command::new(schemathesis);
    command
        .arg("--config-file")
        .arg(&config)
        .arg("run")
        .arg(format!("http://127.0.0.1:{port}/v1/openapi.json"))
        .args(["--max-examples", &options.examples.to_string(), "--seed", &options.seed.to_string()])
        .args(["--request-timeout", "20"])
        .args(EXCLUDED.iter().flat_map(|path| ["--exclude-path", path]))
        .current_dir(folder.path());
    let checked = run_for(&mut command, CHECK_PATIENCE);
    // What was asked of it must not have cost a process its life.
    let restarts: u64 = proxy.client().status()?.workers.iter().map(|worker| worker.restarts).sum();
    proxy.stop()?;
    checked?;
    if restarts > 0 {
        bail!("workers died {restarts} times:\n{}", proxy.log());
    }
    Ok(())
}

/// What `UNDERPASS_BIN` names, else one that is built now, as for the end-to-end tests.
fn executable() -> Result<PathBuf> {
    match std::env::var_os("UNDERPASS_BIN") {
        Some(path) => {
            Ok(fs::canonicalize(&path).with_context(|| format!("UNDERPASS_BIN={}", path.display()))?)
        }
        None => build_proxy(),
    }
}

/// What schemathesis may take for right beside what is always right: values that fit a schema and not what is
/// running, such as the name of a cluster that is not there (422), or a revision that has gone by (412). That nothing
/// is answered 5xx is a check of its own; 409 is for what this machine does not have, such as BPF.
const CONFIGURATION: &str = r#"
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "404", "409", "412", "422"]

# Which of two faults of a request is told first is the proxy's choice.
[checks.negative_data_rejection]
expected-statuses = ["400", "404", "405", "409", "412", "415", "422"]
"#;

/// The program, installed on first use.
fn schemathesis() -> Result<PathBuf> {
    let venv = workspace_root().join("target/schemathesis");
    let program = venv.join("bin/schemathesis");
    let installed = venv.join("installed");
    if fs::read_to_string(&installed).is_ok_and(|version| version == SCHEMATHESIS) && program.is_file() {
        return Ok(program);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))
        .context("the virtual environment could not be made; on Debian: sudo apt-get install python3-venv")?;
    run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", SCHEMATHESIS]))?;
    fs::write(installed, SCHEMATHESIS)?;
    Ok(program)
}

/// A proxy without traffic.
struct Proxy {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Proxy {
    fn start(executable: &Path, folder: &Path) -> Result<Self> {
        let (socket, log) = (folder.join("admin.sock"), folder.join("log"));
        let config = folder.join("underpass.toml");
        // Nothing of what is added listens beyond this machine: what is sent is random.
        let text = format!(
            "workers = 2\nsteering = \"off\"\nadmin_socket = \"{}\"\n[limits]\nconnections = 64\npipes = 4\n\
             [[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\ndefault_cluster = \"app\"\n\
             [[cluster]]\nname = \"app\"\n[[cluster.backend]]\naddress = \"127.0.0.1:9\"\n",
            socket.display()
        );
        fs::write(&config, text)?;
        let child = Command::new(executable)
            .arg("start")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .with_context(|| format!("{} could not be started", executable.display()))?;
        let mut proxy = Self { child, socket, log };
        let deadline = Instant::now() + START_PATIENCE;
        while proxy.client().status().is_err() {
            if proxy.child.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("the proxy did not start:\n{}", proxy.log());
            }
            thread::sleep(POLL);
        }
        Ok(proxy)
    }

    fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn stop(&mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the proxy ended with {status}:\n{}", self.log());
        }
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Where it has ended already there is nothing left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Joins a port of loopback with a Unix socket, until this process ends.
fn forward(socket: PathBuf) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A proxy that has ended leaves its clients to see it.
            let Ok(server) = UnixStream::connect(&socket) else { continue };
            thread::spawn(move || join(&client, &server));
        }
    });
    Ok(port)
}

/// Copies both ways until both sides have ended; what breaks ends the connection, as it should.
fn join(client: &TcpStream, server: &UnixStream) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut from, mut to) = (server, client);
            let _: io::Result<u64> = io::copy(&mut from, &mut to);
            let _ = client.shutdown(Shutdown::Both);
        });
        let (mut from, mut to) = (client, server);
        let _: io::Result<u64> = io::copy(&mut from, &mut to);
        let _ = server.shutdown(Shutdown::Both);
    });
}

/// Runs a command to its end, or kills it at its deadline.
fn run_for(command: &mut Command, patience: Duration) -> Result<()> {
    let mut child = command.spawn().with_context(|| format!("{command:?} could not be started"))?;
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                bail!("schemathesis ended with {status}; what it has found stands above");
            }
            return Ok(());
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("schemathesis was not done after {} s", patience.as_secs());
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_port_leads_to_the_socket_and_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let port = forward(socket).expect("a port");
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it listens");
        client.write_all(b"question").expect("sent");
        let (mut server, _) = listener.accept().expect("joined");
        let mut bytes = [0; 8];
        server.read_exact(&mut bytes).expect("whole");
        assert_eq!(&bytes, b"question");
        server.write_all(b"answer").expect("sent");
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("ended");
        assert_eq!(answer, "answer");
    }

    #[test]
    fn what_takes_too_long_is_ended() {
        let error =
            run_for(Command::new("sleep").arg("60"), Duration::from_millis(10)).expect_err("too long");
        assert!(error.to_string().contains("not done"), "{error}");
        assert!(run_for(&mut Command::new("true"), Duration::from_secs(60)).is_ok());
        assert!(run_for(&mut Command::new("false"), Duration::from_secs(60)).is_err());
    }
}
