//! The Unix socket pair between the supervisor and a worker: JSON messages with file descriptors.
//!
//! `SOCK_SEQPACKET` keeps message borders and delivers descriptors with exactly the message they belong to
//! (unix(7), SCM_RIGHTS). A message is at most [`MESSAGE_SIZE_MAX`] bytes, so state goes over piece by piece.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg,
    sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use underpass_command::api::SessionEntry;
use underpass_command::state::{Answer, Backend, Cluster, Listener, Route, RouteKey, Settings};

/// The longest message in bytes.
pub const MESSAGE_SIZE_MAX: usize = 64 * 1024;
/// The most descriptors in one message.
pub const DESCRIPTORS_MAX: usize = 8;
/// The longest step of a change in bytes; the rest of its message is for what stands around it.
pub const STEP_SIZE_MAX: usize = MESSAGE_SIZE_MAX - 1024;
/// A piece of a change is sent when its steps have so many bytes: a worker reads one piece each turn, so this bounds how long
/// its connections wait.
const PIECE_SIZE: usize = 8 * 1024;

/// What the supervisor tells a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// The first message. Descriptors: the metrics memory (memfd); then, where the flags say so, the access log's
    /// pipe, the steering map, and the maps for redirection.
    Hello {
        /// Number of this worker, from 0.
        index: u16,
        /// The CPU it is pinned to.
        cpu: Option<u16>,
        /// Generation of the process, for steering across upgrades.
        generation: u32,
        /// Whether an access log pipe is among the descriptors.
        access_log: bool,
        /// Whether the steering map is among the descriptors.
        steering: bool,
        /// Whether the maps for redirection by sockmap are among the descriptors, behind all others.
        redirect: bool,
        /// Seed of the worker's random numbers.
        seed: u64,
        /// The process-wide settings.
        settings: Box<Settings>,
    },
    /// Steps of a change of the configuration. At start, before [`ToWorker::Run`], they bring the whole configuration. Answered
    /// with [`ToSupervisor::Done`] once the last piece has been carried out. Descriptors: this worker's listening socket for
    /// each [`Step::AddListener`], in their order.
    Change {
        /// Number of the change, for the answer; 0 at start, where none is given.
        id: u64,
        /// The revision of the configuration that the change leads to.
        revision: u64,
        /// What is to be done, in this order.
        steps: Vec<Step>,
        /// More pieces of this change follow: nothing is done before the last has come.
        more: bool,
    },
    /// Backends that have come up (true) or gone down, as the health checks have found; those never named are up. Numbers that
    /// are not in use are passed over.
    Health {
        /// Their numbers.
        backends: Vec<(u32, bool)>,
    },
    /// Tells some of its sessions. Answered with [`ToSupervisor::Sessions`].
    Sessions {
        /// Number of the question, for the answer.
        id: u64,
        /// At most so many; one message must hold them.
        limit: u32,
        /// Only those of the cluster of this number.
        cluster: Option<u32>,
    },
    /// Tell the steering program how this worker is, from now on. Before [`ToWorker::Run`] where no other process does it in the
    /// worker's place, else once that one has said [`ToSupervisor::HandedOver`]: two must never publish in one slot.
    Publish,
    /// The state is complete: accept connections. Answered with [`ToSupervisor::Running`].
    Run,
    /// A successor accepts connections from the same sockets: leave those to it, with all that waits there, finish what is under
    /// way, then exit with status 0. Answered with [`ToSupervisor::HandedOver`].
    HandOver {
        /// After so long the remaining connections are cut.
        deadline_ms: u64,
    },
    /// Serve what waits in the accept queues, finish what is under way, take nothing new, then exit with status 0. Whoever
    /// drains already has the nearer of both deadlines.
    Drain {
        /// After so long the remaining connections are cut.
        deadline_ms: u64,
    },
}

/// One step of a change, as workers take it. Listeners, clusters and backends have numbers, which the supervisor gives out:
/// small, so that they can be the index of a table, and given out again only when every worker is done with what had them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The settings of the process.
    Settings(Box<Settings>),
    /// A new cluster, without its backends.
    AddCluster {
        /// Its number.
        number: u32,
        /// The cluster.
        cluster: Cluster,
    },
    /// Another set of a cluster's own settings.
    ChangeCluster {
        /// Its number.
        number: u32,
        /// The cluster, without its backends.
        cluster: Cluster,
    },
    /// A cluster that no route and no listener leads to any more, and that has no backend.
    RemoveCluster {
        /// Its number.
        number: u32,
    },
    /// A new backend.
    AddBackend {
        /// Its number.
        number: u32,
        /// The number of its cluster.
        cluster: u32,
        /// The backend.
        backend: Backend,
    },
    /// Other settings of a backend.
    ChangeBackend {
        /// Its number.
        number: u32,
        /// The backend; its address is what it was.
        backend: Backend,
    },
    /// A backend that gets no request any more.
    RemoveBackend {
        /// Its number.
        number: u32,
    },
    /// A route: a new one, or one that takes the place of that which matches the same.
    PutRoute {
        /// The number of the cluster that it leads to, if it leads to one.
        cluster: Option<u32>,
        /// The route.
        route: Box<Route>,
    },
    /// A route that is no more.
    RemoveRoute {
        /// What it matches.
        route: RouteKey,
    },
    /// A named answer: a new one, or one that takes the place of that of its name.
    PutAnswer {
        /// The answer.
        answer: Answer,
    },
    /// A named answer that is no more.
    RemoveAnswer {
        /// Its name.
        name: String,
    },
    /// A new listener, whose socket comes with the message.
    AddListener {
        /// Its number.
        number: u16,
        /// The number of its default cluster.
        default_cluster: Option<u32>,
        /// The listener.
        listener: Listener,
    },
    /// Other settings of a listener.
    ChangeListener {
        /// Its number.
        number: u16,
        /// The number of its default cluster.
        default_cluster: Option<u32>,
        /// The listener; its address is what it was.
        listener: Listener,
    },
    /// A listener that takes no connection any more.
    RemoveListener {
        /// Its number.
        number: u16,
    },
}

impl Step {
    /// Whether memory is free after it.
    pub fn removes(&self) -> bool {
        matches!(
            self,
            Self::RemoveAnswer { .. }
                | Self::RemoveCluster { .. }
                | Self::RemoveBackend { .. }
                | Self::RemoveRoute { .. }
                | Self::RemoveListener { .. }
        )
    }
}

/// What a worker is done with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Finished {
    /// Backends that were put to drain and have no request left, each with the revision that the worker had then.
    pub drained: Vec<(u32, u64)>,
    /// Removed backends: their numbers may be given out again.
    pub backends: Vec<u32>,
    /// Removed clusters.
    pub clusters: Vec<u32>,
    /// Removed listeners.
    pub listeners: Vec<u16>,
}

impl Finished {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.drained.is_empty()
            && self.backends.is_empty()
            && self.clusters.is_empty()
            && self.listeners.is_empty()
    }
}

/// What a worker tells the supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToSupervisor {
    /// Accepting connections.
    Running {
        /// Process id of the worker.
        pid: u32,
    },
    /// The listening sockets and the slot of the steering program are left to the successor.
    HandedOver,
    /// A change was carried out.
    Done {
        /// The change's number.
        id: u64,
        /// Why it was not, if it was not.
        error: Option<String>,
    },
    /// Sessions that it was asked for.
    Sessions {
        /// The question's number.
        id: u64,
        /// How many there are.
        total: u64,
        /// Some of them; the supervisor knows whose they are.
        sessions: Vec<SessionEntry>,
    },
    /// The last request, connection or user of something has gone.
    Finished(Finished),
    /// The state could not be taken; the worker exits.
    Refused {
        /// What, and why.
        reason: String,
    },
}

/// Cuts a change into messages. Each comes with the positions of its steps, so that descriptors can be added.
pub fn pieces(id: u64, revision: u64, steps: &[Step]) -> Vec<(ToWorker, std::ops::Range<usize>)> {
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < steps.len() || pieces.is_empty() {
        let (mut end, mut size, mut sockets) = (start, 0, 0);
        for step in &steps[start..] {
            // What cannot be written as JSON fails when it is sent.
            size += serde_json::to_vec(step).map_or(0, |text| text.len() + 1);
            sockets += usize::from(matches!(step, Step::AddListener { .. }));
            if end > start && (size > PIECE_SIZE || sockets > DESCRIPTORS_MAX) {
                break;
            }
            end += 1;
        }
        let more = end < steps.len();
        pieces.push((ToWorker::Change { id, revision, steps: steps[start..end].to_vec(), more }, start..end));
        start = end;
    }
    pieces
}

/// One end of the socket pair.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
}

impl Channel {
    /// Makes a connected pair; both ends are non-blocking and close-on-exec.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Self { fd: a }, Self { fd: b }))
    }

    /// Takes an end that was passed on.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// `WouldBlock` when the peer does not keep up; `InvalidInput` for a message above [`MESSAGE_SIZE_MAX`].
    pub fn send<M: Serialize>(&self, message: &M, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MESSAGE_SIZE_MAX || descriptors.len() > DESCRIPTORS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "control message above its size limit"));
        }
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<UnixAddr>(
            self.fd.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }

    /// Receives one message and its descriptors; `None` when the peer has closed its end.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; `InvalidData` for one that was cut or is not understood.
    pub fn receive<M: DeserializeOwned>(&self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let mut bytes = vec![0u8; MESSAGE_SIZE_MAX];
        let mut control = cmsg_space!([RawFd; DESCRIPTORS_MAX]);
        let (length, truncated, descriptors) = {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let received = recvmsg::<UnixAddr>(
                self.fd.as_raw_fd(),
                &mut slices,
                Some(&mut control),
                MsgFlags::MSG_CMSG_CLOEXEC,
            )?;
            let mut descriptors = Vec::new();
            for message in received.cmsgs()? {
                if let ControlMessageOwned::ScmRights(raw) = message {
                    // SAFETY: the kernel has just installed these descriptors for us; nobody else owns them.
                    descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            let cut = MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC;
            (received.bytes, received.flags.intersects(cut), descriptors)
        };
        if length == 0 {
            return Ok(None);
        }
        if truncated {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "control message was cut"));
        }
        let message = serde_json::from_slice(&bytes[..length])?;
        Ok(Some((message, descriptors)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.fd
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use underpass_command::api::SESSIONS_MAX;

    use super::*;

    #[test]
    fn as_many_sessions_as_can_be_asked_for_fit_into_a_message() {
        // The longest there are: names of 128 bytes, scoped IPv6 addresses.
        let address: SocketAddr =
            "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535".parse().expect("one");
        let session = SessionEntry {
            worker: u16::MAX,
            client: address,
            listener: "l".repeat(128),
            phase: "connecting".into(),
            requests: u32::MAX,
            active_ms: Some(u64::MAX),
            cluster: Some("c".repeat(128)),
            backend: Some(address),
        };
        let sessions = vec![session; SESSIONS_MAX as usize];
        let message = ToSupervisor::Sessions { id: u64::MAX, total: u64::MAX, sessions };
        assert!(serde_json::to_vec(&message).expect("JSON").len() <= MESSAGE_SIZE_MAX);
    }

    #[test]
    fn a_change_is_cut_where_a_message_would_be_too_long() {
        let step = |size: usize| Step::RemoveAnswer { name: "a".repeat(size) };
        let steps: Vec<Step> = [10, 20_000, 7_000, 100, 60_000, 1].map(step).into();
        let pieces = pieces(3, 9, &steps);
        let ranges: Vec<_> = pieces.iter().map(|(_, range)| range.clone()).collect();
        assert_eq!(ranges, [0..1, 1..2, 2..4, 4..5, 5..6]);
        for (number, (message, range)) in pieces.iter().enumerate() {
            assert!(serde_json::to_vec(message).expect("JSON").len() <= MESSAGE_SIZE_MAX);
            let ToWorker::Change { id: 3, revision: 9, steps: piece, more } = message else {
                panic!("{message:?}")
            };
            assert_eq!((piece.as_slice(), *more), (&steps[range.clone()], number + 1 < ranges.len()));
        }
        // An empty change is a message too: somebody waits for its answer.
        assert_eq!(super::pieces(1, 1, &[]).len(), 1);
    }
}
