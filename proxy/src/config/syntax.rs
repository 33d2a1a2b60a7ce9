//! What a text value must look like, and what to tell who wrote another one.

mod place;

use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use underpass_command::state::{HashKey, StatusRanges};

pub(super) use place::parse_address;
use place::{
    check_backend_address, check_host, check_listen_address, check_server_name, check_target, check_url_path,
};

use super::table::Fault;
use crate::route::{PATTERN_SIZE_MAX, TEMPLATE_SIZE_MAX, compile_pattern};

/// The longest name of a listener or cluster, in bytes.
pub(super) const NAME_SIZE_MAX: usize = 128;
/// The longest path of a route, in bytes.
pub(super) const ROUTE_PATH_SIZE_MAX: usize = 8 * 1024;
/// The longest name of a file, in bytes (PATH_MAX without its NUL).
const FILE_SIZE_MAX: usize = 4095;
/// The longest name of a Unix socket, in bytes (`sun_path` without its NUL, unix(7)).
const SOCKET_SIZE_MAX: usize = 107;
/// The longest name of this proxy in `Via`, in bytes.
const VIA_SIZE_MAX: usize = 255;
/// The longest user name, in bytes (useradd(8)).
const USER_SIZE_MAX: usize = 32;
/// The longest log filter, in bytes.
const LOG_FILTER_SIZE_MAX: usize = 4096;
/// The most users of the admin API's allow-list.
const UIDS_MAX: usize = 64;
/// The longest name of a cookie or field, in bytes.
const TOKEN_SIZE_MAX: usize = 128;
/// The longest secret, in bytes.
const SECRET_SIZE_MAX: usize = 256;
/// The most methods of a route.
const METHODS_MAX: usize = 16;
/// The longest template of the access log, in bytes.
const LOG_TEMPLATE_SIZE_MAX: usize = 4096;
/// The longest line of text, in bytes.
const LINE_SIZE_MAX: usize = 1024;
/// The longest body of an answer, in bytes.
const BODY_SIZE_MAX: usize = 32 * 1024;
const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The kinds of text that keys take.
#[derive(Clone, Copy, Debug)]
pub(super) enum Syntax {
    /// One of these words.
    Choice(fn() -> Vec<&'static str>),
    /// The name of a listener or cluster.
    Name,
    /// An address to listen on.
    ListenAddress,
    /// An address to connect to.
    BackendAddress,
    /// What a backend is chosen by.
    HashKey,
    /// A token, as a cookie's name.
    Token,
    /// The path that a check asks for, with its query.
    CheckTarget,
    /// Status codes and ranges of them.
    StatusRanges,
    /// A regular expression.
    Pattern,
    /// Methods, separated by commas.
    Methods,
    /// A text with variables in it; what they are is checked elsewhere.
    Template,
    /// A text with fields of the access log in it; what they are is checked elsewhere.
    LogTemplate,
    /// A text without line ends.
    Line,
    /// A text of any lines.
    Body,
    /// A text that no message shows; what it must be is checked elsewhere.
    Secret,
    /// The host of a route.
    Host,
    /// The server name of a route.
    ServerName,
    /// The path of a route.
    UrlPath,
    /// A file.
    File,
    /// A Unix socket.
    Socket,
    /// A name for `Via`.
    Via,
    /// A user of the system.
    User,
    /// Ids of users of the system.
    Uids,
    /// A filter of the log.
    LogFilter,
}

impl Syntax {
    /// The kind in words, for who looks up a key.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Choice(names) => format!("one of {}", names().join(", ")),
            Self::Name => "name of letters, digits, '-', '_' and '.'".into(),
            Self::ListenAddress => "IP address and port; port 0 lets the kernel choose one".into(),
            Self::BackendAddress => "IP address and port".into(),
            Self::HashKey => "ip, header:NAME or cookie:NAME".into(),
            Self::Token => format!("token of at most {TOKEN_SIZE_MAX} bytes"),
            Self::CheckTarget => "path that begins with /, and a query if wanted".into(),
            Self::StatusRanges => "status codes and ranges of them, as 200,300-399".into(),
            Self::Pattern => format!("regular expression of at most {PATTERN_SIZE_MAX} bytes"),
            Self::Methods => format!("at most {METHODS_MAX} methods, separated by commas"),
            Self::Template => format!("text of at most {TEMPLATE_SIZE_MAX} bytes with variables in it"),
            Self::LogTemplate => format!("text of at most {LOG_TEMPLATE_SIZE_MAX} bytes with $fields in it"),
            Self::Line => format!("text of at most {LINE_SIZE_MAX} bytes"),
            Self::Body => format!("text of at most {} KiB", BODY_SIZE_MAX / 1024),
            Self::Secret => "text that no message shows".into(),
            Self::Host => "host name without port, or *. and a host name".into(),
            Self::ServerName => "host name, or *. and a host name".into(),
            Self::UrlPath => "path that begins with /".into(),
            Self::File => "file name".into(),
            Self::Socket => format!("file name of at most {SOCKET_SIZE_MAX} bytes"),
            Self::Via => "name, or name and port".into(),
            Self::User => "user name".into(),
            Self::Uids => format!("at most {UIDS_MAX} user ids, separated by commas"),
            Self::LogFilter => "level or filter in the syntax of RUST_LOG".into(),
        }
    }

    /// Whether a text is of this kind.
    pub(super) fn check(self, text: &str) -> Result<(), Fault> {
        match self {
            Self::Choice(names) => check_choice(&names(), text),
            Self::Name => check_name(text),
            Self::ListenAddress => check_listen_address(text),
            Self::BackendAddress => check_backend_address(text),
            Self::HashKey => parse_hash_key(text).map(drop),
            Self::Token => check_token(text),
            Self::CheckTarget => check_target(text),
            Self::StatusRanges => parse_status_ranges(text).map(drop),
            Self::Pattern => check_pattern(text),
            Self::Methods => parse_methods(text).map(drop),
            Self::Template => check_line(text, TEMPLATE_SIZE_MAX),
            Self::LogTemplate if text.len() > LOG_TEMPLATE_SIZE_MAX => {
                Err(Fault::new(format!("longer than {LOG_TEMPLATE_SIZE_MAX} bytes"), "use a shorter one"))
            }
            Self::Line => check_line(text, LINE_SIZE_MAX),
            Self::Body if text.len() > BODY_SIZE_MAX => {
                Err(Fault::new(format!("longer than {BODY_SIZE_MAX} bytes"), "use a shorter one"))
            }
            Self::Secret if text.len() > SECRET_SIZE_MAX => {
                Err(Fault::new(format!("longer than {SECRET_SIZE_MAX} bytes"), "use a shorter one"))
            }
            Self::Body | Self::Secret | Self::LogTemplate => Ok(()),
            Self::Host => check_host(text),
            Self::ServerName => check_server_name(text),
            Self::UrlPath => check_url_path(text),
            Self::File => check_file(text, FILE_SIZE_MAX),
            Self::Socket => check_file(text, SOCKET_SIZE_MAX),
            Self::Via => check_via(text),
            Self::User => check_user(text),
            Self::Uids => parse_uids(text).map(drop),
            Self::LogFilter => check_log_filter(text),
        }
    }
}

/// The candidate that was probably meant, if one is close enough.
pub(crate) fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance_max = (text.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(text, candidate), candidate))
        .filter(|(distance, _)| *distance <= distance_max)
        .min()
        .map(|(_, candidate)| candidate)
}

fn check_choice(names: &[&'static str], text: &str) -> Result<(), Fault> {
    if names.contains(&text) {
        return Ok(());
    }
    let remedy = match nearest(text, names.iter().copied()) {
        Some(name) => format!("did you mean {name:?}? use one of {}", names.join(", ")),
        None => format!("use one of {}", names.join(", ")),
    };
    Err(Fault::new("unknown value", remedy))
}

/// The value of a text that names one of an enum's values.
pub(super) fn parse_choice<T: FromStr>(names: &[&'static str], text: &str) -> Result<T, Fault> {
    check_choice(names, text)?;
    text.parse().map_err(|_| Fault::new("unknown value", format!("use one of {}", names.join(", "))))
}

/// What a backend is chosen by.
pub(super) fn parse_hash_key(text: &str) -> Result<HashKey, Fault> {
    let remedy = "write ip, header:NAME or cookie:NAME";
    let key: HashKey = text.parse().map_err(|_| Fault::new("not something to choose by", remedy))?;
    match &key {
        HashKey::Ip => Ok(key),
        HashKey::Header(name) | HashKey::Cookie(name) => check_token(name).map(|()| key),
    }
}

/// Status codes and ranges of them.
pub(super) fn parse_status_ranges(text: &str) -> Result<StatusRanges, Fault> {
    let remedy = format!(
        "write at most {} codes from 100 to 599 or ranges of them, as 200,300-399",
        StatusRanges::RANGES_MAX
    );
    text.parse().map_err(|_| Fault::new("no list of status codes", remedy))
}

/// RFC 9110 section 5.6.2.
fn is_tchar(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A text that may be empty and holds nothing that ends a line.
fn check_line(text: &str, size_max: usize) -> Result<(), Fault> {
    if text.is_empty() { Ok(()) } else { check_size(text, size_max) }
}

fn check_pattern(text: &str) -> Result<(), Fault> {
    check_size(text, PATTERN_SIZE_MAX)?;
    let remedy = "correct it; what is special in it, as a dot, is meant as itself behind a \\";
    compile_pattern(text).map(drop).map_err(|error| Fault::new(error, remedy))
}

/// Reads a list of methods: RFC 9110 section 9.1, where their case counts.
pub(super) fn parse_methods(text: &str) -> Result<Vec<String>, Fault> {
    let methods: Vec<String> = text.split(',').map(|method| method.trim().to_owned()).collect();
    if methods.len() > METHODS_MAX {
        return Err(Fault::new(format!("more than {METHODS_MAX} methods"), "leave methods out to take all"));
    }
    for method in &methods {
        check_token(method)?;
        if !method.contains(|c: char| c.is_ascii_uppercase())
            && method.contains(|c: char| c.is_ascii_lowercase())
        {
            let upper = method.to_ascii_uppercase();
            return Err(Fault::new(
                format!("methods have a case, and {method:?} is another than {upper:?}"),
                format!("write {upper}"),
            ));
        }
    }
    Ok(methods)
}

fn check_token(text: &str) -> Result<(), Fault> {
    check_size(text, TOKEN_SIZE_MAX)?;
    match text.chars().find(|c| !is_tchar(*c)) {
        Some(c) => {
            Err(Fault::new(format!("{c:?} is not allowed in a token"), "use letters, digits, '-' and '_'"))
        }
        None => Ok(()),
    }
}

fn check_name(text: &str) -> Result<(), Fault> {
    let remedy = "use letters, digits, '-', '_' and '.'";
    check_size(text, NAME_SIZE_MAX)?;
    match text.chars().find(|&c| !(c.is_ascii_alphanumeric() || "-_.".contains(c))) {
        Some(c) => Err(Fault::new(format!("{c:?} is not allowed in a name"), remedy)),
        None => Ok(()),
    }
}

/// Refuses texts that are empty, too long, or hold control characters: nothing that is configured has those.
fn check_size(text: &str, size_max: usize) -> Result<(), Fault> {
    if text.is_empty() {
        return Err(Fault::new("empty", "give it a value"));
    }
    if text.len() > size_max {
        return Err(Fault::new(format!("longer than {size_max} bytes"), "use a shorter one"));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(Fault::new(format!("holds the control character {c:?}"), "remove it")),
        None => Ok(()),
    }
}

fn check_file(text: &str, size_max: usize) -> Result<(), Fault> {
    check_size(text, size_max)?;
    match text.ends_with('/') {
        true => Err(Fault::new("names a folder", "name a file in it")),
        false => Ok(()),
    }
}

/// RFC 9110 7.6.3: `received-by = pseudonym [ ":" port ]`, and a pseudonym is a token.
fn check_via(text: &str) -> Result<(), Fault> {
    if text.is_empty() {
        return Ok(());
    }
    check_size(text, VIA_SIZE_MAX)?;
    let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    let remedy =
        "use letters, digits and '-', as underpass or proxy1.example.com:8080; \"\" leaves Via alone";
    if port
        .is_some_and(|port| !port.bytes().all(|byte| byte.is_ascii_digit()) || port.parse::<u16>().is_err())
    {
        return Err(Fault::new("what follows the colon is not a port", remedy));
    }
    match name.chars().find(|&c| !is_tchar(c)) {
        Some(c) => Err(Fault::new(format!("{c:?} is not allowed in a token"), remedy)),
        None if name.is_empty() => Err(Fault::new("has no name before the colon", remedy)),
        None => Ok(()),
    }
}

/// Whether the user exists is seen at start; here only what no user name can be.
fn check_user(text: &str) -> Result<(), Fault> {
    if text.is_empty() {
        return Ok(());
    }
    check_size(text, USER_SIZE_MAX)?;
    match text.chars().find(|&c| c.is_whitespace() || c == ':' || c == '/') {
        Some(c) => Err(Fault::new(format!("{c:?} is not allowed in a user name"), "use the name of a user")),
        None => Ok(()),
    }
}

/// Reads a list of user ids.
pub(super) fn parse_uids(text: &str) -> Result<Vec<u32>, Fault> {
    let uids: Result<Vec<u32>, Fault> = text.split(',').map(str::trim).map(parse_uid).collect();
    let uids = uids?;
    match uids.len() > UIDS_MAX {
        true => Err(Fault::new(format!("more than {UIDS_MAX} user ids"), "leave some out")),
        false => Ok(uids),
    }
}

fn parse_uid(text: &str) -> Result<u32, Fault> {
    let remedy = "write numbers separated by commas, as 1000, 1001; id -u NAME tells a user's";
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Fault::new(format!("{text:?} is not the id of a user"), remedy));
    }
    match text.parse() {
        // The highest stands for no user (chown(2)).
        Ok(u32::MAX) | Err(_) => Err(Fault::new(format!("{text} is above {}", u32::MAX - 1), remedy)),
        Ok(uid) => Ok(uid),
    }
}

fn check_log_filter(text: &str) -> Result<(), Fault> {
    check_size(text, LOG_FILTER_SIZE_MAX)?;
    let levels = LOG_LEVELS.join(", ");
    // A lone word that is no level would be taken as a module's name, and turn every other line off.
    let lone_word = text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if lone_word && !LOG_LEVELS.iter().any(|level| level.eq_ignore_ascii_case(text)) {
        return Err(Fault::new(
            "unknown level",
            format!("use one of {levels}, or a filter as underpass=debug"),
        ));
    }
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(()),
        Err(_) => {
            Err(Fault::new("not a filter", "write it as underpass=debug,warn: modules and their levels"))
        }
    }
}
