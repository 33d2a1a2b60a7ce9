//! Finds a compiler for BPF: either that of rustup with the sources of the standard library, or Debian's.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::tools::{self, cargo, find, is_root};

/// The version that goes with the LLVM of the compilers below.
const LINKER_VERSION: &str = "0.10.3";
/// Debian's compiler, with `core` ready-made for BPF.
const PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// Variables by which the cargo that runs this program would interfere with the one that it starts.
const FOREIGN_VARIABLES: [&str; 11] = [
    "CARGO",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "LD_LIBRARY_PATH",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// A compiler and a linker for BPF.
pub(super) struct Toolchain {
    kind: Kind,
    /// The path of bpf-linker.
    linker: PathBuf,
    /// A folder with the compiler's LLVM library, which bpf-linker loads at run time.
    llvm: PathBuf,
}

enum Kind {
    /// rustup's nightly, which builds `core` from the component rust-src.
    Nightly { sysroot: PathBuf },
    /// Debian's, where `core` is there.
    Debian,
}

impl Toolchain {
    /// Finds one. `folder` is where what is made for it goes.
    ///
    /// # Errors
    /// Says what to install, unless `install` and it could be installed.
    pub(super) fn find(folder: &Path, install: bool) -> anyhow::Result<Self> {
        let mut kind = Kind::find();
        let mut linker = find_linker(folder);
        if install && kind.is_none() {
            install_debian()?;
            kind = Kind::find();
        }
        if install && linker.is_none() {
            install_linker(folder)?;
            linker = find_linker(folder);
        }
        let (Some(kind), Some(linker)) = (&kind, &linker) else {
            bail!("{}", what_to_install(kind.is_none(), linker.is_none()));
        };
        let llvm = kind.llvm(folder)?;
        let kind = match kind {
            Kind::Debian => Kind::Debian,
            Kind::Nightly { sysroot } => Kind::Nightly { sysroot: sysroot.clone() },
        };
        Ok(Self { kind, linker: linker.clone(), llvm })
    }

    /// The cargo that compiles for BPF.
    pub(super) fn cargo(&self, root: &Path) -> anyhow::Result<Command> {
        let mut command = match &self.kind {
            Kind::Nightly { .. } => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo", "-Zbuild-std=core"]);
                command
            }
            Kind::Debian => Command::new(DEBIAN_CARGO),
        };
        for variable in FOREIGN_VARIABLES {
            command.env_remove(variable);
        }
        if let Kind::Debian = self.kind {
            // The name of the one crate that uses an unstable feature, inline assembly for BPF. (The value 1, which
            // allows all, makes the build scripts believe in a nightly.)
            command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "aya_ebpf");
        }
        let flags = self.rustc_flags(root)?.join("\x1f");
        command.env("CARGO_ENCODED_RUSTFLAGS", flags).env("LD_LIBRARY_PATH", &self.llvm).current_dir(root);
        Ok(command)
    }

    fn rustc_flags(&self, root: &Path) -> anyhow::Result<Vec<String>> {
        let mut flags = vec![
            format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
            // Type information comes from the debugger's.
            "-Cdebuginfo=2".into(),
            "-Clink-arg=--btf".into(),
            format!("-Clinker={}", self.linker.display()),
            format!("--remap-path-prefix={}=.", root.display()),
        ];
        // The object shall not tell on which machine it was built.
        if let Kind::Nightly { sysroot } = &self.kind {
            flags
                .push(format!("--remap-path-prefix={}=rust", sysroot.join("lib/rustlib/src/rust").display()));
        }
        for registry in registries()? {
            flags.push(format!("--remap-path-prefix={}=registry", registry.display()));
        }
        Ok(flags)
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Nightly { sysroot } => write!(f, "the nightly toolchain in {}", sysroot.display())?,
            Kind::Debian => write!(f, "{DEBIAN_RUSTC}")?,
        }
        write!(f, " and {}", self.linker.display())
    }
}

impl Kind {
    fn find() -> Option<Self> {
        let nightly = sysroot(Command::new("rustup").args(["run", "nightly", "rustc"]))
            .filter(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core").is_dir());
        if let Some(sysroot) = nightly {
            return Some(Self::Nightly { sysroot });
        }
        let debian = sysroot(&mut Command::new(DEBIAN_RUSTC))?;
        let core = debian.join("lib/rustlib/bpfel-unknown-none/lib").is_dir();
        (core && Path::new(DEBIAN_CARGO).is_file()).then_some(Self::Debian)
    }

    /// A folder with the compiler's own LLVM, and no other: bpf-linker takes the first that it finds.
    fn llvm(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        match self {
            Self::Nightly { sysroot } => Ok(sysroot.join("lib")),
            Self::Debian => {
                let output =
                    Command::new("ldd").arg(DEBIAN_RUSTC).output().context("ldd could not be started")?;
                let libraries = String::from_utf8_lossy(&output.stdout);
                let library =
                    llvm_of(&libraries).with_context(|| format!("{DEBIAN_RUSTC} is not linked with LLVM"))?;
                let folder = folder.join("llvm");
                let link = folder.join("libLLVM.so");
                fs::create_dir_all(&folder).with_context(|| format!("{}: creating", folder.display()))?;
                let _ = fs::remove_file(&link); // that of an earlier build, perhaps of another version
                symlink(library, &link).with_context(|| format!("{}: linking", link.display()))?;
                Ok(folder)
            }
        }
    }
}

/// The path of the LLVM library in the output of ldd(1).
fn llvm_of(libraries: &str) -> Option<&str> {
    let line = libraries.lines().find(|line| line.trim_start().starts_with("libLLVM"))?;
    line.split_whitespace().nth(2)
}

fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    for variable in FOREIGN_VARIABLES {
        rustc.env_remove(variable);
    }
    let output = rustc.args(["--print", "sysroot"]).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Folders of unpacked dependencies.
fn registries() -> anyhow::Result<Vec<PathBuf>> {
    let folder = cargo_home().join("registry/src");
    let Ok(entries) = fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<Result<_, _>>().with_context(|| format!("{}: reading", folder.display()))
}

fn cargo_home() -> PathBuf {
    let in_home = || env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(in_home).unwrap_or_default()
}

fn find_linker(folder: &Path) -> Option<PathBuf> {
    let installed = [folder.join("tools/bin"), cargo_home().join("bin")];
    let installed = installed.into_iter().map(|folder| folder.join("bpf-linker"));
    find("bpf-linker").into_iter().chain(installed).find(|path| path.is_file())
}

fn install_debian() -> anyhow::Result<()> {
    if !is_root() || find("apt-get").is_none() {
        bail!("{}", what_to_install(true, false));
    }
    eprintln!("installing: {}", PACKAGES.join(" "));
    let apt_get = |arguments: &[&str]| {
        tools::run(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    apt_get(&["update", "-q"])?;
    let install = ["install", "-y", "-q", "--no-install-recommends"];
    apt_get(&[&install[..], &PACKAGES].concat())
}

fn install_linker(folder: &Path) -> anyhow::Result<()> {
    let root = folder.join("tools");
    let arguments: [&OsStr; 7] = [
        "install".as_ref(),
        "bpf-linker".as_ref(),
        "--locked".as_ref(),
        "--version".as_ref(),
        LINKER_VERSION.as_ref(),
        "--root".as_ref(),
        root.as_ref(),
    ];
    eprintln!("installing: bpf-linker {LINKER_VERSION} into {}", root.display());
    tools::run(cargo().args(arguments))
}

fn what_to_install(compiler: bool, linker: bool) -> String {
    let mut text = String::from("the BPF programs cannot be built here:");
    if compiler {
        let packages = PACKAGES.join(" ");
        text += "\n- no compiler for BPF. Either: rustup toolchain install nightly --component rust-src";
        text += &format!("\n  or, on Debian: sudo apt-get install --no-install-recommends {packages}");
    }
    if linker {
        text += &format!("\n- no bpf-linker: cargo install bpf-linker --locked --version {LINKER_VERSION}");
    }
    text + "\nor let it be done: cargo xtask build-ebpf --install-deps. The proxy itself needs none of this: its object \
            is in ebpf/prebuilt/."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_is_found_among_the_libraries_of_the_compiler() {
        let libraries = "\tlinux-vdso.so.1 (0x0)\n\tlibLLVM.so.22.1 => /lib/x/libLLVM.so.22.1 (0x7f)\n\tlibc.so.6 => /c\n";
        assert_eq!(llvm_of(libraries), Some("/lib/x/libLLVM.so.22.1"));
        assert_eq!(llvm_of("\tstatically linked\n"), None);
    }

    #[test]
    fn only_what_is_missing_is_asked_for() {
        let text = what_to_install(false, true);
        assert!(text.contains("cargo install bpf-linker") && !text.contains("rustc-web"), "{text}");
        let text = what_to_install(true, false);
        assert!(text.contains("rustc-web") && !text.contains("cargo install"), "{text}");
    }
}
