//! TOML to [`State`], with the place of everything that is wrong.

mod value;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};
use underpass_command::state::{Answer, Cluster, Listener, Protocol, Route, Settings, State};

use self::value::{kind, literal, wrong_type};
use super::keys::{self, Blank};
use super::problem::{Diagnostic, Place, Problem, Severity};
use super::syntax::nearest;
use super::table::{Access, Fault, Key, Need, quote, use_range};
use super::validate::{label, sni_route_fault, tcp_listener_fault, validate};

/// The most problems that are told of one file.
const DIAGNOSTICS_MAX: usize = 100;

/// The lists of items.
const LISTS: [&str; 4] = ["listener", "cluster", "route", "answer"];

/// Reads a whole file. The state is usable only if no diagnostic is an error.
pub(super) fn read(text: &str, file_name: &str) -> (State, Vec<Diagnostic>) {
    let lines = Lines::new(text);
    let at = |span: Option<Range<usize>>, problem| Diagnostic {
        file: file_name.to_owned(),
        position: span.map(|span| lines.position(text, span.start)),
        problem,
    };
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let reason = format!("not TOML: {}", error.message().replace('\n', ", "));
            let problem = Problem::file(Fault::new(reason, "correct the syntax"));
            return (State::default(), vec![at(error.span(), problem)]);
        }
    };
    let mut reader = Reader::default();
    let state = reader.state(document.get_ref());
    let mut found = std::mem::take(&mut reader.found);
    for mut problem in validate(&state).into_iter().filter(|problem| reader.is_real(problem)) {
        if let Some(written) = reader.written(&problem, text) {
            problem.value = Some(written.to_owned());
        }
        found.push((reader.span(&problem), problem));
    }
    found.sort_by_key(|(span, _)| span.as_ref().map(|span| span.start));
    let diagnostics = found.into_iter().map(|(span, problem)| at(span, problem)).collect();
    (state, bound(diagnostics))
}

/// Keeps the first [`DIAGNOSTICS_MAX`], errors before warnings, and counts the rest.
fn bound(mut diagnostics: Vec<Diagnostic>) -> Vec<Diagnostic> {
    if diagnostics.len() <= DIAGNOSTICS_MAX {
        return diagnostics;
    }
    diagnostics.sort_by_key(|diagnostic| Reverse(diagnostic.problem.severity));
    let rest = diagnostics.split_off(DIAGNOSTICS_MAX);
    diagnostics.sort_by_key(|diagnostic| diagnostic.position);
    let fault = Fault::new(format!("{} more problems", rest.len()), "correct those above first");
    let severity = rest[0].problem.severity;
    let problem = Problem { severity, ..Problem::file(fault) };
    diagnostics.push(Diagnostic { file: rest[0].file.clone(), position: None, problem });
    diagnostics
}

#[derive(Default)]
struct Reader {
    /// Where each value stands; where each item stands under the empty key.
    spans: HashMap<(Place, String), Range<usize>>,
    /// Keys whose value could not be taken: the state has something else there.
    unread: HashSet<(Place, String)>,
    found: Vec<(Option<Range<usize>>, Problem)>,
}

/// An item's place, what its keys are called, and which of its keys are lists or tables read elsewhere.
struct Scope<'a> {
    place: Place,
    label: String,
    /// Stands before each key, as `limits.`.
    prefix: &'a str,
    elsewhere: &'a [&'a str],
}

impl Reader {
    fn state(&mut self, document: &DeTable<'_>) -> State {
        let mut state = State::default();
        let elsewhere: Vec<_> = keys::TABLES.iter().map(|(name, _)| *name).chain(LISTS).collect();
        let scope = Scope { place: Place::Settings, label: String::new(), prefix: "", elsewhere: &elsewhere };
        self.fields(&scope, keys::ROOT, document, &mut state.settings);
        for (name, keys) in keys::TABLES {
            let prefix = &format!("{name}.");
            let scope = Scope { place: Place::Settings, label: String::new(), prefix, elsewhere: &[] };
            if let Some(table) = self.settings_table(name, document) {
                self.fields(&scope, keys, table, &mut state.settings);
            }
        }
        state.listeners = self.list("listener", "", document, Place::Listener, |reader, place, table| {
            let name = name_in(table);
            let mut listener: Listener = reader.item(place, name, keys::LISTENER, table, &["answer"]);
            listener.answers =
                reader.sublist("answer", "listener.", "", place, name, keys::ANSWER_FOR, table);
            if listener.protocol == Protocol::Tcp {
                reader.http_only(
                    place,
                    &listener.name,
                    &keys::LISTENER_HTTP_ONLY,
                    table,
                    tcp_listener_fault(),
                );
            }
            listener
        });
        state.clusters = self.list("cluster", "", document, Place::Cluster, Self::cluster);
        state.routes = self.list("route", "", document, Place::Route, Self::route);
        state.answers = self.list("answer", "", document, Place::Answer, |reader, place, table| {
            let name = name_in(table);
            let mut answer: Answer = reader.item(place, name, keys::ANSWER, table, &["field"]);
            answer.fields = reader.sublist("field", "answer.", "", place, name, keys::ANSWER_FIELD, table);
            answer
        });
        state
    }

    fn cluster(&mut self, place: Place, table: &DeTable<'_>) -> Cluster {
        let name = name_in(table);
        let mut cluster: Cluster = self.item(place, name, keys::CLUSTER, table, &["backend", "answer"]);
        cluster.answers = self.sublist("answer", "cluster.", "", place, name, keys::ANSWER_FOR, table);
        let Place::Cluster(index) = place else { return cluster };
        let place_of = |backend| Place::Backend { cluster: index, backend };
        cluster.backends = self.list("backend", "cluster.", table, place_of, |reader, place, table| {
            reader.item(place, name, keys::BACKEND, table, &[])
        });
        cluster
    }

    fn route(&mut self, place: Place, table: &DeTable<'_>) -> Route {
        let mut route: Route = self.item(place, "", keys::ROUTE, table, &keys::ROUTE_PARTS);
        if route.sni.is_some() {
            self.http_only(place, "", &keys::ROUTE_HTTP_ONLY, table, sni_route_fault());
            return route;
        }
        self.one_of(place, "", table, &["path", "path_prefix", "path_regex"]);
        route.respond = self.part("respond", place, keys::RESPOND, table, &[]);
        route.redirect_to = self.part("redirect_to", place, keys::REDIRECT_TO, table, &[]);
        route.rewrite = self.part("rewrite", place, keys::REWRITE, table, &[]);
        route.auth = self.part("auth", place, keys::AUTH, table, &["user"]);
        if let (Some(auth), Some(table)) =
            (&mut route.auth, table.get("auth").and_then(|auth| auth.get_ref().as_table()))
        {
            auth.users = self.sublist("user", "route.auth.", "auth.", place, "", keys::USER, table);
        }
        route.headers = self.sublist("header", "route.", "", place, "", keys::HEADER, table);
        for (number, header) in lists_of(table, "header").enumerate() {
            self.one_of(place, &format!("header {}.", number + 1), header, &["value", "value_regex"]);
        }
        route.edits = self.sublist("edit", "route.", "", place, "", keys::EDIT, table);
        route
    }

    /// A table below an item, as `[route.respond]`. Its keys are known as `respond.status`.
    fn part<T: Blank>(
        &mut self,
        name: &str,
        place: Place,
        keys: &[Key<T>],
        table: &DeTable<'_>,
        elsewhere: &[&str],
    ) -> Option<T> {
        let value = table.get(name)?;
        let Some(table) = value.get_ref().as_table() else {
            let reason = format!("{}, not a table", kind(value.get_ref()));
            let fault =
                Fault::new(reason, format!("write it as {name} = {{ ... }}, or below [route.{name}]"));
            self.report(place, &label(place, ""), name, Some(value.span()), None, fault);
            return None;
        };
        let mut part = T::blank();
        let prefix = &format!("{name}.");
        self.spans.insert((place, name.to_owned()), value.span());
        self.fields(&Scope { place, label: label(place, ""), prefix, elsewhere }, keys, table, &mut part);
        Some(part)
    }

    /// A list of tables below an item, as `[[route.edit]]`. Their keys are known as `edit 1.name`.
    #[allow(clippy::too_many_arguments, reason = "each says where it stands in another way")]
    fn sublist<T: Blank>(
        &mut self,
        name: &str,
        above: &str,
        prefix: &str,
        place: Place,
        item_name: &str,
        keys: &[Key<T>],
        table: &DeTable<'_>,
    ) -> Vec<T> {
        let number = std::cell::Cell::new(0);
        let item_span = self.spans.get(&(place, String::new())).cloned();
        let items = self.list(
            name,
            above,
            table,
            |_| place,
            |reader, place, table| {
                number.set(number.get() + 1);
                let prefix = &format!("{prefix}{name} {}.", number.get());
                let mut item = T::blank();
                let label = label(place, item_name);
                reader.fields(&Scope { place, label, prefix, elsewhere: &[] }, keys, table, &mut item);
                item
            },
        );
        // The place is still that of the item above.
        if let Some(span) = item_span {
            self.spans.insert((place, String::new()), span);
        }
        items
    }

    /// One of `[log]`, `[limits]` and `[timeouts]`.
    fn settings_table<'t, 'i>(&mut self, name: &str, document: &'t DeTable<'i>) -> Option<&'t DeTable<'i>> {
        let value = document.get(name)?;
        let table = value.get_ref().as_table();
        if table.is_none() {
            let fault =
                Fault::new(format!("{}, not a table", kind(value.get_ref())), format!("write [{name}]"));
            self.report(Place::Settings, "", name, Some(value.span()), None, fault);
        }
        table
    }

    /// The items of a list of tables, as `[[listener]]`.
    fn list<T>(
        &mut self,
        name: &str,
        prefix: &str,
        table: &DeTable<'_>,
        place: impl Fn(usize) -> Place,
        read: impl Fn(&mut Self, Place, &DeTable<'_>) -> T,
    ) -> Vec<T> {
        let Some(value) = table.get(name) else { return Vec::new() };
        let wrong = |value: &Spanned<DeValue<'_>>, expected: &str| {
            let reason = format!("{}, not {expected}", kind(value.get_ref()));
            Fault::new(reason, format!("write [[{prefix}{name}]], in double brackets, once for each"))
        };
        let Some(array) = value.get_ref().as_array() else {
            let fault = wrong(value, "a list of tables");
            self.report(Place::Whole, "", name, Some(value.span()), None, fault);
            return Vec::new();
        };
        let mut items = Vec::with_capacity(array.len());
        for item in array.iter() {
            match item.get_ref().as_table() {
                Some(table) => {
                    let place = place(items.len());
                    self.spans.insert((place, String::new()), item.span());
                    items.push(read(self, place, table));
                }
                None => self.report(Place::Whole, "", name, Some(item.span()), None, wrong(item, "a table")),
            }
        }
        items
    }

    fn item<T: Blank>(
        &mut self,
        place: Place,
        name: &str,
        keys: &[Key<T>],
        table: &DeTable<'_>,
        elsewhere: &[&str],
    ) -> T {
        let mut item = T::blank();
        let scope = Scope { place, label: label(place, name), prefix: "", elsewhere };
        self.fields(&scope, keys, table, &mut item);
        item
    }

    /// Reads the keys of one table into the item that they set.
    fn fields<T>(&mut self, scope: &Scope<'_>, keys: &[Key<T>], table: &DeTable<'_>, target: &mut T) {
        for (name, value) in table.iter() {
            let text: &str = name.get_ref();
            if scope.elsewhere.contains(&text) {
                continue;
            }
            match keys.iter().find(|key| key.name == text) {
                Some(key) => self.field(scope, key, value, target),
                None => self.unknown_key(scope, keys, name),
            }
        }
        for key in keys.iter().filter(|key| !table.contains_key(key.name)) {
            if let Need::Required(example) = key.need {
                let fault = Fault::new("missing", format!("add it, as {} = {}", key.name, quote(example)));
                let span = self.spans.get(&(scope.place, String::new())).cloned();
                let path = format!("{}{}", scope.prefix, key.name);
                self.report(scope.place, &scope.label, &path, span, None, fault);
            }
        }
    }

    fn field<T>(&mut self, scope: &Scope<'_>, key: &Key<T>, value: &Spanned<DeValue<'_>>, target: &mut T) {
        let path = format!("{}{}", scope.prefix, key.name);
        let result = match (&key.access, value.get_ref()) {
            (Access::Boolean { set, .. }, DeValue::Boolean(yes)) => {
                set(target, *yes);
                Ok(())
            }
            (Access::Text { set, .. }, DeValue::String(text)) => set(target, text),
            (Access::Integer { range, unit, set, .. }, DeValue::Integer(digits)) => {
                let number = i128::from_str_radix(digits.as_str(), digits.radix()).ok();
                match number.and_then(|number| u64::try_from(number).ok()) {
                    Some(number) if set(target, number) => Ok(()),
                    _ if number.is_some_and(|number| number < 0) => {
                        Err(Fault::new(format!("below {}", range.start()), use_range(range, unit)))
                    }
                    _ => Err(Fault::new(format!("above {}", range.end()), use_range(range, unit))),
                }
            }
            (_, other) if key.is_secret() => {
                let reason = format!("{}, not a string", kind(other));
                Err(Fault::new(reason, "write it in quotes"))
            }
            (access, other) => Err(wrong_type(access, other)),
        };
        match result {
            Ok(()) => {
                self.spans.insert((scope.place, path), value.span());
            }
            Err(fault) => {
                self.report(
                    scope.place,
                    &scope.label,
                    &path,
                    Some(value.span()),
                    if key.is_secret() { None } else { literal(value.get_ref()) },
                    fault,
                );
            }
        }
    }

    fn unknown_key<T>(&mut self, scope: &Scope<'_>, keys: &[Key<T>], name: &Spanned<DeString<'_>>) {
        let text: &str = name.get_ref();
        let known = keys.iter().map(|key| key.name).chain(scope.elsewhere.iter().copied());
        let remedy = match nearest(text, known) {
            Some(near) => format!("did you mean {near}?"),
            None if scope.place == Place::Settings => elsewhere(text),
            None => "remove it".into(),
        };
        let path = format!("{}{text}", scope.prefix);
        let fault = Fault::new("unknown key", remedy);
        self.report(scope.place, &scope.label, &path, Some(name.span()), None, fault);
    }

    /// Keys that exclude each other: only the first that is there may be.
    fn one_of(&mut self, place: Place, prefix: &str, table: &DeTable<'_>, keys: &[&str]) {
        let mut given = keys.iter().filter_map(|key| Some((*key, table.get(*key)?)));
        let Some((first, _)) = given.next() else { return };
        for (key, value) in given {
            let fault = Fault::new(format!("{first} is given as well"), "keep one of the two");
            let literal = literal(value.get_ref());
            let path = format!("{prefix}{key}");
            self.report(place, &label(place, ""), &path, Some(value.span()), literal, fault);
        }
    }

    /// Keys that are there and mean something for HTTP only. What they say need not be looked at, so defaults count too.
    fn http_only(&mut self, place: Place, name: &str, keys: &[&str], table: &DeTable<'_>, fault: Fault) {
        for key in keys {
            if let Some(value) = table.get(*key)
                && !self.unread.contains(&(place, (*key).to_owned()))
            {
                let literal = literal(value.get_ref());
                self.report(place, &label(place, name), key, Some(value.span()), literal, fault.clone());
            }
        }
    }

    fn report(
        &mut self,
        place: Place,
        label: &str,
        key: &str,
        span: Option<Range<usize>>,
        value: Option<String>,
        fault: Fault,
    ) {
        self.unread.insert((place, key.to_owned()));
        // Nothing can be said of names that refer to the ones that were not read.
        match (place, key) {
            (Place::Listener(_), "name") => self.unread.insert((Place::Whole, "listener".into())),
            (Place::Cluster(_), "name") => self.unread.insert((Place::Whole, "cluster".into())),
            _ => false,
        };
        self.found.push((span, Problem::error(place, label, key, value, fault)));
    }

    /// Whether a problem of the state is one of the file, and no consequence of something that was reported already.
    fn is_real(&self, problem: &Problem) -> bool {
        if problem.severity == Severity::Warning && !self.unread.is_empty() {
            return false;
        }
        !self.unread.contains(&(problem.place, problem.key.clone()))
            && !problem.follows_from.iter().any(|key| self.unread.contains(key))
    }

    /// The value as the file has it, which may differ from how the state has it: upper case, another base.
    fn written<'t>(&self, problem: &Problem, text: &'t str) -> Option<&'t str> {
        problem.value.as_ref()?;
        let span = self.spans.get(&(problem.place, problem.key.clone()))?;
        text.get(span.clone()).filter(|value| !value.contains('\n'))
    }

    fn span(&self, problem: &Problem) -> Option<Range<usize>> {
        let own = (problem.place, problem.key.clone());
        let item = (problem.place, String::new());
        let mut places = std::iter::once(&own).chain(&problem.follows_from).chain(std::iter::once(&item));
        places.find_map(|place| self.spans.get(place).cloned())
    }
}

/// The tables of a list.
fn lists_of<'t, 'i>(table: &'t DeTable<'i>, name: &str) -> impl Iterator<Item = &'t DeTable<'i>> {
    let items = table.get(name).and_then(|list| list.get_ref().as_array());
    items.into_iter().flat_map(|items| items.iter()).filter_map(|item| item.get_ref().as_table())
}

fn name_in<'t>(table: &'t DeTable<'_>) -> &'t str {
    table.get("name").and_then(|name| name.get_ref().as_str()).unwrap_or_default()
}

/// What to do with a setting that its table does not know.
fn elsewhere(text: &str) -> String {
    if keys::ROOT.iter().any(|key| key.name == text) {
        return "put it above the first [table]".into();
    }
    let of_table = |(table, keys): &(&str, &[Key<Settings>])| {
        nearest(text, keys.iter().map(|key| key.name)).map(|near| match near == text {
            true => format!("put it under [{table}]"),
            false => format!("did you mean {near}, under [{table}]?"),
        })
    };
    keys::TABLES.iter().find_map(of_table).unwrap_or_else(|| "remove it".into())
}

/// Finds the line of an offset.
struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    fn new(text: &str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(end, _)| end + 1)).collect();
        Self { starts }
    }

    /// Line and column of an offset, both from 1; the column in characters.
    fn position(&self, text: &str, offset: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts[line - 1];
        let column = text.get(start..offset).map_or(offset - start, |before| before.chars().count());
        (line, column + 1)
    }
}
