//! What the supervisor says: the configuration at start, changes while running, the end.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use super::connection::Connections;
use super::core::{Core, Presence};
use super::event_loop::Worker;
use crate::heap;
use crate::ipc::{Channel, Step, ToSupervisor, ToWorker};

/// Messages taken from the supervisor in one turn: connections wait meanwhile.
const MESSAGES_PER_TURN: usize = 1;
/// Memory is given back when so many items have been removed.
const TRIM_AFTER: usize = 8192;

/// The channel to the supervisor, what was not sent yet, and the change that has come in part.
pub(super) struct Control {
    channel: Channel,
    /// Messages may wait in the channel.
    pub(super) pending: bool,
    steps: Vec<Step>,
    descriptors: VecDeque<OwnedFd>,
    /// Items that were removed since memory was given back last.
    removed: usize,
    /// Bounded by what the supervisor lets stand unanswered, and by what it has told us to finish.
    unsent: VecDeque<ToSupervisor>,
}

impl Control {
    /// A channel on which everything up to [`ToWorker::Run`] has been read.
    pub(super) fn new(channel: Channel) -> Self {
        // What came before the registration gives no event.
        let (steps, descriptors, unsent) = (Vec::new(), VecDeque::new(), VecDeque::new());
        Self { channel, pending: true, steps, descriptors, removed: 0, unsent }
    }

    /// Whether the supervisor does not take what it must be told.
    pub(super) fn is_blocked(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends what there is to be said, or keeps it. A supervisor that does not read is no reason to stop serving.
    fn flush(&mut self) {
        while let Some(message) = self.unsent.front() {
            match self.channel.send(message, &[]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // It has ended, and so will this worker.
                    eprintln!("underpass worker: the supervisor could not be told: {error}");
                    self.unsent.clear();
                    return;
                }
                Ok(()) => {
                    self.unsent.pop_front();
                }
            }
        }
    }
}

impl Worker {
    /// Takes messages that have come; those beyond the share of one turn wait for the next.
    pub(super) fn control(&mut self) {
        for _ in 0..MESSAGES_PER_TURN {
            match self.control.channel.receive::<ToWorker>() {
                Ok(Some((message, descriptors))) => self.obey(message, descriptors),
                // The supervisor has ended: so does its worker, once its connections are finished.
                Ok(None) => {
                    self.control.pending = false;
                    return self.drain(self.core.settings.timeouts.drain_ms);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.control.pending = false;
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    // Whatever it was, this worker is not what the supervisor takes it for any more.
                    let reason = format!("a control message was not understood: {error}");
                    self.tell(ToSupervisor::Refused { reason });
                }
                Err(error) => {
                    eprintln!("underpass worker: control channel: {error}; draining");
                    self.control.pending = false;
                    return self.drain(self.core.settings.timeouts.drain_ms);
                }
            }
        }
    }

    fn obey(&mut self, message: ToWorker, descriptors: Vec<OwnedFd>) {
        match message {
            ToWorker::Change { id, revision, steps, more } => {
                self.control.steps.extend(steps);
                self.control.descriptors.extend(descriptors);
                if !more {
                    self.core.revision = revision;
                    let error = self.change().err();
                    self.tell(ToSupervisor::Done { id, error });
                }
            }
            ToWorker::Health { backends } => self.core.set_health(&backends),
            ToWorker::Sessions { id, limit, cluster } => {
                let (total, sessions) = self.describe_sessions(limit as usize, cluster);
                self.tell(ToSupervisor::Sessions { id, total, sessions });
            }
            ToWorker::Publish => {
                let settings = &self.core.settings;
                self.place.iter_mut().for_each(|place| place.publish(settings));
            }
            ToWorker::HandOver { deadline_ms } => {
                self.hand_over(deadline_ms);
                self.tell(ToSupervisor::HandedOver);
            }
            ToWorker::Drain { deadline_ms } => self.drain(deadline_ms),
            ToWorker::Hello { .. } | ToWorker::Run => {
                self.tell(ToSupervisor::Refused { reason: "a message came out of its turn".to_owned() });
            }
        }
    }

    /// Carries out the change that has come, the whole of it between two events.
    fn change(&mut self) -> Result<(), String> {
        let steps = std::mem::take(&mut self.control.steps);
        let mut descriptors = std::mem::take(&mut self.control.descriptors);
        self.control.removed += steps.iter().filter(|step| step.removes()).count();
        for step in steps {
            match step {
                Step::RemoveListener { number } => self.remove_listener(number)?,
                step => apply(&mut self.core, &mut self.connections, step, &mut descriptors)?,
            }
        }
        if self.control.removed >= TRIM_AFTER {
            self.control.removed = 0;
            heap::trim();
        }
        Ok(())
    }

    /// Takes what waits in a listener's queue, then closes it.
    fn remove_listener(&mut self, number: u16) -> Result<(), String> {
        let found = self.core.listeners.get(usize::from(number));
        if found.is_none_or(|listener| listener.presence != Presence::Present) {
            return Err(format!("listener {number} does not exist"));
        }
        self.accept_all(usize::from(number));
        self.core.close_listener(number);
        self.core.remove_listener(number);
        Ok(())
    }

    /// Says something to the supervisor; what it does not take now it is told later.
    fn tell(&mut self, message: ToSupervisor) {
        self.control.unsent.push_back(message);
        self.control.flush();
    }

    /// Tells the supervisor what this worker is done with, and what it could not be told before.
    pub(super) fn report(&mut self) {
        if !self.core.finished.is_empty() {
            let finished = std::mem::take(&mut self.core.finished);
            self.control.unsent.push_back(ToSupervisor::Finished(finished));
        }
        if !self.control.unsent.is_empty() {
            self.control.flush();
        }
    }
}

/// Takes one step of a change.
///
/// # Errors
/// A sentence that says what is wrong with it. The supervisor has checked the change before, so the two disagree about what
/// this worker is.
pub(super) fn apply(
    core: &mut Core,
    connections: &mut Connections,
    step: Step,
    descriptors: &mut VecDeque<OwnedFd>,
) -> Result<(), String> {
    match step {
        Step::Settings(settings) => {
            core.change_settings(*settings);
            Ok(())
        }
        Step::AddCluster { number, cluster } => core.add_cluster(number, cluster),
        Step::ChangeCluster { number, cluster } => core.change_cluster(number, cluster),
        Step::RemoveCluster { number } => core.remove_cluster(number),
        Step::AddBackend { number, cluster, backend } => core.add_backend(number, cluster, backend),
        Step::ChangeBackend { number, backend } => core.change_backend(number, backend),
        Step::RemoveBackend { number } => core.remove_backend(connections, number),
        Step::PutRoute { cluster, route } => core.put_route(&route, cluster),
        Step::PutAnswer { answer } => core.put_answer(&answer),
        Step::RemoveAnswer { name } => {
            core.remove_answer(&name);
            Ok(())
        }
        Step::RemoveRoute { route } => {
            core.remove_route(&route);
            Ok(())
        }
        Step::AddListener { number, default_cluster, listener } => {
            let socket = descriptors.pop_front();
            let socket = socket.ok_or_else(|| format!("listener {number} came without its socket"))?;
            core.add_listener(number, default_cluster, listener, socket)
        }
        Step::ChangeListener { number, default_cluster, listener } => {
            core.change_listener(number, default_cluster, listener)
        }
        Step::RemoveListener { number } => Err(format!("listener {number} was removed before the start")),
    }
}
