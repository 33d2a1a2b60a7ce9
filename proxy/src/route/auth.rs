//! Basic authentication: RFC 7617.
//!
//! A password is kept as SHA-256 of a salt and itself. That is one or two blocks of hashing, less than a microsecond: a hash
//! that is slow by design would stop every other connection of the worker, for each request of anybody who asks. So it
//! does not protect short passwords from who has stolen the file; use long random ones.

use std::collections::HashMap;

use sha2::{Digest, Sha256};
use underpass_command::state::{BasicAuth, User};

/// The most users of a route.
pub const USERS_MAX: usize = 1024;
/// The longest name and password together, in bytes, with the colon between them.
pub(crate) const CREDENTIALS_SIZE_MAX: usize = 512;
/// The longest realm in bytes.
const REALM_SIZE_MAX: usize = 128;
const SALT_SIZES: std::ops::RangeInclusive<usize> = 8..=64;

/// Who may ask, ready to be checked.
#[derive(Debug)]
pub struct Auth {
    /// The value of `WWW-Authenticate`.
    challenge: Box<[u8]>,
    users: HashMap<Box<[u8]>, Password>,
}

struct Password {
    salt: Box<[u8]>,
    hash: [u8; 32],
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

impl Auth {
    /// Makes it ready.
    ///
    /// # Errors
    /// A sentence that says what is wrong, and shows no password.
    pub fn new(configured: &BasicAuth) -> Result<Self, String> {
        let realm = &configured.realm;
        // RFC 9110 section 5.6.4: what a quoted string may hold without a backslash.
        if realm.len() > REALM_SIZE_MAX
            || realm.bytes().any(|byte| !(b' '..=b'~').contains(&byte) || b"\"\\".contains(&byte))
        {
            return Err(format!(
                "the realm {realm:?} is longer than {REALM_SIZE_MAX} bytes, or holds something else than visible ASCII, or a \
                 quote or backslash"
            ));
        }
        if configured.users.is_empty() || configured.users.len() > USERS_MAX {
            return Err(format!("there must be 1 to {USERS_MAX} users"));
        }
        let mut users = HashMap::with_capacity(configured.users.len());
        for user in &configured.users {
            let (name, password) = read_user(user)?;
            if users.insert(name, password).is_some() {
                return Err(format!("the user {:?} is there twice", user.name));
            }
        }
        let challenge = format!("Basic realm=\"{realm}\", charset=\"UTF-8\"").into_bytes().into();
        Ok(Self { challenge, users })
    }

    /// The value of `WWW-Authenticate`.
    pub fn challenge(&self) -> &[u8] {
        &self.challenge
    }

    /// Whether the values of the Authorization fields are one, and that of a user.
    pub fn admits<'a>(&self, mut values: impl Iterator<Item = &'a [u8]>) -> bool {
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let mut decoded = [0u8; CREDENTIALS_SIZE_MAX];
        let Some(credentials) = credentials(value, &mut decoded) else { return false };
        let Some(colon) = memchr::memchr(b':', credentials) else { return false };
        let (name, password) = (&credentials[..colon], &credentials[colon + 1..]);
        // An unknown name takes as long as a known one.
        let (known, expected) = match self.users.get(name) {
            Some(expected) => (true, expected),
            None => match self.users.values().next() {
                Some(other) => (false, other),
                None => return false,
            },
        };
        let hash: [u8; 32] =
            Sha256::new().chain_update(&expected.salt).chain_update(password).finalize().into();
        equal(&hash, &expected.hash) & known
    }
}

/// The name of the user that the values of the Authorization fields tell, whether there is one or not.
pub(crate) fn user_of<'a, 'd>(
    mut values: impl Iterator<Item = &'a [u8]>,
    decoded: &'d mut [u8; CREDENTIALS_SIZE_MAX],
) -> Option<&'d [u8]> {
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let credentials = credentials(value, decoded)?;
    let colon = memchr::memchr(b':', credentials)?;
    Some(&credentials[..colon])
}

/// Compares without telling by the time where the first difference is.
fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b));
    std::hint::black_box(difference) == 0
}

/// RFC 7617 section 2: the name has no colon; control characters are in neither.
fn read_user(user: &User) -> Result<(Box<[u8]>, Password), String> {
    let User { name, password } = user;
    if name.is_empty() || name.len() > 255 || name.contains(':') || name.chars().any(char::is_control) {
        return Err(format!(
            "the user name {name:?} is empty, longer than 255 bytes, or holds a colon or a control character"
        ));
    }
    let wrong = || {
        format!(
            "the password of user {name:?} is not SALT$HASH: 8 to 64 letters and digits, and 64 hexadecimal digits"
        )
    };
    let (salt, hash) = password.0.split_once('$').ok_or_else(wrong)?;
    let salted = SALT_SIZES.contains(&salt.len()) && salt.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let bytes: Option<Vec<u8>> = hash
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    let digits = hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    match bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) {
        Some(hash) if salted && digits => {
            Ok((name.as_bytes().into(), Password { salt: salt.as_bytes().into(), hash }))
        }
        _ => Err(wrong()),
    }
}

/// `"Basic" 1*SP token68`, decoded. RFC 9110 section 11.1: the scheme's name is the same in any case.
fn credentials<'d>(value: &[u8], decoded: &'d mut [u8; CREDENTIALS_SIZE_MAX]) -> Option<&'d [u8]> {
    let (scheme, rest) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    decode_base64(rest.trim_ascii_start(), decoded)
}

/// RFC 4648 section 4, strictly: padded, no bits beyond the last byte, nothing between the digits.
fn decode_base64<'d>(text: &[u8], out: &'d mut [u8]) -> Option<&'d [u8]> {
    let digit = |byte: u8| {
        Some(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        })
    };
    if text.is_empty() || !text.len().is_multiple_of(4) || text.len() / 4 * 3 > out.len() {
        return None;
    }
    let padding = text.iter().rev().take(2).take_while(|byte| **byte == b'=').count();
    let mut length = 0;
    for (index, group) in text.chunks_exact(4).enumerate() {
        let last = (index + 1) * 4 == text.len();
        let digits = if last { 4 - padding } else { 4 };
        let mut bits = 0_u32;
        for (position, byte) in group.iter().enumerate() {
            bits = bits << 6 | u32::from(if position < digits { digit(*byte)? } else { 0 });
        }
        let [_, bytes @ ..] = bits.to_be_bytes();
        if bytes[digits - 1..].iter().any(|byte| *byte != 0) {
            return None;
        }
        out[length..length + digits - 1].copy_from_slice(&bytes[..digits - 1]);
        length += digits - 1;
    }
    Some(&out[..length])
}

#[cfg(test)]
mod tests {
    use underpass_command::state::Secret;

    use super::*;

    /// `printf 'saltsaltsecret' | sha256sum`
    const PASSWORD: &str = "saltsalt$27b0d9f5088892201b4d5341d34eeca7dfd3b19a6a4f35c536dda0cbed45e701";

    fn password(salt: &str, password: &str) -> Secret {
        let hash = Sha256::new().chain_update(salt).chain_update(password).finalize();
        let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Secret(format!("{salt}${digits}"))
    }

    fn auth() -> Auth {
        let user = |name: &str, text: &str| User { name: name.into(), password: password("saltsalt", text) };
        let users = vec![user("Aladdin", "open sesame"), user("ann", "a:b"), user("empty", "")];
        Auth::new(&BasicAuth { realm: "in here".into(), users }).expect("valid")
    }

    fn admits(value: &str) -> bool {
        auth().admits([value.as_bytes()].into_iter())
    }

    #[test]
    fn who_may_ask() {
        // RFC 7617 section 2.
        assert!(admits("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
        assert!(admits("bASIC   QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
        assert!(admits("Basic YW5uOmE6Yg=="), "a password with a colon");
        assert!(admits("Basic ZW1wdHk6"), "an empty password that is configured");
        assert_eq!(auth().challenge(), b"Basic realm=\"in here\", charset=\"UTF-8\"");
    }

    #[test]
    fn a_password_as_the_shell_makes_it() {
        let users = vec![User { name: "ann".into(), password: Secret(PASSWORD.into()) }];
        let auth = Auth::new(&BasicAuth { realm: String::new(), users }).expect("valid");
        assert!(auth.admits([&b"Basic YW5uOnNlY3JldA=="[..]].into_iter()));
        assert!(!auth.admits([&b"Basic YW5uOnNlY3JldHM="[..]].into_iter()));
    }

    #[test]
    fn who_may_not() {
        for value in [
            "",
            "Basic",
            "Basic ",
            "Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ",
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZR==",
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ== ",
            "Basic QWxhZGRp bjpvcGVuIHNlc2FtZQ==",
            "Basic QWxhZGRpbjp4",
            "Basic YWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            "Basic QWxhZGRpbg==",
            "Basic Og==",
            "Basic ====",
        ] {
            assert!(!admits(value), "{value:?}");
        }
        assert!(!auth().admits(std::iter::empty()));
        let twice = b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==".as_slice();
        assert!(!auth().admits([twice, twice].into_iter()), "two fields could be read in two ways");
        assert!(!admits(&format!("Basic {}", "QUFB".repeat(400))));
    }

    #[test]
    fn what_is_refused_shows_no_password() {
        let refused = |name: &str, password: &str| {
            let users = vec![User { name: name.into(), password: Secret(password.into()) }];
            Auth::new(&BasicAuth { realm: "x".into(), users }).expect_err("it must be refused")
        };
        for bad in [
            "plain",
            "short$aa",
            "saltsalt$aa",
            "salt salt$",
            &PASSWORD.replace('3', "g"),
            &format!("{PASSWORD}00"),
        ] {
            let error = refused("ann", bad);
            assert!(error.contains("\"ann\"") && !error.contains(bad), "{error}");
        }
        assert!(refused("a:b", PASSWORD).contains("colon"));
        let twice = User { name: "ann".into(), password: Secret(PASSWORD.into()) };
        let auth = BasicAuth { realm: "x".into(), users: vec![twice.clone(), twice] };
        assert!(Auth::new(&auth).expect_err("twice").contains("twice"));
        assert!(Auth::new(&BasicAuth { realm: "\"".into(), ..auth }).expect_err("a quote").contains("realm"));
    }
}
