//! What a BPF object was built from: a hash of the sources, recorded beside it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

const REBUILD: &str = "run: cargo xtask build-ebpf --release, and commit ebpf/prebuilt/";

/// The contents of `SOURCE_HASH`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Of everything that the object is built from.
    sources: String,
    /// Of the object itself, so that neither changes without the other.
    object: String,
}

impl Record {
    /// The record of an object that was just built.
    pub(super) fn of(root: &Path, object: &[u8]) -> anyhow::Result<Self> {
        Ok(Self { sources: hash_sources(root)?, object: hex(&Sha256::digest(object)) })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sources {}\nobject {}\n", self.sources, self.object)
    }
}

/// Where the record of an object stands.
pub(super) fn path_of(object: &Path) -> PathBuf {
    object.with_file_name("SOURCE_HASH")
}

/// Fails if the object is not that of the record, or the record not that of the sources.
pub(super) fn check(root: &Path, object: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(object).with_context(|| format!("{}: reading; {REBUILD}", object.display()))?;
    let path = path_of(object);
    let recorded =
        fs::read_to_string(&path).with_context(|| format!("{}: reading; {REBUILD}", path.display()))?;
    let record = Record::of(root, &bytes)?;
    if recorded == record.to_string() {
        return Ok(());
    }
    let sources_differ = !recorded.contains(&record.sources);
    let what = if sources_differ {
        "the sources have changed since the object was built"
    } else {
        "the object is another"
    };
    bail!("{}: {what}; {REBUILD}", path.display())
}

/// Hashes the programs' sources, and the exact dependencies that go into them.
fn hash_sources(root: &Path) -> anyhow::Result<String> {
    let mut files = vec![root.join("ebpf/Cargo.toml")];
    collect(&root.join("ebpf/src"), &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let bytes = fs::read(&file).with_context(|| format!("{}: reading", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
        // Lengths between, so that bytes cannot move from one file to the next unnoticed.
        hash.update(format!("{name} {}\n", bytes.len()));
        hash.update(bytes);
    }
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("Cargo.lock: reading")?;
    for package in locked_dependencies(&lock) {
        hash.update(format!("{package}\n"));
    }
    Ok(hex(&hash.finalize()))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{}: reading", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// The entries of Cargo.lock that the programs are compiled with, as `name version checksum`.
fn locked_dependencies(lock: &str) -> Vec<String> {
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    let is_ours = |name: &str| name.starts_with("aya-ebpf") || name.starts_with("aya-log-");
    let packages = lock.split("[[package]]").map(|block| (field(block, "name"), block));
    packages
        .filter(|(name, _)| is_ours(name))
        .map(|(name, block)| format!("{name} {} {}", field(block, "version"), field(block, "checksum")))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "version = 4\n\n[[package]]\nname = \"aya-ebpf\"\nversion = \"0.2.1\"\nchecksum = \"abc\"\n\n\
                        [[package]]\nname = \"libc\"\nversion = \"0.2.1\"\nchecksum = \"def\"\n";

    fn workspace() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("ebpf/src/deep")).unwrap();
        fs::create_dir_all(root.path().join("ebpf/prebuilt")).unwrap();
        for (name, text) in [
            ("Cargo.lock", LOCK),
            ("ebpf/Cargo.toml", "[package]"),
            ("ebpf/src/lib.rs", "one"),
            ("ebpf/src/deep/a.rs", "two"),
            ("ebpf/prebuilt/underpass.bpf.o", "object"),
        ] {
            fs::write(root.path().join(name), text).unwrap();
        }
        let record = Record::of(root.path(), b"object").unwrap().to_string();
        fs::write(root.path().join("ebpf/prebuilt/SOURCE_HASH"), record).unwrap();
        root
    }

    #[test]
    fn every_change_of_sources_dependencies_or_object_is_noticed() {
        let changes = [
            ("ebpf/src/deep/a.rs", "three"),
            ("ebpf/src/new.rs", ""),
            ("ebpf/Cargo.toml", "[package] "),
            ("ebpf/prebuilt/underpass.bpf.o", "another"),
            ("ebpf/prebuilt/SOURCE_HASH", ""),
            ("Cargo.lock", &LOCK.replace("abc", "abd")),
        ];
        for (name, text) in changes {
            let root = workspace();
            let object = root.path().join("ebpf/prebuilt/underpass.bpf.o");
            check(root.path(), &object).unwrap();
            fs::write(root.path().join(name), text).unwrap();
            let error = check(root.path(), &object).unwrap_err().to_string();
            assert!(error.contains("cargo xtask build-ebpf --release"), "{name}: {error}");
        }
    }

    #[test]
    fn what_goes_into_no_program_is_not_part_of_the_hash() {
        let root = workspace();
        fs::write(root.path().join("Cargo.lock"), LOCK.replace("def", "fed")).unwrap();
        fs::write(root.path().join("ebpf/README.md"), "text").unwrap();
        check(root.path(), &root.path().join("ebpf/prebuilt/underpass.bpf.o")).unwrap();
    }
}
