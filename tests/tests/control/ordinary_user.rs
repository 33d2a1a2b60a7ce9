//! A proxy that an ordinary user runs: no BPF, no privileged ports, everything else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use underpass_command::Client;
use underpass_tests::proxy::{executable, send_signal};
use underpass_tests::{Backend, Peer, Proxy, is_root, skip, until};

use crate::{GET, HELLO, text};

const NOBODY: &str = "65534";

/// A folder of nobody's, with a copy of the executable: the one that was built may lie where nobody cannot look.
struct Home {
    folder: TempDir,
}

impl Home {
    fn make() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::copy(executable(), folder.path().join("underpass")).expect("a copy");
        let run = folder.path().join("run");
        fs::create_dir(&run).expect("a folder");
        nix::unistd::chown(&run, Some(65534.into()), Some(65534.into())).expect("chown");
        Self { folder }
    }

    /// What the user may write to; the value of XDG_RUNTIME_DIR.
    fn run(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
            .arg(self.folder.path().join("underpass"))
            .args(words)
            .env("XDG_RUNTIME_DIR", self.run())
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("setpriv of util-linux")
    }

    fn config(&self, text: &str) -> String {
        let path = self.folder.path().join("underpass.toml");
        fs::write(&path, text).expect("written");
        path.display().to_string()
    }
}

fn end(mut child: Child) {
    send_signal(child.id(), Signal::SIGTERM);
    let status = until("it ends", || child.try_wait().expect("a child"));
    assert!(status.success(), "{status}");
}

#[test]
fn it_runs_without_bpf_and_says_so() {
    if !is_root() {
        return skip("only root can become nobody");
    }
    let backend = Backend::answering(HELLO);
    let home = Home::make();
    let config = home.config(&format!(
        "workers = 1\n[limits]\nconnections = 64\n\
         [[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\ndefault_cluster = \"app\"\n\
         [[cluster]]\nname = \"app\"\n[[cluster.backend]]\naddress = \"{}\"\n",
        backend.address()
    ));
    let child = home
        .command(&["start", "--config", &config])
        .stderr(Stdio::null())
        .spawn()
        .expect("setpriv of util-linux");
    let socket = home.run().join("underpass/admin.sock");
    let client = Client::new(&socket);
    let status = until("it answers", || client.status().ok());
    assert!(!status.steering.active);
    let reason = status.steering.reason.expect("a reason");
    assert!(!reason.is_empty());
    let mut peer = Peer::connect(status.listeners[0].address);
    peer.send(GET);
    assert_eq!(peer.response().text(), "hello");
    // Its own user finds it without being told where.
    let own = home.output(&["status"]);
    assert!(own.status.success() && text(&own).contains(&reason), "{}", text(&own));
    end(child);
    assert!(!Path::new(&socket).exists());
}

#[test]
fn a_privileged_port_is_refused_with_a_remedy() {
    if !is_root() {
        return skip("only root can become nobody");
    }
    if fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .is_ok_and(|start| start.trim() != "1024")
    {
        return skip("this machine lets everyone use low ports");
    }
    let home = Home::make();
    let config = home.config(
        "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:81\"\ndefault_cluster = \"app\"\n\
         [[cluster]]\nname = \"app\"\n[[cluster.backend]]\naddress = \"127.0.0.1:9\"\n",
    );
    let output = home.output(&["start", "--config", &config]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let expected =
        "listener \"web\": address 127.0.0.1:81: permission denied; run as root or give CAP_NET_BIND_SERVICE";
    assert!(text(&output).contains(expected), "{}", text(&output));
}

#[test]
fn a_foreign_user_is_refused_even_where_the_socket_lets_it_in() {
    if !is_root() {
        return skip("only root can become nobody");
    }
    let backend = Backend::answering(HELLO);
    let proxy = underpass_tests::proxy::Setup::to(&[backend.address()]).expect_log("caller refused").start();
    let home = Home::make();
    let socket = proxy.client().socket().to_owned();
    let ask =
        |proxy: &Proxy| home.output(&["status", "--socket", &proxy.client().socket().display().to_string()]);
    fs::set_permissions(proxy.folder(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let closed = ask(&proxy);
    assert_eq!(closed.status.code(), Some(1));
    assert!(text(&closed).contains("as the user who started the proxy"), "{}", text(&closed));
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).expect("chmod");
    let open = ask(&proxy);
    assert_eq!(open.status.code(), Some(1));
    assert!(text(&open).contains("not for this user"), "{}", text(&open));
    proxy.stop();
}

#[test]
fn the_demo_runs_without_bpf_and_says_so() {
    if !is_root() {
        return skip("only root can become nobody");
    }
    let home = Home::make();
    let output = home.output(&["demo", "--listen", "127.0.0.1:0", "--workers", "1", "--seconds", "1"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("BPF off (") && text(&output).contains("an ordinary user"),
        "{}",
        text(&output)
    );
}

#[test]
fn a_user_on_the_allow_list_is_served() {
    if !is_root() {
        return skip("only root can become nobody");
    }
    let backend = Backend::answering(HELLO);
    let setup = underpass_tests::proxy::Setup::to(&[backend.address()]);
    let proxy = setup.with(|state| state.settings.admin_uids = vec![65534]).start();
    fs::set_permissions(proxy.folder(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let socket = proxy.client().socket();
    let mode = fs::metadata(socket).expect("exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o666, "others can only connect where the file lets them");
    let output = Home::make().output(&["status", "--socket", &socket.display().to_string()]);
    assert!(output.status.success(), "{}", text(&output));
    proxy.stop();
}
