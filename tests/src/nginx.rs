//! A real nginx as backend.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::body::{Content, hash_of};
use crate::certificate::Certificate;
use crate::ports::ReservedPort;
use crate::wait::until;

/// A running nginx with files to get and a place to put some.
///
/// The same files are under `/length/` (with Content-Length), `/chunked/` (chunked) and `/close/` (until the connection
/// ends). PUT under `/upload/` keeps a file.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    folder: TempDir,
    port: ReservedPort,
}

impl Nginx {
    /// Starts one that serves these files.
    #[track_caller]
    pub fn start(files: &[(&str, Content)]) -> Self {
        Self::start_with(files, "", "")
    }

    /// Starts one that speaks TLS with a certificate for these names.
    #[track_caller]
    pub fn start_tls(files: &[(&str, Content)], certificate: &Certificate, extra: &str) -> Self {
        let lines = format!(
            "ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {}; ssl_certificate_key {}; {extra}",
            certificate.file().display(),
            certificate.key().display()
        );
        Self::start_with(files, "ssl", &lines)
    }

    /// Starts one with options behind its `listen`, and further lines in its `server`.
    #[track_caller]
    pub fn start_with(files: &[(&str, Content)], options: &str, extra: &str) -> Self {
        let folder =
            tempfile::Builder::new().prefix("underpass-nginx-").tempdir().expect("a temporary folder");
        let path = folder.path();
        for name in ["files", "upload", "temporary"] {
            fs::create_dir(path.join(name)).expect("a folder");
        }
        for (name, content) in files {
            let mut file = File::create(path.join("files").join(name)).expect("a file");
            io::copy(&mut content.clone(), &mut file).expect("writing a file");
        }
        let port = ReservedPort::new();
        let config = path.join("nginx.conf");
        fs::write(&config, configuration(&folder, port.address(), options, extra))
            .expect("writing the configuration");
        let log = File::create(path.join("log")).expect("a log file");
        let child = Command::new("nginx")
            .arg("-p")
            .arg(path)
            .arg("-c")
            .arg(&config)
            .arg("-e")
            .arg(path.join("error.log"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second descriptor of the log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("nginx cannot be started: {error}; on Debian: apt-get install nginx-light")
            });
        let mut nginx = Self { child, folder, port };
        until("nginx answers", || {
            if let Ok(Some(status)) = nginx.child.try_wait() {
                panic!("nginx ended with {status}: {}", nginx.log());
            }
            TcpStream::connect(nginx.address()).ok()
        });
        nginx
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Path of a file that it serves.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("files").join(name)
    }

    /// Hash and size of a file that was put to `/upload/`; the file is removed.
    #[track_caller]
    pub fn take_upload(&self, name: &str) -> (String, u64) {
        let path = self.folder.path().join("upload").join(name);
        let mut file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let hash = hash_of(&mut file).expect("reading a file");
        fs::remove_file(&path).expect("removing a file");
        hash
    }

    fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        read("log") + &read("error.log")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(folder: &TempDir, address: SocketAddr, options: &str, extra: &str) -> String {
    let folder = folder.path().display();
    // SSI makes the length of a response unknown beforehand; there are no commands in the files, so the bytes stay.
    format!(
        "daemon off;
        master_process off;
        pid {folder}/pid;
        events {{ worker_connections 512; }}
        http {{
            access_log off;
            default_type application/octet-stream;
            client_body_temp_path {folder}/temporary;
            client_max_body_size 0;
            keepalive_requests 1000000;
            sendfile on;
            server {{
                listen {address} {options};
                {extra}
                location /length/ {{ alias {folder}/files/; }}
                location /chunked/ {{ alias {folder}/files/; ssi on; ssi_types *; }}
                location /close/ {{ alias {folder}/files/; ssi on; ssi_types *; chunked_transfer_encoding off; }}
                location /upload/ {{ alias {folder}/upload/; dav_methods PUT; }}
            }}
        }}"
    )
}
