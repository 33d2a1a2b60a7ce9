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
pub use underpass_command::api::RedirectScope;
use underpass_command::state::{Backend, Cluster, Listener, RedirectMode, Route, Settings};

/// The longest message in bytes.
pub const MESSAGE_SIZE_MAX: usize = 64 * 1024;
/// The most descriptors in one message.
pub const DESCRIPTORS_MAX: usize = 8;

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
    /// A cluster, without its backends.
    AddCluster(Cluster),
    /// A backend of a cluster that was added before.
    AddBackend {
        /// The cluster's name.
        cluster: String,
        /// The backend.
        backend: Backend,
    },
    /// A route to a cluster that was added before.
    AddRoute(Box<Route>),
    /// A listener. Descriptor: this worker's listening socket. Accepting begins with [`ToWorker::Run`].
    AddListener(Listener),
    /// The state is complete: accept connections. Answered with [`ToSupervisor::Running`].
    Run,
    /// Changes a redirect mode; takes effect with the next body. Answered with [`ToSupervisor::Done`].
    SetRedirect {
        /// Number of the command, for the answer.
        id: u64,
        /// What it applies to.
        scope: RedirectScope,
        /// The new mode; none inherits from the wider scope.
        mode: Option<RedirectMode>,
    },
    /// Finish what is under way, take nothing new, then exit with status 0.
    Drain {
        /// After so long the remaining connections are cut.
        deadline_ms: u64,
    },
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
    /// A command with an id was carried out.
    Done {
        /// The command's number.
        id: u64,
        /// Why it was not, if it was not.
        error: Option<String>,
    },
    /// The state could not be taken; the worker exits.
    Refused {
        /// What, and why.
        reason: String,
    },
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
