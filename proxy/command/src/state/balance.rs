//! How a cluster chooses among its backends, checks them, and tries again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::names::named;

named! {
    /// How a backend is chosen among those of a cluster.
    #[derive(Default)]
    Balance {
        /// One after the other, each as often as its weight says.
        #[default]
        RoundRobin = "round-robin",
        /// By lot.
        Random = "random",
        /// The one with the fewest requests and tunnels of this worker under way.
        LeastLoaded = "least-loaded",
        /// The less loaded of two drawn by lot.
        PowerOfTwo = "power-of-two",
        /// Of two drawn by lot, the one that answers faster, its requests under way counted in.
        PeakEwma = "peak-ewma",
        /// The same one for the same client, header or cookie, also after others came or went.
        Maglev = "maglev",
    }
}

named! {
    /// With which requests of other sites a client sends the sticky cookie (RFC 6265bis section 4.1.2.7).
    #[derive(Default)]
    SameSite {
        /// Those by which somebody comes from there.
        #[default]
        Lax = "lax",
        /// None.
        Strict = "strict",
        /// All. Clients take such a cookie over HTTPS only, so it is marked as secure.
        None = "none",
    }
}

named! {
    /// What becomes of requests while no backend of a cluster is available.
    #[derive(Default)]
    WhenAllDown {
        /// They are refused at once.
        #[default]
        Answer = "answer",
        /// They go to the backends as if all were available: better a try than an outage because of a wrong check.
        UseAll = "use-all",
    }
}

named! {
    /// What another backend is tried for. A request on a pooled connection that has just become stale is sent once more on a
    /// fresh one in any case, if it may be.
    #[derive(Default)]
    RetryOn {
        /// Nothing.
        Never = "never",
        /// A connection that cannot be made: nothing was sent.
        #[default]
        Connect = "connect",
        /// Also a connection that is lost before a byte of the response, if the request is idempotent and still at hand.
        Idempotent = "idempotent",
    }
}

named! {
    /// How the supervisor checks backends.
    #[derive(Default)]
    Check {
        /// Not at all: they count as available.
        #[default]
        Off = "off",
        /// A request is answered with an expected status.
        Http = "http",
        /// A connection can be made.
        Tcp = "tcp",
    }
}

/// What the policy `maglev` chooses by: `ip`, `header:NAME` or `cookie:NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub enum HashKey {
    /// The client's address.
    #[default]
    Ip,
    /// The value of this request field.
    Header(String),
    /// The value of this cookie.
    Cookie(String),
}

/// Why a text does not say what to choose by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is neither ip nor header:NAME nor cookie:NAME")]
pub struct BadHashKey(pub String);

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

impl FromStr for HashKey {
    type Err = BadHashKey;

    fn from_str(text: &str) -> Result<Self, BadHashKey> {
        match text.split_once(':') {
            None if text == "ip" => Ok(Self::Ip),
            Some(("header", name)) if is_token(name) => Ok(Self::Header(name.to_owned())),
            Some(("cookie", name)) if is_token(name) => Ok(Self::Cookie(name.to_owned())),
            _ => Err(BadHashKey(text.to_owned())),
        }
    }
}

impl fmt::Display for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip => f.write_str("ip"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
        }
    }
}

impl TryFrom<String> for HashKey {
    type Error = BadHashKey;

    fn try_from(text: String) -> Result<Self, BadHashKey> {
        text.parse()
    }
}

impl From<HashKey> for String {
    fn from(key: HashKey) -> Self {
        key.to_string()
    }
}

/// Status codes, as `200-399` or `200,204,301-302`: at most [`StatusRanges::RANGES_MAX`] numbers and ranges.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub struct StatusRanges(Vec<(u16, u16)>);

/// Why a text names no status codes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no list of status codes from 100 to 599 and ranges of them, as 200,300-399")]
pub struct BadStatusRanges(pub String);

impl StatusRanges {
    /// The most parts between commas.
    pub const RANGES_MAX: usize = 16;

    /// Whether a status is among them.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&status))
    }
}

impl Default for StatusRanges {
    fn default() -> Self {
        Self(vec![(200, 399)])
    }
}

impl FromStr for StatusRanges {
    type Err = BadStatusRanges;

    fn from_str(text: &str) -> Result<Self, BadStatusRanges> {
        let status = |text: &str| {
            let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|status| digits && (100..=599).contains(status))
        };
        let range = |part: &str| match part.split_once('-') {
            None => status(part).map(|status| (status, status)),
            Some((first, last)) => status(first).zip(status(last)).filter(|(first, last)| first < last),
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        let ranges = ranges.filter(|ranges| ranges.len() <= Self::RANGES_MAX);
        ranges.map(Self).ok_or_else(|| BadStatusRanges(text.to_owned()))
    }
}

impl fmt::Display for StatusRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for StatusRanges {
    type Error = BadStatusRanges;

    fn try_from(text: String) -> Result<Self, BadStatusRanges> {
        text.parse()
    }
}

impl From<StatusRanges> for String {
    fn from(ranges: StatusRanges) -> Self {
        ranges.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_to_choose_by_read_as_they_are_written() {
        for text in ["ip", "header:X-Tenant", "cookie:session"] {
            let key: HashKey = text.parse().expect("valid");
            assert_eq!(key.to_string(), text);
            assert_eq!(serde_json::json!(key), serde_json::json!(text));
        }
        for text in ["", "IP", "header", "header:", "header:a b", "cookie:a=b", "path:/"] {
            assert_eq!(text.parse::<HashKey>(), Err(BadHashKey(text.into())));
        }
    }

    #[test]
    fn statuses_read_as_they_are_written() {
        let ranges: StatusRanges = "200,300-399".parse().expect("valid");
        assert_eq!(ranges.to_string(), "200,300-399");
        assert!(ranges.contains(200) && ranges.contains(300) && ranges.contains(399));
        assert!(!ranges.contains(201) && !ranges.contains(400));
        for text in ["", "200,", "20", "099", "600", "300-200", "200-200", "+20", "200 ", "2xx"] {
            assert_eq!(text.parse::<StatusRanges>(), Err(BadStatusRanges(text.into())), "{text}");
        }
        assert!(vec!["200"; 16].join(",").parse::<StatusRanges>().is_ok());
        assert!(vec!["200"; 17].join(",").parse::<StatusRanges>().is_err());
    }
}
