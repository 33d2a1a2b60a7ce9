//! Modules of a kernel: which a driver needs, by what the modules say of themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

/// Copies drivers and what they need to `target`, uncompressed, named by the order in which to load them. What is built
/// into the kernel needs no file.
pub(super) fn copy_with_dependencies(source: &Path, drivers: &[&str], target: &Path) -> Result<()> {
    let modules = Modules::read(source)?;
    let mut loaded = Vec::new();
    for driver in drivers {
        modules.load(driver, &mut loaded)?;
    }
    for (number, (name, bytes)) in loaded.into_iter().enumerate() {
        let path = target.join(format!("{number:02}-{name}.ko"));
        fs::write(&path, bytes).with_context(|| format!("{}: writing", path.display()))?;
    }
    Ok(())
}

/// What there is, by files and by what is built in.
struct Modules {
    files: Vec<PathBuf>,
    builtin: Vec<String>,
}

impl Modules {
    fn read(folder: &Path) -> Result<Self> {
        let builtin = fs::read_to_string(folder.join("modules.builtin")).context("modules.builtin")?;
        let mut files = Vec::new();
        collect(&folder.join("kernel"), &mut files)?;
        Ok(Self { files, builtin: builtin.lines().map(|line| name_of(Path::new(line))).collect() })
    }

    /// Puts a module after those that it needs, unless it is there or built in.
    fn load(&self, name: &str, loaded: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        if self.builtin.iter().chain(loaded.iter().map(|(name, _)| name)).any(|there| there == name) {
            return Ok(());
        }
        let file = self.files.iter().find(|file| name_of(file) == name);
        let file = file.with_context(|| format!("the kernel has no module {name}"))?;
        let bytes = read_module(file)?;
        for needed in dependencies(&bytes).with_context(|| format!("module {name}"))? {
            // The kernel refuses modules that need each other, so this ends.
            self.load(&needed, loaded)?;
        }
        loaded.push((name.to_owned(), bytes));
        Ok(())
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{}: reading", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` is the module `virtio_rng`.
fn name_of(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

fn read_module(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(file).with_context(|| format!("{}: reading", file.display()));
    }
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(file).output();
    let output = output.context("xz could not be started; install the package xz-utils")?;
    ensure!(output.status.success(), "xz: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}

/// The modules that a module says it needs.
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("not an ELF file")?;
    let section = file.section_by_name(".modinfo").context("no section .modinfo")?;
    let text = section.data().context("section .modinfo")?;
    // NAME=VALUE, each ended by a zero.
    let needed = text.split(|&byte| byte == 0).find_map(|field| field.strip_prefix(b"depends="));
    let Some(needed) = needed else { bail!("says nothing about what it needs") };
    let names = String::from_utf8_lossy(needed).replace('-', "_");
    Ok(names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use object::write;
    use object::{Architecture, BinaryFormat, Endianness, SectionKind};

    use super::*;

    fn module(information: &[u8]) -> Vec<u8> {
        let mut file = write::Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        let section = file.add_section(Vec::new(), b".modinfo".to_vec(), SectionKind::ReadOnlyData);
        file.append_section_data(section, information, 1);
        file.write().unwrap()
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel/drivers/net");
        fs::create_dir_all(&kernel).unwrap();
        fs::write(folder.path().join("modules.builtin"), "kernel/drivers/virtio/virtio.ko\n").unwrap();
        for (name, needs) in
            [("a-b", "virtio,failover"), ("c", "a_b,failover"), ("failover", ""), ("other", "missing")]
        {
            let information = format!("license=GPL\0depends={needs}\0name={name}\0");
            fs::write(kernel.join(format!("{name}.ko")), module(information.as_bytes())).unwrap();
        }
        let target = folder.path().join("target");
        fs::create_dir(&target).unwrap();
        copy_with_dependencies(folder.path(), &["c", "a_b"], &target).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["00-failover.ko", "01-a_b.ko", "02-c.ko"]);

        let error = copy_with_dependencies(folder.path(), &["other"], &target).unwrap_err();
        assert_eq!(error.to_string(), "the kernel has no module missing");
    }

    #[test]
    fn a_file_that_is_no_module_is_refused() {
        assert!(dependencies(b"text").is_err());
        assert!(dependencies(&module(b"license=GPL\0")).is_err());
    }
}
