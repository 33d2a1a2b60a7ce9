//! Debian's kernels: which there are, fetched without a trace in the system's own package management, and kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::modules;
use crate::tools;

/// A line of kernels that is tested.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// What it is called here.
    pub(super) name: &'static str,
    /// What the version of the package begins with; empty for any.
    version: &'static str,
    /// Debian's suites that have it, the first that does is taken.
    suites: &'static [&'static str],
}

/// The lines, oldest first.
pub(super) const LINES: &[Line] = &[
    Line { name: "6.1", version: "6.1.", suites: &["bookworm"] },
    Line { name: "6.12", version: "6.12.", suites: &["trixie", "bookworm-backports"] },
    // The newest that Debian has packed: what comes to everybody else.
    Line { name: "newest", version: "", suites: &["trixie-backports"] },
];

/// The package that depends on the kernel itself. It is made for virtual machines: small, with BPF, BTF and virtio.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// What the names of a kernel's packages begin with; it is in one or in several, by its version.
const PARTS: [&str; 4] = ["linux-image", "linux-base", "linux-binary", "linux-modules"];
/// Debian's keys, which come with every Debian.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where packages come from if the system's configuration names no mirror.
const MIRROR: &str = "http://deb.debian.org/debian";
/// The drivers that a guest needs, its card's and those of its tests' own networks; what they need themselves is found out.
const DRIVERS: [&str; 4] = ["virtio_pci", "virtio_net", "veth", "tun"];

/// A kernel that can be booted.
#[derive(Debug)]
pub(super) struct Kernel {
    /// What `uname -r` says.
    pub(super) release: String,
    /// The kernel itself.
    pub(super) image: PathBuf,
    /// Drivers, in the order in which they are to be loaded.
    pub(super) modules: Vec<PathBuf>,
}

/// What was found.
pub(super) enum Found {
    Kernel(Kernel),
    /// There is none to be had, and why.
    Missing(String),
}

/// Returns a kernel of the line: the one that is kept below `folder`, else one from Debian's mirror.
///
/// # Errors
/// What was fetched cannot be used. That there is nothing to fetch is no error.
pub(super) fn find(line: &Line, folder: &Path) -> Result<Found> {
    let kept = folder.join(line.name);
    if let Some(kernel) = read(&kept)? {
        return Ok(Found::Kernel(kernel));
    }
    let mut reasons = Vec::new();
    for suite in line.suites {
        let apt = Apt::new(&folder.join("apt"), suite)?;
        match apt.newest(line.version) {
            Err(error) => reasons.push(format!("{suite}: {error:#}")),
            Ok(newest) => {
                apt.fetch(&newest, &kept)
                    .with_context(|| format!("kernel {} of {suite}: {}", line.name, newest.release))?;
                let kernel = read(&kept)?;
                return Ok(Found::Kernel(kernel.context("the kernel that was just unpacked is not there")?));
            }
        }
    }
    Ok(Found::Missing(reasons.join("; ")))
}

/// The kernel that is kept in a folder, if it was unpacked to the end.
fn read(folder: &Path) -> Result<Option<Kernel>> {
    let Ok(stamp) = fs::read_to_string(folder.join(STAMP)) else { return Ok(None) };
    let Some((release, drivers)) = stamp.split_once('\n') else { return Ok(None) };
    if drivers != DRIVERS.join(" ") {
        return Ok(None);
    }
    let mut modules = Vec::new();
    for entry in fs::read_dir(folder.join(MODULES)).context("folder of modules")? {
        modules.push(entry?.path());
    }
    // Their names begin with their place in the order.
    modules.sort();
    Ok(Some(Kernel { release: release.to_owned(), image: folder.join(IMAGE), modules }))
}

const IMAGE: &str = "vmlinuz";
const MODULES: &str = "modules";
/// Below apt's folder: where packages are downloaded to.
const FETCHED: &str = "fetched";
/// The release, and the drivers that were asked for. Written last: where it is, the rest is.
const STAMP: &str = "stamp";

/// Package management with a configuration of its own: the system's is neither changed nor heeded, but for the mirror.
struct Apt {
    folder: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(parent: &Path, suite: &str) -> Result<Self> {
        let folder = parent.join(suite);
        for part in ["state/lists/partial", "cache/archives/partial", FETCHED] {
            let path = folder.join(part);
            fs::create_dir_all(&path).with_context(|| format!("{}: creating", path.display()))?;
        }
        let sources = folder.join("sources.list");
        let mirror = mirror().unwrap_or_else(|| MIRROR.to_owned());
        fs::write(&sources, format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n"))?;
        // Nothing is installed, as far as this configuration knows.
        fs::write(folder.join("status"), "")?;
        let place = |name: &str, part: &str| format!("{name}={}", folder.join(part).display());
        let settings = [
            place("Dir::Etc::sourcelist", "sources.list"),
            "Dir::Etc::sourceparts=-".into(),
            place("Dir::State", "state"),
            place("Dir::State::status", "status"),
            place("Dir::Cache", "cache"),
            // The user that apt would become need not be able to write below the target folder.
            "APT::Sandbox::User=root".into(),
            "APT::Architecture=amd64".into(),
            "Acquire::Languages=none".into(),
            "Acquire::Retries=2".into(),
            "Acquire::http::Timeout=30".into(),
        ];
        let options = settings.into_iter().flat_map(|setting| ["-o".to_owned(), setting]).collect();
        Ok(Self { folder, options })
    }

    /// The newest kernel whose version begins so.
    fn newest(&self, version: &str) -> Result<Newest> {
        // Without this option a suite that cannot be had is but a warning.
        self.run("apt-get", &["-q", "-o", "APT::Update::Error-Mode=any", "update"])?;
        let text = self.run("apt-cache", &["show", PACKAGE])?;
        newest(&text, version).with_context(|| format!("has no {PACKAGE} of a version {version}*"))
    }

    /// Downloads a kernel's packages and keeps of them what a guest needs.
    fn fetch(&self, Newest { release, version }: &Newest, kept: &Path) -> Result<()> {
        let unpacked = self.folder.join("unpacked");
        let fetched = self.folder.join(FETCHED);
        for stale in [&unpacked, kept, &fetched] {
            remove(stale)?;
        }
        fs::create_dir_all(&fetched)?;
        for part in PARTS {
            let package = format!("{part}-{release}={version}");
            if self.run("apt-cache", &["show", &package]).is_err() {
                continue;
            }
            eprintln!("fetching {package}");
            self.run("apt-get", &["-q", "download", &package])?;
            let archive = only_entry(&fetched)?;
            tools::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&unpacked))?;
            fs::remove_file(&archive).with_context(|| format!("{}: removing", archive.display()))?;
        }
        let folders = ["lib/modules", "usr/lib/modules"].map(|path| unpacked.join(path).join(release));
        let source = folders.iter().find(|folder| folder.is_dir()).context("the packages have no modules")?;
        fs::create_dir_all(kept.join(MODULES))?;
        let images = [unpacked.join(format!("boot/vmlinuz-{release}")), source.join("vmlinuz")];
        let image = images.iter().find(|image| image.is_file()).context("the packages have no kernel")?;
        fs::copy(image, kept.join(IMAGE)).context("copying the kernel")?;
        modules::copy_with_dependencies(source, &DRIVERS, &kept.join(MODULES))?;
        fs::write(kept.join(STAMP), format!("{release}\n{}", DRIVERS.join(" ")))?;
        remove(&unpacked)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(&self.options).args(arguments).current_dir(self.folder.join(FETCHED)).env("LC_ALL", "C");
        let output = command.output().with_context(|| format!("{program} could not be started"))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            let first = errors.lines().find(|line| line.starts_with("E:")).unwrap_or("no reason given");
            bail!("{program} {}: {first}", arguments.join(" "));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The mirror that the system is configured with, for a Debian.
fn mirror() -> Option<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Security updates have a mirror and a label of their own.
    let uri = text.lines().find_map(|line| line.strip_prefix("Debian Debian "))?;
    Some(uri.trim_end_matches('/').to_owned())
}

/// A kernel that can be fetched.
#[derive(Debug, PartialEq, Eq)]
struct Newest {
    /// What `uname -r` will say.
    release: String,
    /// Version of its packages.
    version: String,
}

/// Of the packages that `apt-cache show` describes, newest first, the kernel that the first of this version depends on.
fn newest(text: &str, version: &str) -> Option<Newest> {
    text.split("\n\n").find_map(|package| {
        let field = |name: &str| package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let own = field("Version")?.trim();
        let release = field("Depends")?.split(", ").find_map(|needed| needed.strip_prefix("linux-image-"))?;
        let release = release.split(' ').next()?;
        own.starts_with(version).then(|| Newest { release: release.to_owned(), version: own.to_owned() })
    })
}

fn only_entry(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.with_context(|| format!("{}: reading", folder.display()))?;
    let [entry] = &entries[..] else {
        bail!("{}: one file was expected, there are {}", folder.display(), entries.len());
    };
    Ok(entry.path())
}

/// Removes a folder with all that is in it; that there is none is fine.
fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: removing", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "Package: linux-image-cloud-amd64\nVersion: 7.3.4-1~bpo13+1\n\
        Depends: linux-base-cloud-amd64 (= 7.3.4-1~bpo13+1), linux-image-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1)\n\n\
        Package: linux-image-cloud-amd64\nVersion: 6.12.107-1\nSection: kernel\n\
        Depends: linux-image-6.12.107+deb13-cloud-amd64 (= 6.12.107-1)\n\n";

    #[test]
    fn the_kernel_is_what_the_package_of_its_line_depends_on() {
        let found = |version| newest(SHOWN, version).map(|newest| (newest.release, newest.version));
        let kernel = |release: &str, version: &str| Some((release.to_owned(), version.to_owned()));
        assert_eq!(found(""), kernel("7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"));
        assert_eq!(found("6.12."), kernel("6.12.107+deb13-cloud-amd64", "6.12.107-1"));
        assert_eq!(found("6.1."), None);
    }

    #[test]
    fn a_kernel_that_was_not_unpacked_to_the_end_or_for_other_drivers_is_none() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(MODULES)).unwrap();
        fs::write(folder.path().join(MODULES).join("01-virtio_net.ko"), "").unwrap();
        fs::write(folder.path().join(MODULES).join("00-failover.ko"), "").unwrap();
        assert!(read(folder.path()).unwrap().is_none());
        let stamp = |drivers: &str| {
            fs::write(folder.path().join(STAMP), format!("6.1.0-50-cloud-amd64\n{drivers}")).unwrap();
        };
        stamp("another");
        assert!(read(folder.path()).unwrap().is_none());
        stamp(&DRIVERS.join(" "));
        let kernel = read(folder.path()).unwrap().unwrap();
        assert_eq!(kernel.release, "6.1.0-50-cloud-amd64");
        assert!(kernel.modules[0].ends_with("00-failover.ko") && kernel.modules.len() == 2);
    }
}
