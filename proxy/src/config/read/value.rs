//! Values of a file in words.

use toml::de::DeValue;

use crate::config::table::{Access, Fault, quote, use_range};

/// A value's type in words.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The value as a message shows it; none for lists and tables.
pub(super) fn literal(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(quote(text)),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(yes) => Some(yes.to_string()),
        DeValue::Datetime(date) => Some(date.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

pub(super) fn wrong_type<T>(access: &Access<T>, value: &DeValue<'_>) -> Fault {
    let (expected, remedy) = match access {
        Access::Integer { range, unit, .. } => ("a whole number", use_range(range, unit)),
        Access::Boolean { .. } => ("a boolean", "use true or false".into()),
        Access::Text { .. } => match literal(value) {
            Some(literal) => ("a string", format!("write it in quotes: \"{literal}\"")),
            None => ("a string", "write a string in quotes".into()),
        },
    };
    Fault::new(format!("{}, not {expected}", kind(value)), remedy)
}
