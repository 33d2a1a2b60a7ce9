//! What a socket has to do with redirection, and the steps by which it is taken out of it.

use std::io;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use underpass_loader::{Sent, has_unread, socket_cookie, tcp_sent};

use super::Redirector;
use crate::forward::Endpoint;

/// What the kernel's redirection has to do with a socket.
#[derive(Debug, Default)]
pub(in crate::forward) struct Attachment {
    /// Slot of its account and its cookie, from its first redirection until it is closed.
    pub(super) account: Option<(u32, u64)>,
    /// It is in the map of sources: the kernel reads it.
    pub(super) is_source: bool,
    /// It is in the map of targets.
    pub(super) is_target: bool,
    /// It has been a source since it is a target. Its stream parser lives on as long as any map holds the socket, and
    /// must not be started twice.
    pub(super) is_spent: bool,
    /// It counts as writable only when little of what it was handed is unsent.
    has_low_water: bool,
    /// In mode auto: so many of the next bodies to it are spliced.
    spared: u8,
}

/// In mode auto: bodies to a target with which it went badly that are spliced, before the kernel is tried again: clients become
/// faster too.
const BODIES_SPARED: u8 = 8;

impl Attachment {
    fn leave_sources(&mut self) {
        self.is_source = false;
        self.is_spent &= self.is_target;
    }

    pub(super) fn leave_targets(&mut self) {
        self.is_target = false;
        self.is_spent &= self.is_source;
    }

    /// Has the next bodies to it spliced, in mode auto.
    pub(super) fn spare_next(&mut self) {
        self.spared = BODIES_SPARED;
    }

    /// Whether a body to it is to be spliced because it went badly with earlier ones; the body is counted off.
    pub(super) fn spares_a_body(&mut self) -> bool {
        let spares = self.spared > 0;
        self.spared = self.spared.saturating_sub(1);
        spares
    }
}

impl Endpoint {
    /// Whether the kernel reads the socket; then userspace must not.
    #[inline]
    pub fn is_read_by_kernel(&self) -> bool {
        self.redirect.is_source
    }

    /// The flow to this socket has ended, and its entry in the map of targets with it.
    pub fn leave_targets(&mut self) {
        self.redirect.leave_targets();
    }

    /// The socket's pending error, if it means that the connection has failed.
    pub fn has_failed(&self) -> bool {
        match self.take_error() {
            Ok(None) => false,
            // The parser's way to stop: `ebpf/src/redirect.rs`, STOP.
            Ok(Some(error)) => !(self.is_read_by_kernel() && error.kind() == io::ErrorKind::WouldBlock),
            Err(_) => true,
        }
    }

    /// Takes back a socket that the kernel still reads although its flow has ended; false when nothing has come from it
    /// since, so that there is nothing to be read.
    pub fn reclaim(&mut self, redirector: Option<&mut Redirector>) -> bool {
        let (true, Some((slot, cookie)), Some(redirector)) =
            (self.redirect.is_source, self.redirect.account, redirector)
        else {
            return true;
        };
        // A parser that has not met the next byte may be about to; one that has stands still.
        if !redirector.maps.account(slot).stopped && !self.is_exhausted() {
            if self.has_ended() {
                // The parser was put off, because the socket was in use; when it has read the end, nobody tells.
                redirector.look_again(slot);
            }
            self.readable = false;
            return false;
        }
        // Whoever reads next finds out what became of the connection.
        let _ = self.take_back(cookie, redirector);
        true
    }

    /// Whether the peer has closed its side and the kernel has read everything before that.
    pub(super) fn is_exhausted(&self) -> bool {
        // The state first: what lies in no queue after the end has come was let through.
        self.has_ended() && !self.has_unread()
    }

    /// Whether something lies in the receive queue, be it the end; of a socket that cannot be asked, that is to be found out.
    pub(super) fn has_unread(&self) -> bool {
        has_unread(self.as_fd()).unwrap_or(true)
    }

    /// Whether the peer has closed its side. Events are hints; to take a source back that goes on sending would cost its
    /// bytes.
    pub(super) fn has_ended(&self) -> bool {
        self.hangup && tcp_sent(self.as_fd()).is_ok_and(|sent| sent.ended)
    }

    /// Ends the kernel's reading. The source stands still: its parser has stopped, or nothing more can come.
    ///
    /// # Errors
    /// When the connection was reset. A read would not tell once the pending error is cleared.
    pub(super) fn take_back(&mut self, cookie: u64, redirector: &mut Redirector) -> io::Result<()> {
        // The parser wakes us from inside the kernel's read loop. Unhooking it under that loop would let the loop eat the
        // rest of the receive queue; it runs under the socket's lock, so whoever has had the lock finds it ended.
        let _ = tcp_sent(self.as_fd());
        redirector.maps.remove_source(cookie);
        self.redirect.leave_sources();
        // The pending error of the stop. Whoever sends to this socket might meet it instead, and takes it for a full buffer:
        // so the socket counts as writable again.
        let error = self.take_error();
        (self.readable, self.writable) = (true, true);
        match error {
            Ok(Some(error)) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ if self.was_reset() => Err(io::ErrorKind::ConnectionReset.into()),
            _ => Ok(()),
        }
    }

    /// Whether the connection was reset, though nothing else tells: a send of the kernel's own, of the other direction, may
    /// have met the error. A connection that is closed, and that we have not finished, was reset.
    pub(in crate::forward) fn was_reset(&self) -> bool {
        !self.finished && tcp_sent(self.as_fd()).is_ok_and(|sent| sent.closed)
    }

    /// Gives the account back, before the socket is closed.
    pub fn detach(&mut self, redirector: Option<&mut Redirector>) {
        let (Some((slot, cookie)), Some(redirector)) = (self.redirect.account.take(), redirector) else {
            return;
        };
        redirector.maps.unbind(cookie);
        if self.redirect.is_source {
            // A parser that has found the account before may be using it; see `take_back`.
            let _ = tcp_sent(self.as_fd());
        }
        redirector.sessions[slot as usize] = usize::MAX;
        redirector.free.push(slot);
    }

    /// Whether the socket has sent so much of what it was handed that at most `most` bytes are left. If not, an event will
    /// tell, as one does after a write that found no room.
    pub(super) fn has_drained(&mut self, sent: &Sent, most: u64) -> bool {
        if sent.unsent <= most {
            return true;
        }
        if !self.redirect.has_low_water {
            // From now on the socket counts as writable below this mark, not at a third of whatever its buffer has grown to.
            let most = u32::try_from(most).unwrap_or(u32::MAX);
            self.redirect.has_low_water =
                socket2::SockRef::from(self.stream()).set_tcp_notsent_lowat(most).is_ok();
        }
        self.is_writable_or_will_tell()
    }

    /// Asks the socket whether it is writable. One that is not has been told to raise an event (`tcp_poll` sets SOCK_NOSPACE),
    /// which it otherwise does only after a write of our own.
    pub(super) fn is_writable_or_will_tell(&mut self) -> bool {
        let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLOUT)];
        let writable = !matches!(poll(&mut polled, PollTimeout::ZERO), Ok(0));
        self.writable = writable;
        writable
    }

    /// The account of the socket, a new one at its first redirection.
    pub(super) fn account(&mut self, redirector: &mut Redirector) -> io::Result<Option<(u32, u64)>> {
        if self.redirect.account.is_none() {
            let Some(slot) = redirector.free.pop() else { return Ok(None) };
            let bound = socket_cookie(self.as_fd())
                .and_then(|cookie| redirector.maps.bind(cookie, slot).map(|()| cookie));
            match bound {
                Ok(cookie) => self.redirect.account = Some((slot, cookie)),
                Err(error) => {
                    redirector.free.push(slot);
                    return Err(error);
                }
            }
        }
        Ok(self.redirect.account)
    }
}
