//! Chooses the BPF object that is embedded: the one in the repository, or `UNDERPASS_BPF_OBJECT`.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=UNDERPASS_BPF_OBJECT");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let prebuilt = root.join("../ebpf/prebuilt/underpass.bpf.o");
    let object =
        env::var_os("UNDERPASS_BPF_OBJECT").filter(|path| !path.is_empty()).map_or(prebuilt, PathBuf::from);
    if !Path::new(&object).is_file() {
        println!("cargo:warning=BPF object {} is missing: cargo xtask build-ebpf", object.display());
    }
    println!("cargo:rerun-if-changed={}", object.display());
    println!("cargo:rustc-env=UNDERPASS_BPF_OBJECT_EMBEDDED={}", object.display());
}
