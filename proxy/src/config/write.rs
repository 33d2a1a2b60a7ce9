//! A state as a configuration file.

use std::fmt::Write;

use underpass_command::state::{Protocol, State};

use super::keys;
use super::table::Key;

/// The configuration file of a state, with every key that has a value.
///
/// Reading it gives the same state, if that keeps the rules of [`super::validate()`] and its hosts are in lower case.
pub fn to_toml(state: &State) -> String {
    let mut out = String::new();
    write_keys(&mut out, keys::ROOT, &state.settings, &[]);
    for (name, keys) in keys::TABLES {
        write_header(&mut out, &format!("[{name}]"));
        write_keys(&mut out, keys, &state.settings, &[]);
    }
    for listener in &state.listeners {
        write_header(&mut out, "[[listener]]");
        let without = match listener.protocol {
            Protocol::Http => &[][..],
            Protocol::Tcp => &keys::LISTENER_HTTP_ONLY,
        };
        write_keys(&mut out, keys::LISTENER, listener, without);
        write_list(&mut out, "listener.answer", keys::ANSWER_FOR, &listener.answers);
    }
    for cluster in &state.clusters {
        write_header(&mut out, "[[cluster]]");
        write_keys(&mut out, keys::CLUSTER, cluster, &[]);
        write_list(&mut out, "cluster.answer", keys::ANSWER_FOR, &cluster.answers);
        for backend in &cluster.backends {
            write_header(&mut out, "[[cluster.backend]]");
            write_keys(&mut out, keys::BACKEND, backend, &[]);
        }
    }
    for route in &state.routes {
        write_header(&mut out, "[[route]]");
        let without = if route.sni.is_some() { &keys::ROUTE_HTTP_ONLY[..] } else { &[] };
        write_keys(&mut out, keys::ROUTE, route, without);
        write_part(&mut out, "route.respond", keys::RESPOND, route.respond.as_ref());
        write_part(&mut out, "route.redirect_to", keys::REDIRECT_TO, route.redirect_to.as_ref());
        write_part(&mut out, "route.rewrite", keys::REWRITE, route.rewrite.as_ref());
        write_part(&mut out, "route.auth", keys::AUTH, route.auth.as_ref());
        if let Some(auth) = &route.auth {
            write_list(&mut out, "route.auth.user", keys::USER, &auth.users);
        }
        write_list(&mut out, "route.header", keys::HEADER, &route.headers);
        write_list(&mut out, "route.edit", keys::EDIT, &route.edits);
    }
    for answer in &state.answers {
        write_header(&mut out, "[[answer]]");
        write_keys(&mut out, keys::ANSWER, answer, &[]);
        write_list(&mut out, "answer.field", keys::ANSWER_FIELD, &answer.fields);
    }
    out
}

/// Writes a table below an item.
fn write_part<T>(out: &mut String, name: &str, keys: &[Key<T>], part: Option<&T>) {
    if let Some(part) = part {
        write_header(out, &format!("[{name}]"));
        write_keys(out, keys, part, &[]);
    }
}

/// Writes a list of tables below an item.
fn write_list<T>(out: &mut String, name: &str, keys: &[Key<T>], items: &[T]) {
    for item in items {
        write_header(out, &format!("[[{name}]]"));
        write_keys(out, keys, item, &[]);
    }
}

fn write_header(out: &mut String, header: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "\n{header}");
}

/// Writes the keys of an item, except those that it may not have.
fn write_keys<T>(out: &mut String, keys: &[Key<T>], item: &T, without: &[&str]) {
    for key in keys.iter().filter(|key| !without.contains(&key.name)) {
        if let Some(literal) = key.literal(item) {
            let _ = writeln!(out, "{} = {literal}", key.name);
        }
    }
}
