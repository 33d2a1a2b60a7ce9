//! A certificate for tests, made by openssl.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// A certificate that signs itself, and its key.
#[derive(Debug)]
pub struct Certificate {
    folder: TempDir,
}

impl Certificate {
    /// Makes one for these names.
    #[track_caller]
    pub fn new(names: &[&str]) -> Self {
        let folder =
            tempfile::Builder::new().prefix("underpass-cert-").tempdir().expect("a temporary folder");
        let certificate = Self { folder };
        let names: Vec<String> = names.iter().map(|name| format!("DNS:{name}")).collect();
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-subj", "/CN=test"])
            .args(["-addext", &format!("subjectAltName={}", names.join(","))])
            .arg("-keyout")
            .arg(certificate.key())
            .arg("-out")
            .arg(certificate.file())
            .output()
            .unwrap_or_else(|error| {
                panic!("openssl cannot be started: {error}; on Debian: apt-get install openssl")
            });
        assert!(made.status.success(), "openssl req: {}", String::from_utf8_lossy(&made.stderr));
        certificate
    }

    /// The file of the certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    /// The file of its key.
    pub fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }
}
