//! What a guest finds when it starts: busybox, the proxy with its libraries, drivers, and two files of tests/vm/.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::kernel::Kernel;
use super::network::GUEST;
use super::traffic::Backends;
use crate::tools::{find, workspace_root};

/// Where the guest keeps the configuration of the proxy.
pub(super) const CONFIGURATION: &str = "/etc/underpass.toml";

/// Where the guest keeps the programs that test.
pub(super) const TESTS: &str = "/tests";
/// What those start, which busybox has not or not complete.
const TESTS_START: [&str; 2] = ["ethtool", "ip"];

/// What goes into an image besides the kernel's drivers.
pub(super) struct Contents<'a> {
    /// The proxy's executable.
    pub(super) proxy: &'a Path,
    /// A BPF object to be used instead of the one in the executable.
    pub(super) bpf_object: Option<&'a Path>,
    /// Where the proxy's backends are.
    pub(super) backends: Backends,
    /// Programs that test, by name.
    pub(super) tests: &'a [(String, PathBuf)],
}

/// Builds an initramfs in `folder`; returns its path.
pub(super) fn build(folder: &Path, kernel: &Kernel, contents: &Contents<'_>) -> Result<PathBuf> {
    let tree = Tree { root: folder.join("tree") };
    tree.clear()?;
    for empty in ["dev", "proc", "sys", "run", "tmp", "etc", "var/log", "modules"] {
        fs::create_dir_all(tree.root.join(empty))?;
    }
    let busybox = find("busybox").context("there is no busybox; install the package busybox-static")?;
    tree.program("bin/busybox", &busybox)?;
    let stripped = folder.join("stripped");
    let own = [("bin/underpass".to_owned(), contents.proxy)].into_iter();
    let tests = contents
        .tests
        .iter()
        .map(|(name, path)| (format!("{}/{name}", TESTS.trim_start_matches('/')), path.as_path()));
    for (path, program) in own.chain(tests) {
        strip(program, &stripped)?;
        tree.program(&path, &stripped)?;
    }
    for name in TESTS_START {
        let program = find(name).with_context(|| format!("there is no {name}"))?;
        tree.program(&format!("sbin/{name}"), &program)?;
    }
    if let Some(object) = contents.bpf_object {
        tree.copy("lib/underpass.bpf.o", object)?;
    }
    for module in &kernel.modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        tree.copy(&format!("modules/{name}"), module)?;
    }
    let ours = |name: &str| {
        let path = workspace_root().join("tests/vm").join(name);
        fs::read_to_string(&path).with_context(|| format!("{}: reading", path.display()))
    };
    tree.text("init", &ours("init")?.replace("GUEST_ADDRESS", &GUEST.to_string()))?;
    fs::set_permissions(tree.root.join("init"), fs::Permissions::from_mode(0o755))?;
    let configuration = ours("underpass.toml")?
        .replace("HTTP_ADDRESS", &contents.backends.http.to_string())
        .replace("ECHO_ADDRESS", &contents.backends.echo.to_string());
    tree.text(CONFIGURATION.trim_start_matches('/'), &configuration)?;
    tree.text("etc/passwd", "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")?;
    tree.text("etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
    tree.pack(&folder.join("initramfs"))
}

/// The folder that becomes the guest's root.
struct Tree {
    root: PathBuf,
}

impl Tree {
    fn clear(&self) -> Result<()> {
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{}: removing", self.root.display()))
            }
            _ => Ok(()),
        }
    }

    fn text(&self, path: &str, text: &str) -> Result<()> {
        let path = self.root.join(path);
        fs::write(&path, text).with_context(|| format!("{}: writing", path.display()))
    }

    fn copy(&self, path: &str, from: &Path) -> Result<()> {
        let to = self.root.join(path);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).with_context(|| format!("{}: creating", folder.display()))?;
        }
        fs::copy(from, &to).with_context(|| format!("{}: copying to {}", from.display(), to.display()))?;
        Ok(())
    }

    /// A program with the libraries that it is linked to, each where it is here.
    fn program(&self, path: &str, from: &Path) -> Result<()> {
        self.copy(path, from)?;
        let output = Command::new("ldd").arg(from).output().context("ldd could not be started")?;
        // It fails for a program that is linked to none.
        for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
            self.copy(library.trim_start_matches('/'), Path::new(library))?;
        }
        Ok(())
    }

    /// Packs all of it as the kernel expects it.
    fn pack(&self, target: &Path) -> Result<PathBuf> {
        let mut names = Vec::new();
        list(&self.root, Path::new("."), &mut names)?;
        let file = fs::File::create(target).with_context(|| format!("{}: creating", target.display()))?;
        let mut cpio = Command::new("cpio")
            .args(["--create", "--format=newc", "--owner=0:0", "--null", "--quiet"])
            .current_dir(&self.root)
            .stdin(Stdio::piped())
            .stdout(file)
            .spawn()
            .context("cpio could not be started; install the package cpio")?;
        let mut input = cpio.stdin.take().context("no pipe to cpio")?;
        input.write_all(&names)?;
        drop(input);
        let status = cpio.wait()?;
        ensure!(status.success(), "cpio ended with {status}");
        Ok(target.to_owned())
    }
}

/// Names of everything below a folder, folders before what is in them, each ended by a zero.
fn list(root: &Path, folder: &Path, names: &mut Vec<u8>) -> Result<()> {
    names.extend_from_slice(folder.as_os_str().as_encoded_bytes());
    names.push(0);
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, &path, names)?;
        } else {
            names.extend_from_slice(path.as_os_str().as_encoded_bytes());
            names.push(0);
        }
    }
    Ok(())
}

/// The paths in what ldd prints: `libc.so.6 => /lib/libc.so.6 (0x...)`, `/lib64/ld-linux-x86-64.so.2 (0x...)`.
fn libraries(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).collect()
}

/// Leaves out the debugger's information: a guest unpacks the image with an emulated processor.
fn strip(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("strip").arg("-o").arg(to).arg(from).status();
    let status = status.context("strip could not be started; install the package binutils")?;
    ensure!(status.success(), "strip ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_that_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibgcc_s.so.1 => /lib/x/libgcc_s.so.1 (0x00007f01)\n\
            \tlibc.so.6 => /lib/x/libc.so.6 (0x00007f02)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f03)\n";
        assert_eq!(
            libraries(text),
            ["/lib/x/libgcc_s.so.1", "/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
        assert_eq!(libraries("\tnot a dynamic executable\n"), [""; 0]);
    }

    #[test]
    fn folders_are_listed_before_what_is_in_them() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/b"), "").unwrap();
        let mut names = Vec::new();
        list(folder.path(), Path::new("."), &mut names).unwrap();
        assert_eq!(names, b".\0./a\0./a/b\0");
    }
}
