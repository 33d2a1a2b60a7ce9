//! The programs that pass bytes from socket to socket in the kernel, and a worker's handle on their maps.
//!
//! Each worker has programs and maps of its own, so workers share nothing here either. The order of the calls that move
//! a body is what makes it safe; it stands where they are made, in the proxy's `forward` folder.

use std::fmt;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

use aya::maps::{HashMap, Map, MapData, MapError, RingBuf, SockHash};
use aya::programs::SkSkb;
use aya::{Ebpf, EbpfLoader};
use underpass_ebpf::{FLOW_ACCOUNT_SIZE, FlowAccount};

use crate::btf::{KERNEL_BTF, message_offset};
use crate::error::{LoadError, chain};
use crate::log::ProgramLog;
use crate::mapping::Mapping;
use crate::probe::kernel_release;
use crate::steering::Options;

const PARSER: &str = "redirect_parse";
const VERDICT: &str = "redirect_verdict";
/// Maps of the BPF object that a worker gets, in the order of [`RedirectPrograms::descriptors`].
const MAPS: [&str; REDIRECT_DESCRIPTORS] = ["SOURCES", "TARGETS", "FLOWS", "LEDGER", "WAKES"];
/// Number of descriptors that a worker needs.
pub const REDIRECT_DESCRIPTORS: usize = 5;
/// Earlier kernels lose data when a socket's buffer is full (`EAGAIN` in the backlog), send twice, or panic.
const KERNEL_MIN: (u32, u32) = (6, 16);
/// Most flows of one worker.
const FLOWS_MAX: u32 = 1 << 20;
/// A record of the ring with its header. A flow has one wake-up for each grant and one for its stop; the ring is emptied
/// before a flow is granted more, so four for each flow are more than can wait.
const RING_PER_FLOW: u32 = 4 * 16;

/// The programs, loaded, with the maps of one worker.
///
/// Dropping it ends what they do: they are detached from the map, and no new flow can begin.
pub struct RedirectPrograms {
    /// Keeps the programs attached.
    _ebpf: Ebpf,
    log: Option<ProgramLog>,
    maps: [OwnedFd; REDIRECT_DESCRIPTORS],
}

impl RedirectPrograms {
    /// Loads the programs, with room for so many flows at a time, 1 to 1,048,576.
    ///
    /// # Errors
    /// [`LoadError::Unavailable`] for a kernel on which the protocol is known to lose data, and where kernel or privileges do not
    /// allow it; [`LoadError::Step`] for a step that the kernel refused.
    pub fn load(flows: u32) -> Result<Self, LoadError> {
        if flows == 0 || flows > FLOWS_MAX {
            let remedy = "use 1 to 1048576";
            return Err(LoadError::Option { option: "flows", value: flows.to_string(), remedy });
        }
        let (release, version) = kernel_release();
        if version.is_some_and(|version| version < KERNEL_MIN) {
            let (major, minor) = KERNEL_MIN;
            return Err(LoadError::Unavailable {
                reason: format!(
                    "kernel {release} is older than {major}.{minor}, and may lose data between sockets"
                ),
                remedy: "boot a newer kernel".into(),
            });
        }
        let offset = message_offset(KERNEL_BTF.as_ref()).map_err(|error| LoadError::Unavailable {
            reason: error.to_string(),
            remedy: "boot a kernel with CONFIG_DEBUG_INFO_BTF".into(),
        })?;
        let object = Options::new(1).read_object()?;
        let mut ebpf = create(&object, flows, offset)?;
        let sources = match ebpf.map(MAPS[0]) {
            Some(Map::SockHash(map)) => duplicate(map)?,
            _ => return Err(LoadError::Object { what: format!("map {}", MAPS[0]) }),
        };
        let sources: SockHash<MapData, u64> = typed(sources, Map::SockHash).map_err(step("opening a map"))?;
        for name in [PARSER, VERDICT] {
            let program: &mut SkSkb = ebpf
                .program_mut(name)
                .and_then(|program| program.try_into().ok())
                .ok_or_else(|| LoadError::Object { what: format!("program {name}") })?;
            let failed = |what: &str, error| LoadError::step(format!("{what} the program {name}"), &error);
            program.load().map_err(|error| failed("loading", error))?;
            program.attach(sources.fd()).map_err(|error| failed("attaching", error))?;
        }
        let mut maps = Vec::with_capacity(REDIRECT_DESCRIPTORS);
        for name in MAPS {
            let missing = || LoadError::Object { what: format!("map {name}") };
            maps.push(match ebpf.map(name).ok_or_else(missing)? {
                Map::SockHash(map) | Map::HashMap(map) | Map::Array(map) | Map::RingBuf(map) => {
                    duplicate(map)?
                }
                _ => return Err(missing()),
            });
        }
        let maps = maps.try_into().map_err(|_| LoadError::Object { what: "a map".into() })?;
        Ok(Self { log: ProgramLog::take_from(&mut ebpf).ok(), _ebpf: ebpf, maps })
    }

    /// The programs' log lines. There is one such handle; later calls give `None`.
    pub fn take_log(&mut self) -> Option<ProgramLog> {
        self.log.take()
    }

    /// Descriptors of the maps, for [`RedirectMaps::open`] in the worker.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; REDIRECT_DESCRIPTORS] {
        self.maps.each_ref().map(AsFd::as_fd)
    }
}

impl fmt::Debug for RedirectPrograms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedirectPrograms").field("maps", &self.maps).finish_non_exhaustive()
    }
}

fn create(object: &[u8], flows: u32, offset: u32) -> Result<Ebpf, LoadError> {
    // A ring is a power of two pages.
    let ring = (flows * RING_PER_FLOW).next_power_of_two().max(64 * 1024);
    let mut loader = EbpfLoader::new();
    for name in &MAPS[..4] {
        loader.map_max_entries(name, flows);
    }
    loader
        .map_max_entries(MAPS[4], ring)
        .btf(None)
        .override_global("SKB_MESSAGE_OFFSET", &offset, true)
        .load(object)
        .map_err(|error| LoadError::step("creating the maps for redirection", &error))
}

fn duplicate(map: &MapData) -> Result<OwnedFd, LoadError> {
    map.fd().as_fd().try_clone_to_owned().map_err(|error| LoadError::step("duplicating a map", &error))
}

fn typed<T>(fd: OwnedFd, kind: fn(MapData) -> Map) -> Result<T, MapError>
where
    T: TryFrom<Map, Error = MapError>,
{
    T::try_from(kind(MapData::from_fd(fd)?))
}

fn step(what: &'static str) -> impl Fn(MapError) -> LoadError {
    move |error| LoadError::step(what, &error)
}

/// What a flow's account says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Bytes that the parser has let through.
    pub used: u64,
    /// The parser has met a byte beyond the limit: the source stands still, and what it has not let through can be read.
    pub stopped: bool,
}

/// A worker's handle on its maps. Needs the descriptors and no privilege.
pub struct RedirectMaps {
    sources: SockHash<MapData, u64>,
    targets: SockHash<MapData, u64>,
    flows: HashMap<MapData, u64, u32>,
    ledger: Mapping,
    wakes: RingBuf<MapData>,
    count: u32,
}

impl RedirectMaps {
    /// Takes the descriptors of [`RedirectPrograms::descriptors`].
    ///
    /// # Errors
    /// When one of them is not the map it should be, or cannot be mapped.
    pub fn open(descriptors: [OwnedFd; REDIRECT_DESCRIPTORS]) -> io::Result<Self> {
        let [sources, targets, flows, ledger, wakes] = descriptors;
        let other = |error: MapError| io::Error::other(format!("a map for redirection: {}", chain(&error)));
        let accounts = MapData::from_fd(ledger.try_clone()?).map_err(other)?;
        let count = accounts.info().map_err(other)?.max_entries();
        Ok(Self {
            sources: typed(sources, Map::SockHash).map_err(other)?,
            targets: typed(targets, Map::SockHash).map_err(other)?,
            flows: typed(flows, Map::HashMap).map_err(other)?,
            ledger: Mapping::new(ledger.as_fd(), 0, count as usize * FLOW_ACCOUNT_SIZE)?,
            wakes: typed(wakes, Map::RingBuf).map_err(other)?,
            count,
        })
    }

    /// How many flows there can be.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Gives the source with this cookie the account of a slot.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn bind(&mut self, cookie: u64, slot: u32) -> io::Result<()> {
        self.flows.insert(cookie, slot, 0).map_err(to_io)
    }

    /// Takes the account away.
    pub fn unbind(&mut self, cookie: u64) {
        ignore_absent(self.flows.remove(&cookie));
    }

    /// Sets an account to its beginning. The source must not be in the map.
    pub fn open_account(&self, slot: u32, limit: u64, wake_at: u64) {
        self.word(slot, offset_of!(FlowAccount, used)).store(0, Ordering::Relaxed);
        self.word(slot, offset_of!(FlowAccount, stopped)).store(0, Ordering::Relaxed);
        self.grant(slot, limit, wake_at);
    }

    /// Raises the limit of a running flow; `wake_at` is where its worker wants to be woken.
    #[inline]
    pub fn grant(&self, slot: u32, limit: u64, wake_at: u64) {
        // The wake-up first: a parser that sees the new limit must not run past the old mark unseen.
        self.word(slot, offset_of!(FlowAccount, wake_at)).store(wake_at, Ordering::Release);
        self.word(slot, offset_of!(FlowAccount, limit)).store(limit, Ordering::Release);
    }

    /// What an account says now.
    #[inline]
    pub fn account(&self, slot: u32) -> Account {
        // `stopped` first: once it is set, `used` does not move any more.
        let stopped = self.word(slot, offset_of!(FlowAccount, stopped)).load(Ordering::Acquire) != 0;
        let used = self.word(slot, offset_of!(FlowAccount, used)).load(Ordering::Acquire);
        Account { used, stopped }
    }

    /// Sets where the bytes of a source go.
    ///
    /// # Errors
    /// Those of bpf(2): `EOPNOTSUPP` for a target that is not established, `EINVAL` for one that has kernel TLS.
    pub fn insert_target(&mut self, cookie: u64, target: BorrowedFd<'_>) -> io::Result<()> {
        self.targets.insert(cookie, target.as_raw_fd(), 0).map_err(to_io)
    }

    /// Takes the target away. What has not been handed over to it is lost.
    pub fn remove_target(&mut self, cookie: u64) {
        ignore_absent(self.targets.remove(&cookie));
    }

    /// From here on the kernel reads the source.
    ///
    /// # Errors
    /// As [`Self::insert_target`].
    pub fn insert_source(&mut self, cookie: u64, source: BorrowedFd<'_>) -> io::Result<()> {
        self.sources.insert(cookie, source.as_raw_fd(), 0).map_err(to_io)
    }

    /// From here on userspace reads the source. Safe only when it stands still: what its parser is in the middle of is lost.
    pub fn remove_source(&mut self, cookie: u64) {
        ignore_absent(self.sources.remove(&cookie));
    }

    /// The slot of the next flow that wants to be looked at; `None` when all have been taken.
    pub fn next_wake(&mut self) -> Option<u32> {
        let record = self.wakes.next()?;
        Some(record.first_chunk().map_or(u32::MAX, |bytes| u32::from_ne_bytes(*bytes)))
    }

    /// Becomes readable when a flow wants to be looked at.
    pub fn wake_fd(&self) -> RawFd {
        self.wakes.as_fd().as_raw_fd()
    }

    /// Sockets that are in the maps, as sources and as targets; for tests and status.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn population(&self) -> io::Result<(usize, usize)> {
        let count = |map: &SockHash<MapData, u64>| {
            map.keys().try_fold(0, |count, key| key.map(|_| count + 1)).map_err(to_io)
        };
        Ok((count(&self.sources)?, count(&self.targets)?))
    }

    #[inline]
    fn word(&self, slot: u32, offset: usize) -> &std::sync::atomic::AtomicU64 {
        self.ledger.u64_at(slot as usize * FLOW_ACCOUNT_SIZE + offset)
    }
}

impl fmt::Debug for RedirectMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedirectMaps").field("count", &self.count).finish_non_exhaustive()
    }
}

fn to_io(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    }
}

/// A socket that has been closed is in no map any more: that is as good as removed.
fn ignore_absent(removed: Result<(), MapError>) {
    if let Err(error) = removed {
        let error = to_io(error);
        debug_assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "removing from a map: {error}");
    }
}
