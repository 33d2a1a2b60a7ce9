//! The table of keys against the types of the state.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Value, json};
use underpass_command::state::{Backend, Cluster, Listener, Route, Settings, State};

use crate::config::keys::{self, Blank};
use crate::config::syntax::Syntax;
use crate::config::table::{Access, Key, Need};
use crate::config::{Severity, validate};

fn names(item: &Value) -> BTreeSet<&str> {
    item.as_object().expect("an object").keys().map(String::as_str).collect()
}

fn names_in_table<T>(keys: &[Key<T>]) -> BTreeSet<&'static str> {
    let names: BTreeSet<_> = keys.iter().map(|key| key.name).collect();
    assert_eq!(names.len(), keys.len(), "a key stands in the table twice");
    names
}

#[test]
fn every_setting_has_a_key_and_every_key_a_setting() {
    let settings = json!(Settings::default());
    let mut root = names_in_table(keys::ROOT);
    for (table, keys) in keys::TABLES {
        assert_eq!(names_in_table(keys), names(&settings[table]), "[{table}]");
        assert!(root.insert(table));
    }
    assert_eq!(root, names(&settings));
}

#[test]
fn every_field_of_an_item_has_a_key_and_every_key_a_field() {
    assert_eq!(names_in_table(keys::LISTENER), names(&json!(Listener::blank())));
    let mut cluster = names_in_table(keys::CLUSTER);
    cluster.insert("backends");
    assert_eq!(cluster, names(&json!(Cluster::blank())));
    assert_eq!(names_in_table(keys::BACKEND), names(&json!(Backend::blank())));
    // Two keys set the one field.
    let mut route = names_in_table(keys::ROUTE);
    assert!(route.remove("path_prefix"));
    assert_eq!(route, names(&json!(Route::blank())));
}

#[test]
fn the_defaults_of_files_are_those_of_the_admin_api() {
    let settings: Settings = serde_json::from_value(json!({})).expect("all settings have a default");
    assert_eq!(settings, Settings::default());
    let listener: Listener =
        serde_json::from_value(json!({"name": "", "address": "0.0.0.0:0"})).expect("a listener");
    assert_eq!(listener, Listener::blank());
    let cluster: Cluster = serde_json::from_value(json!({"name": ""})).expect("a cluster");
    assert_eq!(cluster, Cluster::blank());
    let backend: Backend = serde_json::from_value(json!({"address": "0.0.0.0:0"})).expect("a backend");
    assert_eq!(backend, Backend::blank());
    let route: Route = serde_json::from_value(json!({"cluster": ""})).expect("a route");
    assert_eq!(route, Route::blank());
}

#[test]
fn the_defaults_keep_the_rules() {
    let problems = validate(&State::default());
    assert!(problems.iter().all(|problem| problem.severity == Severity::Warning), "{problems:?}");
}

/// Sets each key in turn, and sees that its field and no other has changed, and reads back as it was set.
fn each_key_sets_its_own_field<T: Serialize>(blank: impl Fn() -> T, path: &[&str], keys: &[Key<T>]) {
    for key in keys {
        let before = json!(blank());
        let mut item = blank();
        let set = set_to_another(key, &mut item);
        assert_eq!(key.literal(&item), Some(set), "{}", key.name);
        let field = if key.name == "path_prefix" { "path" } else { key.name };
        let mut after = json!(item);
        let pointer: String = path.iter().chain([&field]).map(|part| format!("/{part}")).collect();
        let (Some(new), Some(old)) = (after.pointer_mut(&pointer), before.pointer(&pointer)) else {
            panic!("no field {pointer}");
        };
        assert_ne!(new, old, "{pointer} was not set");
        *new = old.clone();
        assert_eq!(after, before, "{} sets another field as well", key.name);
    }
}

/// Sets a key to a value that is not its default; returns the value as a file has it.
fn set_to_another<T>(key: &Key<T>, item: &mut T) -> String {
    match &key.access {
        Access::Boolean { get, set } => {
            let yes = !get(item);
            set(item, yes);
            yes.to_string()
        }
        Access::Integer { range, set, .. } => {
            assert!(set(item, *range.start()), "{}: the field cannot hold the start of the range", key.name);
            assert!(set(item, *range.end()), "{}: the field cannot hold the end of the range", key.name);
            range.end().to_string()
        }
        Access::Text { syntax, get, set } => {
            let before = get(item);
            let another = match (key.need, syntax) {
                (_, Syntax::Choice(names)) => names()
                    .into_iter()
                    .rfind(|name| Some(*name) != before.as_deref())
                    .expect("more than one choice"),
                (Need::Optional(example) | Need::Required(example), _) => example,
                (Need::Default, Syntax::LogFilter) => "debug",
                (Need::Default, Syntax::HashKey) => "cookie:user",
                (Need::Default, Syntax::CheckTarget) => "/ready",
                (Need::Default, Syntax::StatusRanges) => "200,204",
                (Need::Default, _) => "another",
            };
            syntax.check(another).expect("the example is valid");
            set(item, another).expect("the example is valid");
            format!("{another:?}")
        }
    }
}

#[test]
fn every_key_sets_its_own_field() {
    each_key_sets_its_own_field(Settings::default, &[], keys::ROOT);
    for (table, keys) in keys::TABLES {
        each_key_sets_its_own_field(Settings::default, &[table], keys);
    }
    each_key_sets_its_own_field(Listener::blank, &[], keys::LISTENER);
    each_key_sets_its_own_field(Cluster::blank, &[], keys::CLUSTER);
    each_key_sets_its_own_field(Backend::blank, &[], keys::BACKEND);
    each_key_sets_its_own_field(Route::blank, &[], keys::ROUTE);
}
