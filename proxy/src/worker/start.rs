//! How a worker comes to be: the supervisor's first messages, the core it is pinned to, the privileges it gives up.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use mio::unix::SourceFd;
use mio::{Interest, Poll};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use underpass_loader::{REDIRECT_DESCRIPTORS, WorkerSlot};

use super::CONTROL_FD;
use super::connection::{CONTROL, Connections, REDIRECT, most};
use super::control::apply;
use super::core::Core;
use super::drain::Ended;
use super::event_loop::Worker;
use super::log::AccessLog;
use super::session::OVERFLOW;
use super::steering::SteeringPlace;
use crate::forward::Redirector;
use crate::ipc::{Channel, ToSupervisor, ToWorker};
use crate::metrics::Block;

/// How long the supervisor may take between two messages at start.
const START_TIMEOUT_MS: u16 = 10_000;

/// What a worker gives up before it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// It is pinned to its core, becomes the configured user, and drops every capability.
    Full,
    /// Nothing: for a worker inside a process that does other things too, such as a test.
    None,
}

/// The whole life of a worker process, whose control channel is at [`CONTROL_FD`].
pub fn run_from_environment() -> ExitCode {
    // SAFETY: by the contract with the supervisor this descriptor is the control channel, and nobody else in this
    // process, which has just begun, owns it.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
    match serve(Channel::from_fd(control), Confinement::Full) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("underpass worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Serves on this thread what the supervisor at the other end of the channel says, until it says to stop.
///
/// # Errors
/// What kept the worker from starting; the supervisor has been told the same.
pub fn serve(channel: Channel, confinement: Confinement) -> anyhow::Result<Ended> {
    let mut worker = match start(channel.as_fd().try_clone_to_owned()?, confinement) {
        Ok(worker) => worker,
        Err(error) => {
            let _ = channel.send(&ToSupervisor::Refused { reason: format!("{error:#}") }, &[]);
            return Err(error);
        }
    };
    drop(channel);
    Ok(worker.run()?)
}

fn start(control: OwnedFd, confinement: Confinement) -> anyhow::Result<Worker> {
    let mut channel = Channel::from_fd(control);
    let (hello, descriptors) = next(&channel)?;
    let ToWorker::Hello { index, cpu, generation, access_log, steering, redirect, seed, settings } = hello
    else {
        bail!("the first message from the supervisor was not the greeting");
    };
    let mut descriptors = descriptors.into_iter();
    let mut descriptor = |what: &str| descriptors.next().ok_or_else(|| anyhow!("the {what} was not passed"));
    let metrics = Block::map(descriptor("metrics memory")?)?;
    let pipe = if access_log { Some(descriptor("access log")?) } else { None };
    let slot =
        if steering { Some(WorkerSlot::map(descriptor("steering map")?.as_fd(), index)?) } else { None };
    let redirector = if redirect {
        let maps: Vec<OwnedFd> = descriptors.by_ref().take(REDIRECT_DESCRIPTORS).collect();
        let maps = maps.try_into().map_err(|_| anyhow!("the maps for redirection were not passed"))?;
        Some(Redirector::open(maps, settings.limits.redirect_credit)?)
    } else {
        None
    };
    if confinement == Confinement::Full {
        pin(cpu)?;
    }
    let poll = Poll::new().context("epoll")?;
    let registry = poll.registry().try_clone().context("epoll")?;
    let sessions = settings.limits.connections as usize + OVERFLOW;
    let log = AccessLog::new(pipe, &settings.log, index, sessions)
        .map_err(|error| anyhow!("log.access_template: {error}"))?;
    if let Some(redirector) = &redirector {
        poll.registry().register(&mut SourceFd(&redirector.wake_fd()), REDIRECT, Interest::READABLE)?;
    }
    let mut core = Core::new(registry, *settings, metrics, log, seed);
    core.redirector = redirector;
    let mut connections = Connections::with_capacity(most(&core.settings));
    let mut place = slot.map(|slot| SteeringPlace::new(slot, generation));
    loop {
        match next(&channel)? {
            (ToWorker::Run, _) => break,
            (ToWorker::Publish, _) => place.iter_mut().for_each(|place| place.publish(&core.settings)),
            (ToWorker::Change { revision, steps, .. }, descriptors) => {
                core.revision = revision;
                let mut descriptors = VecDeque::from(descriptors);
                for step in steps {
                    let applied = apply(&mut core, &mut connections, step, &mut descriptors);
                    applied.map_err(|reason| anyhow!(reason))?;
                }
            }
            (ToWorker::Health { backends }, _) => core.set_health(&backends),
            _ => bail!("a message from the supervisor came out of its turn"),
        }
    }
    if confinement == Confinement::Full {
        super::privileges::drop_all(&core.settings.user)?;
    }
    poll.registry().register(&mut SourceFd(&raw_fd(&channel)), CONTROL, Interest::READABLE)?;
    channel = tell_running(channel)?;
    Ok(Worker::new(core, connections, poll, channel, place))
}

fn raw_fd(channel: &Channel) -> std::os::fd::RawFd {
    std::os::fd::AsRawFd::as_raw_fd(&channel.as_fd())
}

fn tell_running(channel: Channel) -> io::Result<Channel> {
    channel.send(&ToSupervisor::Running { pid: std::process::id() }, &[])?;
    Ok(channel)
}

/// The next message; waits for it.
fn next(channel: &Channel) -> anyhow::Result<(ToWorker, Vec<OwnedFd>)> {
    loop {
        match channel.receive() {
            Ok(Some(message)) => return Ok(message),
            Ok(None) => bail!("the supervisor closed the control channel"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("control channel"),
        }
        let mut waited = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waited, PollTimeout::from(START_TIMEOUT_MS)) {
            Ok(0) => bail!("the supervisor said nothing for {START_TIMEOUT_MS} ms"),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("control channel"),
        }
    }
}

fn pin(cpu: Option<u16>) -> anyhow::Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    if core_affinity::set_for_current(core_affinity::CoreId { id: usize::from(cpu) }) {
        return Ok(());
    }
    bail!("cannot be pinned to CPU {cpu}; is it in this process's affinity mask?")
}
