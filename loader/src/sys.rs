//! System calls that no library offers in a safe form.
#![allow(unsafe_code)] // four calls of the C library

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The number that the kernel gives a socket, and never gives again.
///
/// # Errors
/// Those of getsockopt(2).
pub fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    socket_option(socket, libc::SOL_SOCKET, libc::SO_COOKIE, &mut cookie)?;
    Ok(cookie)
}

/// `struct tcp_info` of include/uapi/linux/tcp.h, as far as is needed here. The kernel fills as much as is asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct RawTcpInfo {
    state: u8,
    skipped: [u8; 7],
    words: [u32; 24],
    rates: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    segments: [u32; 2],
    notsent_bytes: u32,
    min_rtt: u32,
}

const _: () = assert!(size_of::<RawTcpInfo>() == 152 && offset_of!(RawTcpInfo, notsent_bytes) == 144);
const _: () = assert!(offset_of!(RawTcpInfo, bytes_acked) == 120 && offset_of!(RawTcpInfo, words) == 8);

/// What became of the bytes that a TCP socket was handed, in one reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Bytes that the peer has acknowledged since the connection was made; of use as a difference only.
    pub acked: u64,
    /// Bytes that have not been sent once.
    pub unsent: u64,
    /// The connection is gone: reset, or closed in both directions.
    pub closed: bool,
    /// The peer has said that it sends no more, or the connection is gone.
    pub ended: bool,
}

/// Reads what a TCP socket has sent. Takes the socket's lock, so whatever the kernel was doing to the socket has been
/// done when this returns.
///
/// # Errors
/// Those of getsockopt(2).
pub fn tcp_sent(socket: BorrowedFd<'_>) -> io::Result<Sent> {
    let mut info = RawTcpInfo::default();
    socket_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    Ok(Sent {
        acked: info.bytes_acked,
        unsent: u64::from(info.notsent_bytes),
        closed: info.state == TCP_CLOSE,
        ended: STATES_ENDED.contains(&info.state),
    })
}

/// How many bytes have been put into a TCP socket's send queue since it was connected: at least so many.
///
/// It takes two calls, and what is acknowledged between them is missing from the sum; a later reading has it. (The counts
/// of bytes sent and sent again, which one call gives, do not do: a segment that the device refuses is counted as sent all
/// the same, and one that cannot be sent again as sent again.)
///
/// # Errors
/// Those of getsockopt(2) and ioctl(2).
pub fn tcp_handed_at_least(socket: BorrowedFd<'_>) -> io::Result<(u64, Sent)> {
    let sent = tcp_sent(socket)?;
    Ok((sent.acked + queued(socket)?, sent))
}

/// How many bytes have been put into a TCP socket's send queue since it was connected: exactly, while nobody writes to it.
///
/// # Errors
/// `WouldBlock` where acknowledgements come too fast to be sure.
pub fn tcp_handed_exactly(socket: BorrowedFd<'_>) -> io::Result<(u64, Sent)> {
    let mut before = tcp_sent(socket)?;
    for _ in 0..READINGS_MAX {
        let handed = before.acked + queued(socket)?;
        let after = tcp_sent(socket)?;
        if after.acked == before.acked {
            return Ok((handed, after));
        }
        before = after;
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// An acknowledgement comes between two calls about once in tens of thousands.
const READINGS_MAX: u32 = 16;

/// Bytes in a socket's send queue that have not been acknowledged.
fn queued(socket: BorrowedFd<'_>) -> io::Result<u64> {
    integer_of(socket, libc::TIOCOUTQ).map(|count| u64::try_from(count).unwrap_or(0))
}

/// State `TCP_CLOSE` of include/net/tcp_states.h.
const TCP_CLOSE: u8 = 7;
/// States of that file after the peer's FIN: `TCP_TIME_WAIT`, `TCP_CLOSE`, `TCP_CLOSE_WAIT`, `TCP_LAST_ACK`, `TCP_CLOSING`.
const STATES_ENDED: [u8; 5] = [6, TCP_CLOSE, 8, 9, 11];

/// Whether anything lies in a socket's receive queue, be it the end of the stream.
///
/// The number of its bytes (`FIONREAD`) does not do: of a socket that is in a socket map, newer kernels count the queue of the
/// map instead, in which nothing lies. The memory of the queue is given back when the reader has had each buffer.
///
/// # Errors
/// Those of getsockopt(2).
pub fn has_unread(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut memory = [0_u32; MEMORY_FIGURES];
    socket_option(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut memory)?;
    Ok(memory[0] > 0)
}

/// Figures of `SO_MEMINFO`, of which the first is that of the receive queue: include/uapi/linux/sock_diag.h.
const MEMORY_FIGURES: usize = 9;

/// What an ioctl(2) that gives one int says.
fn integer_of(socket: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    // SAFETY: both requests of this module make the kernel write one int to where the pointer points, and keep nothing.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut value) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Reads a socket option into a value of plain integers, for which any bytes will do.
fn socket_option<T: Plain>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &mut T,
) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: `value` is writable for `length` bytes and may hold any, `length` for its own size; the kernel keeps neither.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, std::ptr::from_mut(value).cast(), &raw mut length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Types whose values may be any bytes.
trait Plain {}
impl Plain for u64 {}
impl Plain for [u32; MEMORY_FIGURES] {}
impl Plain for RawTcpInfo {}

/// Whether this program has more privileges than who called it: then its environment must not be trusted.
pub(crate) fn is_secure() -> bool {
    // SAFETY: reads a value that the kernel has put beside the program's arguments.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
