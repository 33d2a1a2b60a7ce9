//! What the running kernel and this process's privileges allow.

use std::fmt;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::{MapData, MapType};
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use underpass_ebpf::SLOT_SIZE;

use crate::btf::{KERNEL_BTF, Offsets};
use crate::error::chain;
use crate::slot::WorkerSlot;

/// The first kernel that shows a program of type SK_REUSEPORT the socket of its group.
const KERNEL_MIN: (u32, u32) = (5, 14);
const BPF_F_MMAPABLE: u32 = 1024;
const REMEDY_PRIVILEGE: &str = "run as root, or give the program CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (setcap, or AmbientCapabilities= of systemd)";

/// One thing that steering uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// What it is.
    pub name: &'static str,
    /// Whether it can be had.
    pub available: bool,
    /// Whether steering is impossible without; otherwise only a part of it is.
    pub required: bool,
    /// What was found.
    pub detail: String,
    /// What to do where it is missing.
    pub remedy: String,
}

/// What the kernel and this process's privileges allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Everything that was looked at.
    pub capabilities: Vec<Capability>,
}

impl Report {
    /// Whether everything is there that steering cannot do without.
    pub fn steering_available(&self) -> bool {
        self.missing().all(|capability| !capability.required)
    }

    /// What is not there.
    pub fn missing(&self) -> impl Iterator<Item = &Capability> {
        self.capabilities.iter().filter(|capability| !capability.available)
    }

    /// The first reason why steering is impossible.
    pub(crate) fn blocking(&self) -> Option<&Capability> {
        self.missing().find(|capability| capability.required)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Capability { name, available, required, detail, remedy } in &self.capabilities {
            let state = match (available, required) {
                (true, _) => "yes",
                (false, true) => "NO",
                (false, false) => "no",
            };
            writeln!(f, "{state:<4}{name}: {detail}")?;
            if !available && !remedy.is_empty() {
                writeln!(f, "    {remedy}")?;
            }
        }
        Ok(())
    }
}

/// Finds out by trying, where that can be tried. Leaves nothing behind.
pub fn probe() -> Report {
    let mut capabilities = vec![kernel(), privileges()];
    capabilities.extend(program());
    capabilities.extend([
        map("socket array", MapType::ReuseportSockArray),
        map("array", MapType::Array),
        map("hash map", MapType::Hash),
        map("per-CPU array", MapType::PerCpuArray),
        map("ring buffer", MapType::RingBuf),
        mapped_array(),
        kernel_reads(),
        unprivileged_bpf(),
    ]);
    Report { capabilities }
}

fn kernel() -> Capability {
    let (release, version) = kernel_release();
    let (major, minor) = KERNEL_MIN;
    Capability {
        name: "kernel",
        // A release that is not understood is left to the other probes to judge.
        available: version.is_none_or(|version| version >= KERNEL_MIN),
        required: true,
        detail: format!("{release} (at least {major}.{minor})"),
        remedy: format!("boot a kernel of version {major}.{minor} or newer"),
    }
}

/// The running kernel's release, and major and minor version where that is understood.
pub(crate) fn kernel_release() -> (String, Option<(u32, u32)>) {
    let release = nix::sys::utsname::uname()
        .map_or_else(|error| error.to_string(), |name| name.release().to_string_lossy().into_owned());
    let version = parse_release(&release);
    (release, version)
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn privileges() -> Capability {
    // Of this thread: threads may differ.
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let missing = missing_privileges(&status);
    let detail =
        if missing.is_empty() { "all there".into() } else { format!("without {}", missing.join(", ")) };
    Capability {
        name: "privileges",
        available: missing.is_empty(),
        // CAP_PERFMON alone only costs the reads of kernel memory.
        required: missing.iter().any(|&name| name != "CAP_PERFMON"),
        detail,
        remedy: REMEDY_PRIVILEGE.into(),
    }
}

/// The capabilities that are not in effect, by the contents of /proc/thread-self/status.
fn missing_privileges(status: &str) -> Vec<&'static str> {
    const SYS_ADMIN: u64 = 1 << 21;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u64, or: u64| effective & (1 << bit | or) != 0;
    let all = [
        ("CAP_BPF", has(39, SYS_ADMIN)),
        ("CAP_NET_ADMIN", has(12, SYS_ADMIN)),
        ("CAP_PERFMON", has(38, SYS_ADMIN)),
    ];
    all.into_iter().filter(|(_, has)| !has).map(|(name, _)| name).collect()
}

fn program() -> [Capability; 2] {
    let supported = is_program_supported(ProgramType::SkReuseport);
    let helper = is_helper_supported(ProgramType::SkReuseport, BpfHelper::BPF_FUNC_sk_select_reuseport);
    [
        tried("program type SK_REUSEPORT", supported.map_err(|error| chain(&error))),
        tried("helper sk_select_reuseport", helper.map_err(|error| chain(&error))),
    ]
}

fn map(name: &'static str, map_type: MapType) -> Capability {
    tried(name, is_map_supported(map_type).map_err(|error| chain(&error)))
}

fn mapped_array() -> Capability {
    let value_size = u32::try_from(SLOT_SIZE).unwrap_or(u32::MAX);
    let definition =
        aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY as u32, 4, value_size, 1, BPF_F_MMAPABLE);
    let mapped = MapData::create(definition, "underpass_probe", None)
        .map_err(|error| chain(&error))
        .and_then(|array| WorkerSlot::map(array.fd().as_fd(), 0).map_err(|error| error.to_string()));
    tried("array that can be memory-mapped", mapped.map(|_| true))
}

fn kernel_reads() -> Capability {
    let name = "reads of kernel memory (policy rx-queue, exact detection of stalled workers)";
    let offsets = Offsets::read(Path::new(KERNEL_BTF)).map_err(|error| error.to_string());
    let helper = is_helper_supported(ProgramType::SkReuseport, BpfHelper::BPF_FUNC_probe_read_kernel);
    let (available, detail, remedy) = match (offsets, helper) {
        (Err(error), _) => (false, error, "boot a kernel with CONFIG_DEBUG_INFO_BTF=y".into()),
        (Ok(_), Err(error)) => (false, chain(&error), REMEDY_PRIVILEGE.into()),
        (Ok(_), Ok(false)) => {
            let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
            let detail = format!("refused (lockdown: {})", lockdown.trim());
            (false, detail, format!("{REMEDY_PRIVILEGE}; leave the lockdown mode confidentiality"))
        }
        (Ok(_), Ok(true)) => (true, "allowed, layout known".into(), String::new()),
    };
    Capability { name, available, required: false, detail, remedy }
}

/// Nothing that steering needs, but what an administrator asks next when loading is refused.
fn unprivileged_bpf() -> Capability {
    let value = fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled");
    let detail = match value.as_deref().map(str::trim) {
        Ok("0") => "allowed, but not enough for steering".into(),
        Ok(value) => {
            format!("off (unprivileged_bpf_disabled={value}); workers need none: they get open descriptors")
        }
        Err(error) => format!("unknown: {error}"),
    };
    Capability {
        name: "BPF without privileges",
        available: true,
        required: false,
        detail,
        remedy: String::new(),
    }
}

fn tried(name: &'static str, result: Result<bool, String>) -> Capability {
    let (available, detail, remedy) = match result {
        Ok(true) => (true, "works".to_owned(), String::new()),
        Ok(false) => {
            (false, "not supported by this kernel".into(), "boot a kernel with CONFIG_BPF_SYSCALL=y".into())
        }
        Err(error) => (false, error, REMEDY_PRIVILEGE.into()),
    };
    Capability { name, available, required: true, detail, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_of_kernels() {
        assert_eq!(parse_release("6.1.0-22-cloud-amd64"), Some((6, 1)));
        assert_eq!(parse_release("5.14-rc1"), Some((5, 14)));
        assert_eq!(parse_release("unknown"), None);
    }

    #[test]
    fn capabilities_by_name() {
        let status = |mask: &str| format!("Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t{mask}\n");
        assert_eq!(missing_privileges(&status("000001ffffffffff")), [""; 0]);
        assert_eq!(missing_privileges(&status("000000c000001000")), [""; 0]);
        assert_eq!(missing_privileges(&status("0000000000200000")), [""; 0], "CAP_SYS_ADMIN includes them");
        assert_eq!(missing_privileges(&status("0000008000001000")), ["CAP_PERFMON"]);
        assert_eq!(missing_privileges("").len(), 3, "what is not known is not had");
    }
}
