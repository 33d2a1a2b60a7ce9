//! `underpass top` on a terminal of its own, which it leaves as it found it, whatever ends it.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::thread::{self, JoinHandle};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use underpass_tests::proxy::{Setup, executable};
use underpass_tests::{Backend, OK, Proxy, until};

/// Leaves the second screen of a terminal (xterm's control sequence 1049).
const LEAVE: &str = "\x1b[?1049l";

struct Terminal {
    /// The side of programs.
    inner: OwnedFd,
    /// What is shown.
    shown: JoinHandle<String>,
    before: LocalFlags,
    top: Child,
}

impl Terminal {
    /// Starts `underpass top` and waits until it has taken the terminal.
    #[track_caller]
    fn with_top(proxy: &Proxy) -> Self {
        let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).expect("a terminal");
        let (inner, mut outer) = (pair.slave, File::from(pair.master));
        let before = tcgetattr(&inner).expect("a terminal").local_flags;
        let side = || inner.try_clone().expect("a descriptor");
        // Who runs the tests in the background may have had SIGINT ignored, which programs inherit.
        let top = Command::new("env")
            .arg("--default-signal")
            .arg(executable())
            .args(["top", "--socket"])
            .arg(proxy.client().socket())
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .env("TERM", "xterm")
            .spawn()
            .expect("it runs");
        let shown = thread::spawn(move || {
            let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
            // Reading fails when nobody has the other side any more.
            while let Ok(count @ 1..) = outer.read(&mut chunk) {
                all.extend_from_slice(&chunk[..count]);
            }
            String::from_utf8_lossy(&all).into_owned()
        });
        let terminal = Self { inner, shown, before, top };
        until("the terminal is taken", || (!terminal.flags().contains(LocalFlags::ICANON)).then_some(()));
        terminal
    }

    fn flags(&self) -> LocalFlags {
        tcgetattr(&self.inner).expect("a terminal").local_flags
    }

    /// Waits for the program's end; how it ended, whether the terminal is as it was, and what was shown.
    fn end(mut self) -> (ExitStatus, bool, String) {
        let status = self.top.wait().expect("it ends");
        let restored = self.flags() == self.before;
        drop(self.inner);
        (status, restored, self.shown.join().expect("it reads to the end"))
    }
}

#[test]
fn a_signal_ends_it_and_the_terminal_is_as_it_was() {
    let backend = Backend::answering(OK);
    let proxy = Setup::to(&[backend.address()]).start();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let terminal = Terminal::with_top(&proxy);
        kill(Pid::from_raw(i32::try_from(terminal.top.id()).expect("a pid")), signal).expect("it runs");
        let (status, restored, shown) = terminal.end();
        assert_eq!(status.signal(), Some(signal as i32), "{status}: {shown}");
        assert!(restored && shown.contains(LEAVE), "{signal}: {shown}");
    }
    proxy.stop();
}
