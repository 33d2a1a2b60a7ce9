//! Items as `KEY=VALUE` pairs change them.

use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::super::Failure;

/// `KEY=VALUE`: a field of a document of the admin API and what it is to hold.
///
/// Dots lead into objects: `health.interval_ms=500`. The value is JSON, or text where it is none; nothing at all takes the
/// field away, so that it has its default.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Setting {
    path: Vec<String>,
    value: Option<Value>,
    /// Where the value might be meant as text all the same: `via=2`.
    text: String,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("no =; write KEY=VALUE")?;
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(format!("\"{key}\" is no field; write names with dots between them"));
        }
        let parsed = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        Ok(Self { path, value: Some(parsed).filter(|_| !value.is_empty()), text: value.to_owned() })
    }
}

impl Setting {
    /// A field's value, by the program.
    pub(super) fn new(field: &str, value: impl Into<Value>) -> Self {
        Self { path: vec![field.to_owned()], value: Some(value.into()), text: String::new() }
    }
}

/// The item with fields set. `what` names it where it goes wrong.
pub(super) fn edit<T>(what: &str, item: &T, settings: &[Setting]) -> Result<T, Failure>
where
    T: Serialize + DeserializeOwned,
{
    let mut document = serde_json::to_value(item).map_err(Failure::runtime)?;
    for setting in settings {
        set(&mut document, &setting.path, setting.value.clone())
            .map_err(|reason| Failure::usage(format!("{what}: {}: {reason}", setting.path.join("."))))?;
        // What could be a number and is refused as one may be a text: names, versions.
        let as_text =
            || setting.value.as_ref().is_some_and(|value| !value.is_string() && !setting.text.is_empty());
        if T::deserialize(&document).is_err() && as_text() {
            let mut other = document.clone();
            let text = Some(Value::String(setting.text.clone()));
            if set(&mut other, &setting.path, text).is_ok() && T::deserialize(&other).is_ok() {
                document = other;
            }
        }
    }
    T::deserialize(document).map_err(|error| {
        Failure::usage(format!("{what}: {error}; GET /v1/openapi.json describes every field"))
    })
}

/// Sets one field of a document, and makes the objects that lead to it.
fn set(document: &mut Value, path: &[String], value: Option<Value>) -> Result<(), String> {
    let Some((first, rest)) = path.split_first() else { return Ok(()) };
    if document.is_null() {
        *document = Value::Object(Map::new());
    }
    let Value::Object(fields) = document else { return Err("there are no fields in a plain value".into()) };
    if !rest.is_empty() {
        return set(fields.entry(first.clone()).or_insert(Value::Null), rest, value);
    }
    match value {
        Some(value) => fields.insert(first.clone(), value),
        None => fields.remove(first),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use underpass_command::state::{Balance, Cluster, RedirectMode, Settings};

    use super::*;

    fn parse(texts: &[&str]) -> Vec<Setting> {
        texts.iter().map(|text| text.parse().expect("KEY=VALUE")).collect()
    }

    #[test]
    fn fields_are_set_and_reset() {
        let settings = parse(&["balance=least-loaded", "redirect=splice", "chunked_requests=false"]);
        let changed = edit("cluster", &Cluster::new("app"), &settings).expect("valid");
        assert_eq!((changed.name.as_str(), changed.balance), ("app", Balance::LeastLoaded));
        assert_eq!((changed.redirect, changed.chunked_requests), (Some(RedirectMode::Splice), false));
        let reset = edit("cluster", &changed, &parse(&["balance=", "redirect=", "chunked_requests="]));
        assert_eq!(reset.expect("valid"), Cluster::new("app"));
    }

    #[test]
    fn dots_lead_into_objects() {
        let changed =
            edit("settings", &Settings::default(), &parse(&["timeouts.head_ms=5", "limits.pipes=3"]));
        let changed = changed.expect("valid");
        assert_eq!((changed.timeouts.head_ms, changed.limits.pipes), (5, 3));
    }

    #[test]
    fn what_looks_like_a_number_may_be_a_name() {
        let changed = edit("settings", &Settings::default(), &parse(&["via=2", "workers=3"])).expect("valid");
        assert_eq!((changed.via.as_str(), changed.workers), ("2", 3));
    }

    #[test]
    fn a_wrong_field_is_told_what_there_is() {
        let error =
            edit("cluster \"app\"", &Cluster::new("app"), &parse(&["balanse=x"])).expect_err("unknown");
        assert!(error.text.contains("cluster \"app\"") && error.text.contains("balance"), "{}", error.text);
        let error = edit("cluster", &Cluster::new("app"), &parse(&["name.x=1"])).expect_err("no object");
        assert!(error.text.contains("name.x"), "{}", error.text);
        assert!("balance".parse::<Setting>().is_err() && "=x".parse::<Setting>().is_err());
    }
}
