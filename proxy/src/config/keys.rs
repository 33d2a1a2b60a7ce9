//! The table of keys: every key of the configuration file, once.
//!
//! The macros below make the entry of a key from the field that it sets. Each name, range and sentence stands in
//! `settings` or `items`, and nowhere else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use underpass_command::state::{Backend, Cluster, Listener, RedirectMode, Route};

/// A whole number. The fields after `$doc` lead from the state's item to the number.
macro_rules! integer {
    ($name:literal, $($field:ident).+, $range:expr, $unit:literal, $doc:literal) => {
        Key {
            name: $name,
            doc: $doc,
            need: Need::Default,
            access: Access::Integer {
                range: $range,
                unit: $unit,
                #[allow(clippy::useless_conversion, reason = "some of the fields are u64 already")]
                get: |item| u64::from(item.$($field).+),
                set: |item, number| store(&mut item.$($field).+, number),
            },
        }
    };
}

macro_rules! boolean {
    ($name:literal, $($field:ident).+, $doc:literal) => {
        Key {
            name: $name,
            doc: $doc,
            need: Need::Default,
            access: Access::Boolean { get: |item| item.$($field).+, set: |item, yes| item.$($field).+ = yes },
        }
    };
}

/// One of an enum's names.
macro_rules! choice {
    ($name:literal, $($field:ident).+, $kind:ty, $doc:literal) => {
        Key {
            name: $name,
            doc: $doc,
            need: Need::Default,
            access: Access::Text {
                syntax: Syntax::Choice(|| <$kind>::ALL.iter().map(|value| value.name()).collect()),
                get: |item| Some(item.$($field).+.name().to_owned()),
                set: |item, text| {
                    let names: Vec<_> = <$kind>::ALL.iter().map(|value| value.name()).collect();
                    item.$($field).+ = parse_choice(&names, text)?;
                    Ok(())
                },
            },
        }
    };
}

/// The redirect mode of a listener or cluster, which may be left to the wider scope.
macro_rules! redirect_override {
    ($doc:literal) => {
        Key {
            name: "redirect",
            doc: $doc,
            need: Need::Optional("splice"),
            access: Access::Text {
                syntax: Syntax::Choice(redirect_modes),
                get: |item| item.redirect.map(|mode| mode.name().to_owned()),
                set: |item, text| {
                    item.redirect = Some(parse_choice(&redirect_modes(), text)?);
                    Ok(())
                },
            },
        }
    };
}

/// Sets a field, if it can hold the number.
fn store<N: TryFrom<u64>>(field: &mut N, number: u64) -> bool {
    N::try_from(number).map(|number| *field = number).is_ok()
}

fn redirect_modes() -> Vec<&'static str> {
    RedirectMode::ALL.iter().map(|mode| mode.name()).collect()
}

macro_rules! text {
    ($name:literal, $($field:ident).+, $need:expr, $syntax:expr, $doc:literal) => {
        Key {
            name: $name,
            doc: $doc,
            need: $need,
            access: Access::Text {
                syntax: $syntax,
                get: |item| Some(item.$($field).+.clone()),
                set: |item, text| {
                    item.$($field).+ = text.to_owned();
                    Ok(())
                },
            },
        }
    };
}

macro_rules! optional_text {
    ($name:literal, $field:ident, $example:literal, $syntax:expr, $doc:literal) => {
        Key {
            name: $name,
            doc: $doc,
            need: Need::Optional($example),
            access: Access::Text {
                syntax: $syntax,
                get: |item| item.$field.clone(),
                set: |item, text| {
                    item.$field = Some(text.to_owned());
                    Ok(())
                },
            },
        }
    };
}

macro_rules! path {
    ($name:literal, $($field:ident).+, $syntax:expr, $doc:literal) => {
        Key {
            name: $name,
            doc: $doc,
            need: Need::Default,
            access: Access::Text {
                syntax: $syntax,
                get: |item| item.$($field).+.to_str().map(str::to_owned),
                set: |item, text| {
                    item.$($field).+ = PathBuf::from(text);
                    Ok(())
                },
            },
        }
    };
}

macro_rules! address {
    ($example:literal, $syntax:expr, $doc:literal) => {
        Key {
            name: "address",
            doc: $doc,
            need: Need::Required($example),
            access: Access::Text {
                syntax: $syntax,
                get: |item| Some(item.address.to_string()),
                set: |item, text| {
                    item.address = parse_address(text)?;
                    Ok(())
                },
            },
        }
    };
}

mod clusters;
mod items;
mod routes;
mod settings;

pub(super) use clusters::{BACKEND, CLUSTER};
pub(super) use items::{LISTENER, LISTENER_HTTP_ONLY};
pub(super) use routes::{
    ANSWER, ANSWER_FIELD, ANSWER_FOR, AUTH, EDIT, HEADER, REDIRECT_TO, RESPOND, REWRITE, ROUTE,
    ROUTE_HTTP_ONLY, ROUTE_PARTS, USER,
};
pub(super) use settings::{LIMITS, LOG, METRICS, ROOT, TABLES, TIMEOUTS};

/// An item with every default, before a file says more. Its required keys hold what no file can give.
pub(super) trait Blank {
    fn blank() -> Self;
}

const UNSET: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

impl Blank for Listener {
    fn blank() -> Self {
        Self::new("", UNSET)
    }
}

impl Blank for Cluster {
    fn blank() -> Self {
        Self::new("")
    }
}

impl Blank for Backend {
    fn blank() -> Self {
        Self::new(UNSET)
    }
}

impl Blank for Route {
    fn blank() -> Self {
        Self::default()
    }
}
