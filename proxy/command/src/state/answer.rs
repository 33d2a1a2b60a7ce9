//! Answers of the proxy itself, in the operator's words.

use serde::{Deserialize, Serialize};

/// A named answer, which routes, listeners and clusters use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Unique among answers.
    pub name: String,
    /// The status; 0: that of the case it is used in.
    #[serde(default)]
    pub status: u16,
    /// The type of the body.
    #[serde(default = "Answer::plain")]
    pub content_type: String,
    /// The body, a template.
    #[serde(default)]
    pub body: String,
    /// Further header fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<AnswerField>,
}

/// A header field of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AnswerField {
    /// Its name.
    pub name: String,
    /// Its value, as it is sent.
    pub value: String,
}

/// Which answer is given where the proxy would answer with a status of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AnswerFor {
    /// The status.
    pub status: u16,
    /// The name of the answer.
    pub answer: String,
}

impl Answer {
    /// An answer of a status, in plain text.
    pub fn new(name: impl Into<String>, status: u16, body: impl Into<String>) -> Self {
        Self { name: name.into(), status, content_type: Self::plain(), body: body.into(), fields: Vec::new() }
    }

    fn plain() -> String {
        "text/plain".into()
    }
}
