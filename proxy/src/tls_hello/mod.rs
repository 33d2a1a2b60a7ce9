//! The server name in a TLS ClientHello, read without taking part in the handshake: RFC 8446 section 4.1.2, RFC 6066 section 3.
//!
//! No sockets, no clock, no allocation. What is read is passed on untouched.
#![deny(clippy::disallowed_methods)]
#![forbid(unsafe_code)]

mod records;

use records::{Records, Stop};

/// Longest server name; a name in DNS has at most 253 characters (RFC 1035 section 2.3.4, without the root).
pub const NAME_SIZE_MAX: usize = 255;

/// RFC 8446 section 4.
const CLIENT_HELLO: u8 = 1;
/// RFC 6066 section 1.1.
const EXTENSION_SERVER_NAME: u16 = 0;
/// RFC 6066 section 3.
const NAME_TYPE_HOST: u8 = 0;
/// Version and random.
const FIXED_SIZE: u32 = 2 + 32;
const SESSION_ID_SIZE_MAX: u32 = 32;

/// A whole ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The server that the client means, if it tells.
    pub server_name: Option<ServerName>,
}

/// A server name as it was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ServerName {
    bytes: [u8; NAME_SIZE_MAX],
    size: u8,
}

impl ServerName {
    /// Its bytes, visible ASCII without spaces.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.size)]
    }
}

impl std::fmt::Debug for ServerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

/// Why there is no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The bytes do not begin a TLS handshake.
    Missing,
    /// They do, and break its rules.
    Malformed,
}

/// Reads the ClientHello at the start of `input`, over however many TLS records it is spread; `None` when more must come.
///
/// The answer is the same however the bytes come: what was an answer for the first of them is one for more.
///
/// # Errors
/// Why there is none.
pub fn parse(input: &[u8]) -> Result<Option<Hello>, Fault> {
    let mut records = Records::new(input);
    match client_hello(&mut records) {
        Ok(hello) => Ok(Some(hello)),
        Err(Stop::More) => Ok(None),
        Err(Stop::Fault(fault)) => Err(fault),
    }
}

/// RFC 8446 section 4.1.2, whose structure all versions since SSL 3.0 share.
fn client_hello(records: &mut Records<'_>) -> Result<Hello, Stop> {
    if records.byte()? != CLIENT_HELLO {
        return Err(Stop::Fault(Fault::Missing));
    }
    let size = records.u24()?;
    // Everything below has its bound in what is around it.
    let mut left = size;
    skip(records, &mut left, FIXED_SIZE)?;
    let session_id = u32::from(byte(records, &mut left)?);
    if session_id > SESSION_ID_SIZE_MAX {
        return malformed();
    }
    skip(records, &mut left, session_id)?;
    let cipher_suites = u32::from(u16(records, &mut left)?);
    if cipher_suites < 2 || !cipher_suites.is_multiple_of(2) {
        return malformed();
    }
    skip(records, &mut left, cipher_suites)?;
    let compression_methods = u32::from(byte(records, &mut left)?);
    if compression_methods == 0 {
        return malformed();
    }
    skip(records, &mut left, compression_methods)?;
    if left == 0 {
        return Ok(Hello { server_name: None }); // before TLS 1.3 a hello may have no extensions
    }
    let extensions = u32::from(u16(records, &mut left)?);
    if extensions != left {
        return malformed();
    }
    self::extensions(records, left)
}

fn extensions(records: &mut Records<'_>, mut left: u32) -> Result<Hello, Stop> {
    let mut found: Option<Option<ServerName>> = None;
    while left > 0 {
        let kind = u16(records, &mut left)?;
        let size = u32::from(u16(records, &mut left)?);
        if size > left {
            return malformed();
        }
        left -= size;
        if kind != EXTENSION_SERVER_NAME {
            records.skip(size)?;
            continue;
        }
        // RFC 8446 section 4.2: "There MUST NOT be more than one extension of the same type". Two names could lead two
        // readers to two servers.
        if found.is_some() {
            return malformed();
        }
        found = Some(server_name_list(records, size)?);
    }
    Ok(Hello { server_name: found.flatten() })
}

/// RFC 6066 section 3. A name of another type than a host's is passed over.
fn server_name_list(records: &mut Records<'_>, mut left: u32) -> Result<Option<ServerName>, Stop> {
    let list = u32::from(u16(records, &mut left)?);
    if list != left || list == 0 {
        return malformed();
    }
    let mut name = None;
    while left > 0 {
        let kind = byte(records, &mut left)?;
        let size = u32::from(u16(records, &mut left)?);
        if size > left {
            return malformed();
        }
        left -= size;
        if kind != NAME_TYPE_HOST {
            records.skip(size)?;
            continue;
        }
        // "The ServerNameList MUST NOT contain more than one name of the same name_type."
        if name.is_some() {
            return malformed();
        }
        name = Some(host_name(records, size)?);
    }
    Ok(name)
}

fn host_name(records: &mut Records<'_>, size: u32) -> Result<ServerName, Stop> {
    let mut name = ServerName { bytes: [0; NAME_SIZE_MAX], size: 0 };
    let Ok(length @ 1..) = u8::try_from(size) else { return malformed() };
    for place in &mut name.bytes[..usize::from(length)] {
        *place = records.byte()?;
        // "represented as a byte string using ASCII encoding": what no host name holds could end a line of a log.
        if !place.is_ascii_graphic() {
            return malformed();
        }
    }
    name.size = length;
    Ok(name)
}

fn malformed<T>() -> Result<T, Stop> {
    Err(Stop::Fault(Fault::Malformed))
}

/// Takes `size` off what is left of the structure around, which must hold it.
fn take(left: &mut u32, size: u32) -> Result<(), Stop> {
    *left = left.checked_sub(size).ok_or(Stop::Fault(Fault::Malformed))?;
    Ok(())
}

fn byte(records: &mut Records<'_>, left: &mut u32) -> Result<u8, Stop> {
    take(left, 1)?;
    records.byte()
}

fn u16(records: &mut Records<'_>, left: &mut u32) -> Result<u16, Stop> {
    take(left, 2)?;
    Ok(u16::from_be_bytes([records.byte()?, records.byte()?]))
}

fn skip(records: &mut Records<'_>, left: &mut u32, size: u32) -> Result<(), Stop> {
    take(left, size)?;
    records.skip(size)
}

#[cfg(test)]
mod tests;
