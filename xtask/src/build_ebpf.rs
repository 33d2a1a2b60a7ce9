//! `cargo xtask build-ebpf`: builds the BPF object from source, with whichever toolchain is there.
//!
//! Everybody else uses the object in `ebpf/prebuilt/`; beside it stands a hash of what it was built from.

mod source_hash;
mod strip;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use self::source_hash::Record;
use self::toolchain::Toolchain;
use crate::tools::{self, cargo, is_root, workspace_root};

/// How to build.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave out the debugger's information (DWARF), as the object in the repository does
    #[arg(long)]
    release: bool,
    /// Change nothing in the repository: fail if its object is not of these sources, build a fresh one into the
    /// target folder, and load that into the kernel (as root)
    #[arg(long)]
    check: bool,
    /// Install what is missing: Debian packages with apt-get (as root), bpf-linker with cargo into the target folder
    #[arg(long)]
    install_deps: bool,
}

/// Where the object goes that everybody uses.
const PREBUILT: &str = "ebpf/prebuilt/underpass.bpf.o";

/// Builds the object, and checks or records where it comes from.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let root = workspace_root();
    if options.check {
        source_hash::check(root, &root.join(PREBUILT))?;
    }
    let toolchain = Toolchain::find(&folder()?, options.install_deps)?;
    eprintln!("building with {toolchain}");
    let object = build(&toolchain)?;
    let bytes = fs::read(&object).with_context(|| format!("{}: reading", object.display()))?;
    let bytes = if options.release || options.check { strip::strip(&bytes)? } else { bytes };
    let fresh = folder()?.join("underpass.bpf.o");
    write_with_record(root, &fresh, &bytes)?;
    println!("{}: {} bytes", fresh.display(), bytes.len());
    if options.check {
        return load(&fresh);
    }
    let prebuilt = root.join(PREBUILT);
    write_with_record(root, &prebuilt, &bytes)?;
    println!("{}: written, with the hash of its sources", prebuilt.display());
    if !options.release {
        println!("it holds the debugger's information; before a commit: cargo xtask build-ebpf --release");
    }
    Ok(())
}

/// The object that was last built here, if it is of these sources: what tests should load instead of the repository's.
pub(crate) fn fresh() -> Option<PathBuf> {
    let object = folder().ok()?.join("underpass.bpf.o");
    source_hash::check(workspace_root(), &object).ok().map(|()| object)
}

fn write_with_record(root: &Path, object: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write(object, bytes)?;
    let record = Record::of(root, bytes)?;
    write(&source_hash::path_of(object), record.to_string().as_bytes())
}

/// The folder of this build: apart from that of everything else, which another compiler builds.
fn folder() -> anyhow::Result<PathBuf> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace_root().join("target"), PathBuf::from);
    let folder = workspace_root().join(target).join("bpf");
    fs::create_dir_all(&folder).with_context(|| format!("{}: creating", folder.display()))?;
    Ok(folder)
}

/// Runs the compiler; returns the path of the object.
fn build(toolchain: &Toolchain) -> anyhow::Result<PathBuf> {
    let target = folder()?.join("build");
    let mut command = toolchain.cargo(workspace_root())?;
    command
        .args(["build", "--release", "--locked", "--target", "bpfel-unknown-none"])
        .args(["--package", "underpass-ebpf", "--features", "programs", "--bin", "underpass-bpf"])
        .env("CARGO_TARGET_DIR", &target);
    tools::run(&mut command).context("the BPF programs could not be built")?;
    Ok(target.join("bpfel-unknown-none/release/underpass-bpf"))
}

/// Loads the object into the kernel, so that the verifier has its say.
fn load(object: &Path) -> anyhow::Result<()> {
    if !is_root() {
        println!("SKIP build-ebpf --check: loading {}: needs root", object.display());
        return Ok(());
    }
    let mut command = cargo();
    command.args(["run", "--quiet", "--locked", "--package", "underpass-loader", "--example", "probe", "--"]);
    tools::run(command.arg(object)).context("the kernel refused the BPF object that was just built")
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("{}: creating", folder.display()))?;
    }
    match fs::write(path, bytes) {
        Ok(()) => Ok(()),
        Err(error) => bail!("{}: writing: {error}", path.display()),
    }
}
