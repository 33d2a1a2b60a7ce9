//! System calls that no library offers in a safe form.
#![allow(unsafe_code)] // two calls of the C library

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The number that the kernel gives a socket, and never gives again.
pub(crate) fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: `cookie` is writable for `length` bytes, `length` for its own size; the kernel keeps neither.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Whether this program has more privileges than who called it: then its environment must not be trusted.
pub(crate) fn is_secure() -> bool {
    // SAFETY: reads a value that the kernel has put beside the program's arguments.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
