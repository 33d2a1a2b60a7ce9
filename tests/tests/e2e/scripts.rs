//! The scripts of tests/vtc, each in both redirect modes.

use std::collections::BTreeSet;
use std::fs;

use underpass_command::state::{
    ForwardedFields, PathMatch, RedirectMode, RequestId, Route, State, TraceContext,
};
use underpass_tests::proxy::Setup;
use underpass_tests::vtc::{folder, play};

/// A test for each script and mode, and the list of scripts.
macro_rules! scripts {
    ($($name:ident: $configure:expr,)+) => {
        $(mod $name {
            #[test]
            fn copy() {
                super::play_in(super::RedirectMode::Copy, stringify!($name), $configure);
            }

            #[test]
            fn splice() {
                super::play_in(super::RedirectMode::Splice, stringify!($name), $configure);
            }
        })+

        const NAMES: &[&str] = &[$(stringify!($name),)+];
    };
}

scripts! {
    keep_alive: |_| {},
    pipelining: |_| {},
    head_method: |_| {},
    no_content: |_| {},
    interim_responses: |_| {},
    old_client: |_| {},
    old_backend: |_| {},
    chunked: |_| {},
    close_delimited: |_| {},
    upload: |_| {},
    hop_by_hop: |_| {},
    targets: |_| {},
    identity_appended: super::identity(super::ForwardedFields::Append, super::RequestId::Keep),
    identity_replaced: super::identity(super::ForwardedFields::Replace, super::RequestId::Replace),
    identity_off: super::identity(super::ForwardedFields::Off, super::RequestId::Off),
    trace_context: |state| state.listeners[0].trace_context = super::TraceContext::Start,
    stale_connection: |_| {},
    routing: super::routes,
    backend_down: |_| {},
}

fn play_in(mode: RedirectMode, name: &str, configure: impl FnOnce(&mut State)) {
    play(&format!("{name}.vtc"), |setup: Setup| setup.redirect(mode).with(configure));
}

/// What the backend is told of the client.
fn identity(fields: ForwardedFields, id: RequestId) -> impl FnOnce(&mut State) {
    move |state| {
        state.listeners[0].x_forwarded = fields;
        state.listeners[0].forwarded = fields;
        state.listeners[0].request_id = id;
        if fields == ForwardedFields::Off {
            state.settings.via.clear();
        }
    }
}

/// Exact and wildcard hosts, exact paths and prefixes, to three clusters; the rest to none.
fn routes(state: &mut State) {
    let route = |host: Option<&str>, path, cluster: &str| Route {
        host: host.map(str::to_owned),
        path,
        ..Route::new(cluster)
    };
    let prefix = |path: &str| PathMatch::Prefix(path.into());
    state.listeners[0].default_cluster = None;
    state.routes = vec![
        route(Some("one.example"), prefix("/"), "app"),
        route(Some("*.example"), prefix("/"), "two"),
        route(Some("*.sub.example"), prefix("/"), "three"),
        route(Some("paths.example"), prefix("/a"), "two"),
        route(Some("paths.example"), prefix("/a/b"), "three"),
        route(Some("paths.example"), PathMatch::Exact("/a/b/c".into()), "app"),
        route(None, prefix("/everywhere"), "three"),
    ];
}

#[test]
fn every_script_is_played() {
    let files: BTreeSet<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let played: BTreeSet<String> = NAMES.iter().map(|name| format!("{name}.vtc")).collect();
    assert_eq!(files, played);
}
