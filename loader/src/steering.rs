//! The supervisor's side of steering: loads the program `steer`, and binds listeners and workers to it.

mod matrix;
mod options;

use std::collections::HashMap as StdHashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, ReusePortSockArray};
use aya::programs::SkReuseport;
use aya::{Ebpf, EbpfLoader};
use underpass_ebpf::{Config, Outcomes, QueueKey, Watch};

pub use self::matrix::{Cell, Matrix};
pub use self::options::{Options, Policy};
use crate::btf::{KERNEL_BTF, Offsets};
use crate::error::{LoadError, chain};
use crate::log::ProgramLog;
use crate::pod::Plain;
use crate::probe::probe;
use crate::slot::{SlotSnapshot, WorkerSlot};
use crate::sys;

const PROGRAM: &str = "steer";
/// The longest name that the kernel shows for an object is 15 bytes; these are the maps' names in the BPF object.
const CONFIG: &str = "CONFIG";
const SLOTS: &str = "SLOTS";
const WATCH: &str = "WATCH";
const CPUS: &str = "CPUS";
const QUEUES: &str = "QUEUES";
const LISTENERS: &str = "LISTENERS";
const SOCKETS: &str = "SOCKETS";
const MATRIX: &str = "MATRIX";

/// The program `steer`, loaded, with its maps.
///
/// Dropping it does not detach the program from listeners, because their sockets may live on in a successor; see
/// [`Steering::detach_listener`].
pub struct Steering {
    /// Keeps the program loaded.
    ebpf: Ebpf,
    workers: u16,
    config: Array<MapData, Plain<Config>>,
    slots: MapData,
    watch: Array<MapData, Plain<Watch>>,
    cpus: Array<MapData, u32>,
    queues: HashMap<MapData, Plain<QueueKey>, u32>,
    listeners: HashMap<MapData, u64, u32>,
    sockets: ReusePortSockArray<MapData>,
    matrix: PerCpuArray<MapData, Plain<Outcomes>>,
    log: Option<ProgramLog>,
    /// This process's own view of each worker's slot.
    slot_views: Vec<WorkerSlot>,
    /// The groups that are attached, by name.
    groups: StdHashMap<String, Group>,
    groups_max: u16,
    /// Why kernel memory cannot be read, if it cannot.
    no_kernel_reads: Option<String>,
}

/// The sockets of one listener.
#[derive(Debug)]
struct Group {
    /// Number of the group; its sockets begin at this times the number of workers.
    number: u16,
    /// Cookie of each worker's socket.
    cookies: Vec<u64>,
}

/// Which worker takes the connections of an RX queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueWorker {
    /// Index of the interface.
    pub interface: u32,
    /// Number of the queue, from 0.
    pub queue: u32,
    /// The worker.
    pub worker: u16,
}

impl Steering {
    /// Loads the program and creates its maps. No listener is steered yet, and no worker runs.
    ///
    /// # Errors
    /// [`LoadError::Unavailable`] where kernel or privileges do not allow it: the caller goes on without steering.
    pub fn load(options: &Options) -> Result<Self, LoadError> {
        options.check()?;
        let object = options.read_object()?;
        let offsets = if options.kernel_reads {
            Offsets::read(KERNEL_BTF.as_ref()).map_err(|error| error.to_string())
        } else {
            Err("switched off by option".into())
        };
        match Self::load_with(options, &object, &offsets) {
            Ok(steering) => Ok(steering),
            Err(LoadError::Object { what }) => Err(LoadError::Object { what }),
            Err(error) => Self::load_without_reads_or_explain(options, &object, error, offsets.is_ok()),
        }
    }

    /// Tries again without reads of kernel memory, which need a privilege more; else says what is missing.
    fn load_without_reads_or_explain(
        options: &Options,
        object: &[u8],
        error: LoadError,
        had_reads: bool,
    ) -> Result<Self, LoadError> {
        let report = probe();
        if let Some(blocking) = report.blocking() {
            return Err(LoadError::Unavailable {
                reason: format!("{}: {}", blocking.name, blocking.detail),
                remedy: blocking.remedy.clone(),
            });
        }
        let Some(missing) = report.missing().next().filter(|_| had_reads) else { return Err(error) };
        Self::load_with(options, object, &Err(format!("{}: {}", missing.name, missing.detail)))
    }

    fn load_with(
        options: &Options,
        object: &[u8],
        offsets: &Result<Offsets, String>,
    ) -> Result<Self, LoadError> {
        let mut ebpf = load_object(options, object, offsets.as_ref().ok())?;
        let program: &mut SkReuseport = ebpf
            .program_mut(PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| LoadError::Object { what: format!("program {PROGRAM}") })?;
        program.load().map_err(|error| LoadError::step("loading the program steer", &error))?;
        let Some(Map::Array(slots)) = ebpf.take_map(SLOTS) else {
            return Err(LoadError::Object { what: format!("map {SLOTS}") });
        };
        let slot_views = (0..options.workers)
            .map(|index| WorkerSlot::map(slots.fd().as_fd(), index))
            .collect::<Result<_, _>>()
            .map_err(|error| LoadError::step("mapping the workers' slots", &error))?;
        let mut steering = Self {
            workers: options.workers,
            config: take(&mut ebpf, CONFIG)?,
            slots,
            watch: take(&mut ebpf, WATCH)?,
            cpus: take(&mut ebpf, CPUS)?,
            queues: take(&mut ebpf, QUEUES)?,
            listeners: take(&mut ebpf, LISTENERS)?,
            sockets: take(&mut ebpf, SOCKETS)?,
            matrix: take(&mut ebpf, MATRIX)?,
            log: ProgramLog::take_from(&mut ebpf).ok(),
            slot_views,
            groups: StdHashMap::new(),
            groups_max: options.listeners_max,
            no_kernel_reads: offsets.as_ref().err().cloned(),
            ebpf,
        };
        steering.write_config(options.config())?;
        steering.check_policy(options.policy)?;
        Ok(steering)
    }

    /// Steers a listener. `sockets` are its listening sockets, all of one SO_REUSEPORT group, at each worker's index.
    ///
    /// # Errors
    /// [`LoadError::Listener`]; then the listener is as it was before, steered by the kernel.
    pub fn attach_listener(&mut self, name: &str, sockets: &[BorrowedFd<'_>]) -> Result<(), LoadError> {
        if sockets.len() != usize::from(self.workers) {
            let reason =
                format!("has {} sockets for {} workers; give it one for each", sockets.len(), self.workers);
            return Err(LoadError::listener(name, reason));
        }
        if self.groups.contains_key(name) {
            return Err(LoadError::listener(name, "is attached already; detach it first"));
        }
        let number = self.free_group().ok_or_else(|| {
            let reason =
                format!("there are {} listeners already; load with a higher listeners_max", self.groups_max);
            LoadError::listener(name, reason)
        })?;
        self.groups.insert(name.to_owned(), Group { number, cookies: vec![0; sockets.len()] });
        let attached = (0..self.workers)
            .zip(sockets)
            .try_for_each(|(worker, &socket)| self.insert_socket(name, worker, socket))
            .and_then(|()| match sockets.first() {
                Some(socket) => self.program()?.attach(socket).map_err(|error| attach_error(name, &error)),
                None => Ok(()),
            });
        if attached.is_err() {
            self.forget_group(name);
        }
        attached
    }

    /// Puts another socket of the same group in the place of a worker's. New connections go there at once; the old
    /// socket is to be closed, or the kernel goes on to choose it where the program leaves the choice to it.
    pub fn replace_socket(
        &mut self,
        listener: &str,
        worker: u16,
        socket: BorrowedFd<'_>,
    ) -> Result<(), LoadError> {
        if worker >= self.workers {
            return Err(LoadError::listener(listener, format!("there is no worker {worker}")));
        }
        self.insert_socket(listener, worker, socket)
    }

    /// Takes a worker's socket of a listener out: its connections go to others.
    pub fn remove_socket(&mut self, listener: &str, worker: u16) -> Result<(), LoadError> {
        let index = self.socket_index(listener, worker)?;
        match self.sockets.clear_index(&index) {
            Ok(()) => Ok(()),
            // The slot of a socket that was closed empties itself.
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(LoadError::listener(listener, format!("removing a socket: {}", chain(&error)))),
        }
    }

    /// Ends the steering of a listener, which falls back to the kernel's choice. `socket` is any of its group.
    pub fn detach_listener(&mut self, name: &str, socket: BorrowedFd<'_>) -> Result<(), LoadError> {
        if !self.groups.contains_key(name) {
            return Err(LoadError::listener(name, "is not attached"));
        }
        let detached = SkReuseport::detach(socket);
        self.forget_group(name);
        detached.map_err(|error| LoadError::listener(name, format!("detaching: {}", chain(&error))))
    }

    /// How connections are steered; takes effect with the next.
    pub fn set_policy(&mut self, policy: Policy) -> Result<(), LoadError> {
        self.check_policy(policy)?;
        let config = self.read_config()?;
        self.write_config(Config { policy: policy.to_abi(), ..config })
    }

    /// How connections are steered.
    pub fn policy(&self) -> Result<Policy, LoadError> {
        Ok(Policy::from_abi(self.read_config()?.policy))
    }

    /// Only workers of this generation get connections from now on.
    pub fn set_generation(&mut self, generation: u32) -> Result<(), LoadError> {
        let config = self.read_config()?;
        self.write_config(Config { generation, ..config })
    }

    /// Which worker belongs to which CPU; CPUs that are not named have none.
    pub fn set_cpus(&mut self, cpus: &[(u32, u16)]) -> Result<(), LoadError> {
        let step = |error: MapError| LoadError::step("setting the worker of a CPU", &error);
        for (cpu, worker) in cpus {
            self.check_worker(*worker)?;
            if *cpu >= self.cpus.len() {
                let remedy = "use the number of a CPU of this machine";
                return Err(LoadError::Option { option: "cpu", value: cpu.to_string(), remedy });
            }
        }
        for cpu in 0..self.cpus.len() {
            let worker = cpus.iter().find(|(named, _)| *named == cpu).map(|(_, worker)| *worker);
            self.cpus.set(cpu, table_entry(worker), 0).map_err(step)?;
        }
        Ok(())
    }

    /// Which worker belongs to which RX queue. Connections from other queues go by their CPU.
    pub fn set_queues(&mut self, queues: &[QueueWorker]) -> Result<(), LoadError> {
        for queue in queues {
            self.check_worker(queue.worker)?;
        }
        let step = |error: MapError| LoadError::step("setting the worker of a queue", &error);
        let keys: Vec<Plain<QueueKey>> = self.queues.keys().collect::<Result<_, _>>().map_err(step)?;
        let key = |queue: &QueueWorker| QueueKey { interface: queue.interface, queue: queue.queue };
        for stale in keys.iter().filter(|stale| !queues.iter().any(|queue| key(queue) == stale.0)) {
            self.queues.remove(stale).map_err(step)?;
        }
        for queue in queues {
            self.queues.insert(Plain(key(queue)), table_entry(Some(queue.worker)), 0).map_err(step)?;
        }
        Ok(())
    }

    /// The array of the workers' slots: pass it to workers, for [`WorkerSlot::map`].
    pub fn slots_fd(&self) -> BorrowedFd<'_> {
        self.slots.fd().as_fd()
    }

    /// What a worker publishes; `None` for one that does not exist.
    pub fn worker(&self, index: u16) -> Option<SlotSnapshot> {
        self.slot_views.get(usize::from(index)).map(WorkerSlot::snapshot)
    }

    /// Takes the slot of a worker that is gone: it gets no connections until its successor has called
    /// [`WorkerSlot::start`]. What waits in its accept queues stays there.
    pub fn reset_worker(&mut self, index: u16) -> Result<(), LoadError> {
        self.check_worker(index)?;
        if let Some(slot) = self.slot_views.get(usize::from(index)) {
            slot.reset();
        }
        let forgotten = self.watch.set(u32::from(index), Plain(Watch::default()), 0);
        forgotten.map_err(|error| LoadError::step("forgetting what a worker left waiting", &error))
    }

    /// How many connections went where, and why.
    pub fn matrix(&self) -> Result<Matrix, LoadError> {
        let mut matrix = Matrix::new(self.workers);
        for row in 0..=self.workers {
            let per_cpu = self.matrix.get(&u32::from(row), 0);
            let per_cpu = per_cpu.map_err(|error| LoadError::step("reading the matrix", &error))?;
            let worker = (row < self.workers).then_some(row);
            matrix.add(worker, per_cpu.iter().map(|outcomes| &outcomes.0));
        }
        Ok(matrix)
    }

    /// The program's log lines. There is one such handle; later calls give `None`.
    pub fn take_log(&mut self) -> Option<ProgramLog> {
        self.log.take()
    }

    /// Why the policy `rx-queue` and the look into accept queues cannot be had; `None` where they can.
    pub fn reduced(&self) -> Option<&str> {
        self.no_kernel_reads.as_deref()
    }

    /// How many instructions the kernel's verifier went through; of a million that it allows.
    pub fn verified_instructions(&self) -> Option<u32> {
        self.program().ok()?.info().ok()?.verified_instruction_count()
    }

    fn program(&self) -> Result<&SkReuseport, LoadError> {
        let program = self.ebpf.program(PROGRAM).and_then(|program| program.try_into().ok());
        program.ok_or_else(|| LoadError::Object { what: format!("program {PROGRAM}") })
    }

    fn insert_socket(
        &mut self,
        listener: &str,
        worker: u16,
        socket: BorrowedFd<'_>,
    ) -> Result<(), LoadError> {
        let index = self.socket_index(listener, worker)?;
        let cookie = sys::socket_cookie(socket)
            .map_err(|error| LoadError::listener(listener, format!("reading a socket's cookie: {error}")))?;
        match self.sockets.set(index, &socket.as_raw_fd(), 0) {
            Ok(()) => {}
            // A socket is taken once only, so this is the answer for one that is in its place already.
            Err(error)
                if os_error(&error) == Some(libc::EBUSY) && self.cookie_of(listener, worker) == cookie => {}
            Err(error) => return Err(LoadError::listener(listener, socket_error(worker, &error))),
        }
        let first = index - u32::from(worker);
        self.listeners.insert(cookie, first, 0).map_err(|error| {
            LoadError::listener(listener, format!("noting a socket's cookie: {}", chain(&error)))
        })?;
        let place =
            self.groups.get_mut(listener).and_then(|group| group.cookies.get_mut(usize::from(worker)));
        let replaced = place.map_or(0, |place| std::mem::replace(place, cookie));
        if replaced != 0 && replaced != cookie {
            // Not there any more is as good as removed.
            let _ = self.listeners.remove(&replaced);
        }
        Ok(())
    }

    /// 0 for a worker that has no socket on the listener.
    fn cookie_of(&self, listener: &str, worker: u16) -> u64 {
        let group = self.groups.get(listener);
        group.and_then(|group| group.cookies.get(usize::from(worker))).copied().unwrap_or(0)
    }

    fn socket_index(&self, listener: &str, worker: u16) -> Result<u32, LoadError> {
        self.check_worker(worker)?;
        let group =
            self.groups.get(listener).ok_or_else(|| LoadError::listener(listener, "is not attached"))?;
        Ok(u32::from(group.number) * u32::from(self.workers) + u32::from(worker))
    }

    fn free_group(&self) -> Option<u16> {
        (0..self.groups_max).find(|number| self.groups.values().all(|group| group.number != *number))
    }

    /// Takes the sockets and cookies of a group out. What is not there any more is as good as removed.
    fn forget_group(&mut self, name: &str) {
        let Some(group) = self.groups.remove(name) else { return };
        let first = u32::from(group.number) * u32::from(self.workers);
        for (worker, cookie) in (0..).zip(group.cookies) {
            let _ = self.listeners.remove(&cookie);
            let _ = self.sockets.clear_index(&(first + worker));
        }
    }

    fn check_worker(&self, worker: u16) -> Result<(), LoadError> {
        if worker < self.workers {
            return Ok(());
        }
        let remedy = "workers are numbered from 0, and their number is fixed when steering is loaded";
        Err(LoadError::Option { option: "worker", value: worker.to_string(), remedy })
    }

    fn check_policy(&self, policy: Policy) -> Result<(), LoadError> {
        match &self.no_kernel_reads {
            Some(reason) if policy == Policy::RxQueue => Err(LoadError::Unavailable {
                reason: format!("the policy rx-queue needs to read kernel memory: {reason}"),
                remedy: "use the policy cpu".into(),
            }),
            _ => Ok(()),
        }
    }

    fn read_config(&self) -> Result<Config, LoadError> {
        let config =
            self.config.get(&0, 0).map_err(|error| LoadError::step("reading the configuration", &error))?;
        Ok(config.0)
    }

    fn write_config(&mut self, config: Config) -> Result<(), LoadError> {
        let written = self.config.set(0, Plain(config), 0);
        written.map_err(|error| LoadError::step("writing the configuration", &error))
    }
}

impl std::fmt::Debug for Steering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steering")
            .field("workers", &self.workers)
            .field("groups", &self.groups)
            .field("reduced", &self.no_kernel_reads)
            .finish_non_exhaustive()
    }
}

fn load_object(options: &Options, object: &[u8], offsets: Option<&Offsets>) -> Result<Ebpf, LoadError> {
    let workers = u32::from(options.workers);
    let sockets = workers * u32::from(options.listeners_max);
    let cpus = aya::util::nr_cpus().map_err(|(path, error)| LoadError::step(path, &error))?;
    let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
    let mut loader = EbpfLoader::new();
    loader
        .map_max_entries(SLOTS, workers)
        .map_max_entries(WATCH, workers)
        .map_max_entries(CPUS, cpus)
        .map_max_entries(QUEUES, options.queues_max)
        .map_max_entries(LISTENERS, sockets)
        .map_max_entries(SOCKETS, sockets)
        .map_max_entries(MATRIX, workers + 1)
        // Relocations against the kernel's types are not used: the offsets are constants below.
        .btf(None)
        .override_global("WORKERS", &workers, true);
    let reads = u32::from(offsets.is_some());
    loader.override_global("KERNEL_READS", &reads, true);
    if let Some(offsets) = offsets {
        loader
            .override_global("REUSEPORT_SKB", &offsets.reuseport_skb, true)
            .override_global("REUSEPORT_SELECTED", &offsets.reuseport_selected, true)
            .override_global("SKB_QUEUE_MAPPING", &offsets.skb_queue_mapping, true)
            .override_global("SKB_INTERFACE", &offsets.skb_interface, true)
            .override_global("SOCK_BACKLOG", &offsets.sock_backlog, true)
            .override_global("SOCK_BACKLOG_MAX", &offsets.sock_backlog_max, true)
            .override_global("SOCK_COOKIE", &offsets.sock_cookie, true);
    }
    loader.load(object).map_err(|error| LoadError::step("creating the maps", &error))
}

fn take<T>(ebpf: &mut Ebpf, name: &str) -> Result<T, LoadError>
where
    T: TryFrom<Map>,
{
    let map = ebpf.take_map(name).and_then(|map| T::try_from(map).ok());
    map.ok_or_else(|| LoadError::Object { what: format!("map {name}") })
}

/// How the tables store a worker: see [`underpass_ebpf::NO_WORKER`].
fn table_entry(worker: Option<u16>) -> u32 {
    worker.map_or(underpass_ebpf::NO_WORKER, |worker| u32::from(worker) + 1)
}

fn os_error(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

fn is_not_found(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound) || os_error(error) == Some(libc::ENOENT)
}

fn socket_error(worker: u16, error: &MapError) -> String {
    let why = match os_error(error) {
        Some(libc::EINVAL) => "it must have SO_REUSEPORT, be bound, and listen",
        Some(libc::EBUSY) => "it is in another socket array or socket map already",
        _ => "",
    };
    format!(
        "socket of worker {worker} is not taken: {}{}{why}",
        chain(error),
        if why.is_empty() { "" } else { ": " }
    )
}

fn attach_error(name: &str, error: &aya::programs::ProgramError) -> LoadError {
    LoadError::listener(name, format!("attaching the program steer: {}", chain(error)))
}
