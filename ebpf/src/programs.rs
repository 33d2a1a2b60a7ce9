//! The BPF programs of underpass, one module each, linked into one object.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mod redirect;
mod steer;

/// The kernel offers some helpers only to programs under a licence compatible with the GPL.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// No path panics; the verifier would refuse the loop otherwise.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("these are BPF programs; build them with: cargo xtask build-ebpf");
}
