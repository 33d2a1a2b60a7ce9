//! Takes the debugger's information out of a BPF object: the loader needs only the program, its maps and BTF.

use anyhow::Context;
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// Returns the object without the sections `.debug_*` and what relocates them.
pub(super) fn strip(object: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the BPF object is not an ELF file")?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = [&b".debug_"[..], b".rel.debug_"].iter().any(|prefix| name.starts_with(prefix));
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections among those of symbols, which the builder cannot write.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("the BPF object could not be written without its debug sections")?;
    Ok(stripped)
}
