//! A real curl as client.

use std::process::{Child, Command, Stdio};

use crate::body::hash_of;

/// A curl that fails where anything is not as it should be, and gives up after two minutes.
fn curl() -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--max-time", "120", "--noproxy", "*"]);
    command
}

#[track_caller]
fn spawn(command: &mut Command) -> Child {
    command
        .spawn()
        .unwrap_or_else(|error| panic!("curl cannot be started: {error}; on Debian: apt-get install curl"))
}

/// Gets a URL; returns hash and size of the body.
#[track_caller]
pub fn get(url: &str, options: &[&str]) -> (String, u64) {
    let mut child = spawn(curl().args(options).arg(url).stdout(Stdio::piped()));
    let mut body = child.stdout.take().expect("a pipe");
    let hash = hash_of(&mut body).expect("reading what curl prints");
    let status = child.wait().expect("waiting for curl");
    assert!(status.success(), "curl {url} ended with {status}");
    hash
}

/// Gets a URL; returns the body as text, or the status that curl ended with.
#[track_caller]
pub fn text(url: &str, options: &[&str]) -> Result<String, i32> {
    let output = curl().args(options).arg(url).output();
    let output = output
        .unwrap_or_else(|error| panic!("curl cannot be started: {error}; on Debian: apt-get install curl"));
    match output.status.code() {
        Some(0) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        code => Err(code.unwrap_or(-1)),
    }
}

/// Puts a file: with Content-Length, or chunked. The file's name comes from `url`.
#[track_caller]
pub fn put(url: &str, file: &std::path::Path, chunked: bool) {
    let mut command = curl();
    if chunked {
        // curl cannot know the length of its standard input.
        let file = std::fs::File::open(file).expect("opening a file");
        command.args(["--upload-file", "-"]).stdin(file);
    } else {
        command.arg("--upload-file").arg(file);
    }
    let status = spawn(command.arg(url)).wait().expect("waiting for curl");
    assert!(status.success(), "curl --upload-file to {url} ended with {status}");
}
