//! Enumerations whose values have one name each, in files, on the command line and in JSON.

/// A name that is none of those allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown value \"{found}\"; use one of: {}", allowed.join(", "))]
pub struct UnknownName {
    /// What was given.
    pub found: String,
    /// What may be given.
    pub allowed: Vec<&'static str>,
}

/// Declares an enum whose variants have one name each, in files, on the command line and in JSON.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name that files, commands and JSON use.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::state::UnknownName;

            fn from_str(text: &str) -> Result<Self, $crate::state::UnknownName> {
                Self::ALL.iter().copied().find(|value| value.name() == text).ok_or_else(|| $crate::state::UnknownName {
                    found: text.to_owned(),
                    allowed: Self::ALL.iter().map(|value| value.name()).collect(),
                })
            }
        }
    };
}

pub(super) use named;
