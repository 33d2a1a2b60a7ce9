//! The table of keys against the types of the state.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Value, json};
use underpass_command::state::{
    Answer, AnswerField, AnswerFor, Backend, BasicAuth, Cluster, FieldEdit, HeaderMatch, Listener,
    RedirectMode, RedirectTo, Respond, Rewrite, Route, Scheme, Settings, State, User,
};

use crate::config::keys::{self, Blank};
use crate::config::syntax::Syntax;
use crate::config::table::{Access, Key, Need, quote};
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
    let mut listener = names_in_table(keys::LISTENER);
    listener.insert("answers");
    assert_eq!(listener, names(&json!(Listener { answers: vec![AnswerFor::blank()], ..Listener::blank() })));
    let mut cluster = names_in_table(keys::CLUSTER);
    cluster.extend(["answers", "backends"]);
    assert_eq!(cluster, names(&json!(Cluster { answers: vec![AnswerFor::blank()], ..Cluster::blank() })));
    assert_eq!(names_in_table(keys::BACKEND), names(&json!(Backend::blank())));
    // Three keys set the one field.
    let mut route = names_in_table(keys::ROUTE);
    assert!(route.remove("path_prefix") && route.remove("path_regex"));
    route.extend(["headers", "edits", "auth", "respond", "redirect_to", "rewrite"]);
    assert_eq!(route, names(&json!(full_route())));
}

#[test]
fn every_field_below_a_route_and_of_an_answer_has_a_key_and_every_key_a_field() {
    let route = json!(full_route());
    assert_eq!(names_in_table(keys::RESPOND), names(&route["respond"]));
    assert_eq!(names_in_table(keys::REDIRECT_TO), names(&route["redirect_to"]));
    assert_eq!(names_in_table(keys::REWRITE), names(&route["rewrite"]));
    let mut auth = names_in_table(keys::AUTH);
    auth.insert("users");
    assert_eq!(auth, names(&route["auth"]));
    assert_eq!(names_in_table(keys::USER), names(&route["auth"]["users"][0]));
    let mut header = names_in_table(keys::HEADER);
    assert!(header.remove("value_regex"));
    assert_eq!(header, names(&route["headers"][0]));
    assert_eq!(names_in_table(keys::EDIT), names(&route["edits"][0]));
    let mut answer = names_in_table(keys::ANSWER);
    answer.insert("fields");
    let full = Answer { fields: vec![AnswerField::default()], ..Answer::blank() };
    assert_eq!(answer, names(&json!(full)));
    assert_eq!(names_in_table(keys::ANSWER_FIELD), names(&json!(AnswerField::default())));
    assert_eq!(names_in_table(keys::ANSWER_FOR), names(&json!(AnswerFor::blank())));
}

/// A route in which nothing is left out.
fn full_route() -> Route {
    let text = || Some("x".to_owned());
    Route {
        host_regex: text(),
        methods: vec!["GET".into()],
        headers: vec![HeaderMatch::default()],
        priority: 1,
        cluster: text(),
        respond: Some(Respond { answer: text(), ..Respond::default() }),
        redirect_to: Some(RedirectTo {
            scheme: Some(Scheme::Https),
            host: text(),
            port: 1,
            path: text(),
            prefix: text(),
            ..RedirectTo::default()
        }),
        redirect: Some(RedirectMode::Copy),
        rewrite: Some(Rewrite { host: text(), path: text(), prefix: text() }),
        edits: vec![FieldEdit::blank()],
        auth: Some(BasicAuth { users: vec![User::default()], ..BasicAuth::default() }),
        ..Route::blank()
    }
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
    let route: Route = serde_json::from_value(json!({})).expect("a route");
    assert_eq!(route, Route::blank());
    assert_eq!(serde_json::from_value::<Respond>(json!({})).expect("all have a default"), Respond::blank());
    assert_eq!(
        serde_json::from_value::<RedirectTo>(json!({})).expect("all have a default"),
        RedirectTo::blank()
    );
    assert_eq!(serde_json::from_value::<Rewrite>(json!({})).expect("all have a default"), Rewrite::blank());
    let header: HeaderMatch = serde_json::from_value(json!({"name": ""})).expect("a condition");
    assert_eq!(header, HeaderMatch::blank());
    let edit: FieldEdit = serde_json::from_value(json!({"name": ""})).expect("a change");
    assert_eq!(edit, FieldEdit::blank());
    let answer: Answer = serde_json::from_value(json!({"name": ""})).expect("an answer");
    assert_eq!(answer, Answer::blank());
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
        let field = match key.name {
            "path_prefix" | "path_regex" => "path",
            "value_regex" => "value",
            name => name,
        };
        let mut after = json!(item);
        let parent: String = path.iter().map(|part| format!("/{part}")).collect();
        let old = before.pointer(&parent).and_then(|parent| parent.get(field));
        let fields = after.pointer_mut(&parent).and_then(Value::as_object_mut).expect("an object");
        let new = fields.remove(field).unwrap_or_else(|| panic!("no field {field}"));
        assert_ne!(Some(&new), old, "{field} was not set");
        // What has no value may be left out.
        fields.extend(old.map(|old| (field.to_owned(), old.clone())));
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
                (Need::Optional(example) | Need::OneOf(example) | Need::Required(example), _) => example,
                (Need::Default, Syntax::Line) => "text/html",
                (Need::Default, Syntax::Template | Syntax::Body) => "${client}",
                (Need::Default, Syntax::LogFilter) => "debug",
                (Need::Default, Syntax::HashKey) => "cookie:user",
                (Need::Default, Syntax::CheckTarget) => "/ready",
                (Need::Default, Syntax::StatusRanges) => "200,204",
                (Need::Default, _) => "another",
            };
            syntax.check(another).expect("the example is valid");
            set(item, another).expect("the example is valid");
            quote(another)
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
    each_key_sets_its_own_field(Respond::blank, &[], keys::RESPOND);
    each_key_sets_its_own_field(RedirectTo::blank, &[], keys::REDIRECT_TO);
    each_key_sets_its_own_field(Rewrite::blank, &[], keys::REWRITE);
    each_key_sets_its_own_field(BasicAuth::blank, &[], keys::AUTH);
    each_key_sets_its_own_field(User::blank, &[], keys::USER);
    each_key_sets_its_own_field(HeaderMatch::blank, &[], keys::HEADER);
    each_key_sets_its_own_field(FieldEdit::blank, &[], keys::EDIT);
    each_key_sets_its_own_field(Answer::blank, &[], keys::ANSWER);
    each_key_sets_its_own_field(AnswerField::blank, &[], keys::ANSWER_FIELD);
    each_key_sets_its_own_field(AnswerFor::blank, &[], keys::ANSWER_FOR);
}
