//! The text of each error of a file, with its line and column.

use std::io::Write;
use std::path::Path;

use crate::config::{FILE_SIZE_MAX, load, load_with_warnings, parse, parse_with_warnings};

/// Items that make any settings before them a complete file.
const ITEMS: &str = "
[[listener]]
name = \"web\"
address = \"0.0.0.0:8080\"
default_cluster = \"app\"
[[cluster]]
name = \"app\"
[[cluster.backend]]
address = \"127.0.0.1:9000\"
";

/// Everything that is said of a file named `u.toml`, one line each.
fn said(text: &str) -> Vec<String> {
    let all = match parse_with_warnings(text, "u.toml") {
        Ok((_, warnings)) => warnings,
        Err(errors) => errors.diagnostics,
    };
    all.iter().map(ToString::to_string).collect()
}

/// For each line of settings the message that it gets, after `u.toml:1:`.
fn settings_say(cases: &[(&str, &str)]) {
    for (line, expected) in cases {
        assert_eq!(said(&format!("{line}{ITEMS}")), [format!("u.toml:1:{expected}")], "{line}");
    }
}

/// For each value of a key, as the file has it, the message that it gets after the value.
fn values_say(before: &str, after: &str, message: &str, cases: &[(&str, &str)]) {
    for (value, expected) in cases {
        let file = format!("{before}{value}{after}");
        assert_eq!(said(&file), [format!("{message} {value}: {expected}")], "{value}");
    }
}

fn listener_address_says(cases: &[(&str, &str)]) {
    let before = "[[listener]]\nname = \"web\"\naddress = ";
    let after = ITEMS.replace("\n[[listener]]\nname = \"web\"\naddress = \"0.0.0.0:8080\"", "");
    values_say(before, &after, "u.toml:3:11: listener \"web\": address", cases);
}

fn backend_address_says(cases: &[(&str, &str)]) {
    let before = format!("{ITEMS}[[cluster.backend]]\naddress = ");
    values_say(&before, "\n", "u.toml:11:11: cluster \"app\": backend 2: address", cases);
}

fn route_says(key: &str, cases: &[(&str, &str)]) {
    let before = format!("{ITEMS}[[route]]\ncluster = \"app\"\n{key} = ");
    let message = format!("u.toml:12:{}: route 1: {key}", key.len() + 4);
    values_say(&before, "\n", &message, cases);
}

#[test]
fn a_valid_file_says_nothing() {
    assert_eq!(said(ITEMS), Vec::<String>::new());
}

#[test]
fn all_errors_are_told_in_the_order_of_the_lines() {
    let text =
        "worker = 2\n[limits]\nconnections = 0\n[[listener]]\nname = \"web\"\naddress = \"0.0.0.0:99999\"\n";
    let errors = parse(text, "underpass.toml").expect_err("three errors");
    let expected = "\
underpass.toml:1:1: worker: unknown key; did you mean workers?
underpass.toml:3:15: limits.connections 0: below 1; use a number from 1 to 1048576 connections
underpass.toml:6:11: listener \"web\": address \"0.0.0.0:99999\": port above 65535; use a port between 1 and 65535";
    assert_eq!(errors.to_string(), expected);
}

#[test]
fn warnings_do_not_fail() {
    let text = format!("{ITEMS}[[cluster]]\nname = \"spare\"\n");
    assert!(parse(&text, "u.toml").is_ok());
    let expected = "u.toml:10:1: warning: cluster \"spare\": no route and no listener leads to it; add a [[route]], or \
                    remove it";
    assert_eq!(said(&text), [expected]);
}

#[test]
fn syntax() {
    let expected = "u.toml:2:3: not TOML: key with no value, expected `=`; correct the syntax";
    assert_eq!(said("workers = 1\nuser\n"), [expected.replace("2:3", "2:5")]);
    assert_eq!(
        said("workers = 1\nworkers = 2\n"),
        ["u.toml:2:1: not TOML: duplicate key; correct the syntax"]
    );
}

#[test]
fn unknown_keys() {
    settings_say(&[
        ("conections = 1", "1: conections: unknown key; did you mean connections, under [limits]?"),
        ("connections = 1", "1: connections: unknown key; put it under [limits]"),
        ("zzz = 1", "1: zzz: unknown key; remove it"),
        ("limit.connections = 1", "1: limit: unknown key; did you mean limits?"),
        ("limits.conections = 1", "8: limits.conections: unknown key; did you mean connections?"),
        ("limits.workers = 1", "8: limits.workers: unknown key; put it above the first [table]"),
        ("limits.head_ms = 1", "8: limits.head_ms: unknown key; put it under [timeouts]"),
    ]);
    let text = format!("{ITEMS}adress = \"127.0.0.1:1\"\n[[listeners]]\n");
    let expected = [
        "u.toml:10:1: cluster \"app\": backend 1: adress: unknown key; did you mean address?",
        "u.toml:11:3: listeners: unknown key; did you mean listener?",
    ];
    assert_eq!(said(&text), expected);
}

#[test]
fn missing_keys() {
    let text = "[[listener]]\n[[cluster]]\n[[cluster.backend]]\n[[route]]\n";
    let expected = [
        "u.toml:1:1: listener 1: address: missing; add it, as address = \"0.0.0.0:8080\"",
        "u.toml:1:1: listener 1: name: missing; add it, as name = \"web\"",
        "u.toml:2:1: cluster 1: name: missing; add it, as name = \"app\"",
        "u.toml:3:1: cluster 1: backend 1: address: missing; add it, as address = \"127.0.0.1:9000\"",
        "u.toml:4:1: route 1: cluster: missing; add it, as cluster = \"app\", or respond or redirect_to in its place",
    ];
    let mut found = said(text);
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn wrong_types() {
    settings_say(&[
        (
            "workers = \"2\"",
            "11: workers \"2\": a string, not a whole number; use a number from 0 to 1024 workers",
        ),
        (
            "workers = 1.5",
            "11: workers 1.5: a fraction, not a whole number; use a number from 0 to 1024 workers",
        ),
        ("workers = [1]", "11: workers: a list, not a whole number; use a number from 0 to 1024 workers"),
        ("user = 5", "8: user 5: a number, not a string; write it in quotes: \"5\""),
        ("user = 2020-01-01", "8: user 2020-01-01: a date, not a string; write it in quotes: \"2020-01-01\""),
        ("user = {}", "8: user: a table, not a string; write a string in quotes"),
        ("log = \"info\"", "7: log: a string, not a table; write [log]"),
    ]);
    let text = format!("{ITEMS}[[route]]\ncluster = \"app\"\nallow_connect = 1\n");
    let expected = "u.toml:12:17: route 1: allow_connect 1: a number, not a boolean; use true or false";
    assert_eq!(said(&text), [expected]);
    let expected = "u.toml:1:1: listener: a table, not a list of tables; write [[listener]], in double brackets, once for each";
    assert_eq!(said("[listener]\nname = \"web\"\n"), [expected]);
    let expected = "u.toml:3:12: backend: a string, not a table; write [[cluster.backend]], in double brackets, once \
                    for each";
    assert_eq!(said("[[cluster]]\nname = \"app\"\nbackend = [\"127.0.0.1:1\"]\n"), [expected]);
}

#[test]
fn numbers_out_of_range() {
    settings_say(&[
        ("workers = 1025", "11: workers 1025: above 1024; use a number from 0 to 1024 workers"),
        ("workers = 70000", "11: workers 70000: above 1024; use a number from 0 to 1024 workers"),
        ("workers = -1", "11: workers -1: below 0; use a number from 0 to 1024 workers"),
        ("workers = 0xffff", "11: workers 0xffff: above 1024; use a number from 0 to 1024 workers"),
        (
            "workers = 99999999999999999999999999999999999999999999",
            "11: workers 99999999999999999999999999999999999999999999: above 1024; use a number from 0 to 1024 workers",
        ),
        (
            "timeouts.head_ms = 0",
            "20: timeouts.head_ms 0: below 1; use a number from 1 to 2592000000 milliseconds",
        ),
        (
            "limits.buffer_size = 4095\nlimits.head_size_max = 4000\nlimits.target_size_max = 100",
            "22: limits.buffer_size 4095: below 4096; use a number from 4096 to 1048576 bytes",
        ),
    ]);
}

#[test]
fn a_limit_that_contradicts_a_default_is_told_at_its_own_line() {
    settings_say(&[(
        "limits.buffer_size = 8192",
        "22: limits.head_size_max 16384: above limits.buffer_size, 8192, and a head must fit into one buffer; lower \
         it, or raise limits.buffer_size",
    )]);
    settings_say(&[(
        "limits.redirect_credit = 2097152",
        "26: limits.unsent_max 1048576: below limits.redirect_credit, 2097152, and sockmap may pass on as much before the \
         socket has sent it; raise it, or lower limits.redirect_credit",
    )]);
}

#[test]
fn a_value_that_was_not_read_has_no_consequences() {
    // Neither the default in its place nor the names that refer to it are blamed.
    settings_say(&[(
        "limits.buffer_size = \"big\"\nlimits.head_size_max = 65536",
        "22: limits.buffer_size \"big\": a string, not a whole number; use a number from 4096 to 1048576 bytes",
    )]);
    let text = ITEMS.replace("name = \"app\"", "name = 7");
    assert_eq!(
        said(&text),
        ["u.toml:7:8: cluster 1: name 7: a number, not a string; write it in quotes: \"7\""]
    );
}

#[test]
fn choices() {
    settings_say(&[
        (
            "redirect = \"slice\"",
            "12: redirect \"slice\": unknown value; did you mean \"splice\"? use one of copy, splice, sockmap, auto",
        ),
        ("steering = \"numa\"", "12: steering \"numa\": unknown value; use one of cpu, rx-queue, hash, off"),
        (
            "log.access = \"xml\"",
            "14: log.access \"xml\": unknown value; use one of off, text, json, combined, template",
        ),
    ]);
}

#[test]
fn texts_of_the_settings() {
    let via = "use letters, digits and '-', as underpass or proxy1.example.com:8080; \"\" leaves Via alone";
    let levels = "off, error, warn, info, debug, trace";
    let long = format!("/{}", "x".repeat(107));
    settings_say(&[
        ("via = \"a b\"", &format!("7: via \"a b\": ' ' is not allowed in a token; {via}")),
        ("via = \":80\"", &format!("7: via \":80\": has no name before the colon; {via}")),
        ("via = \"a:b\"", &format!("7: via \"a:b\": what follows the colon is not a port; {via}")),
        ("user = \"a b\"", "8: user \"a b\": ' ' is not allowed in a user name; use the name of a user"),
        ("admin_socket = \"\"", "16: admin_socket \"\": empty; give it a value"),
        (
            "admin_uids = \"1000,admin\"",
            "14: admin_uids \"1000,admin\": \"admin\" is not the id of a user; write numbers separated by commas, as 1000, 1001; id -u NAME tells a user's",
        ),
        (
            "admin_uids = \"4294967295\"",
            "14: admin_uids \"4294967295\": 4294967295 is above 4294967294; write numbers separated by commas, as 1000, 1001; id -u NAME tells a user's",
        ),
        (
            &format!("admin_socket = \"{long}\""),
            &format!("16: admin_socket \"{long}\": longer than 107 bytes; use a shorter one"),
        ),
        (
            "admin_socket = \"/a\\u0000b\"",
            "16: admin_socket \"/a\\u0000b\": holds the control character '\\0'; remove it",
        ),
        (
            "log.access_file = \"/var/log/\"",
            "19: log.access_file \"/var/log/\": names a folder; name a file in it",
        ),
        (
            "log.level = \"inof\"",
            &format!(
                "13: log.level \"inof\": unknown level; use one of {levels}, or a filter as underpass=debug"
            ),
        ),
        (
            "log.level = \"a=b=c\"",
            "13: log.level \"a=b=c\": not a filter; write it as underpass=debug,warn: modules and their levels",
        ),
    ]);
}

#[test]
fn listener_addresses() {
    listener_address_says(&[
        ("\"0.0.0.0:99999\"", "port above 65535; use a port between 1 and 65535"),
        ("\"0.0.0.0:http\"", "the port is not a number; use a port between 1 and 65535"),
        ("\"0.0.0.0:\"", "the port is not a number; use a port between 1 and 65535"),
        ("\"0.0.0.0\"", "has no port; write 0.0.0.0:PORT"),
        ("\"::\"", "an IPv6 address without brackets and port; write [::]:PORT"),
        ("\":8080\"", "has no IP address; write 0.0.0.0:8080 for every address, or 127.0.0.1:8080"),
        ("\"8080\"", "not an IP address and port; write it as 127.0.0.1:8080 or [::1]:8080"),
        (
            "\"localhost:80\"",
            "\"localhost\" is not an IP address, and names are not looked up; use the IP address",
        ),
        (
            "\"239.0.0.1:80\"",
            "a multicast or broadcast address cannot accept connections; use one of this host",
        ),
    ]);
}

#[test]
fn backend_addresses() {
    backend_address_says(&[
        ("\"127.0.0.1:0\"", "port 0 cannot be connected to; use a port between 1 and 65535"),
        (
            "\"[::]:80\"",
            "stands for every address of this host, not for one to connect to; use the backend's own address; \
             127.0.0.1 or [::1] for this host",
        ),
        (
            "\"255.255.255.255:80\"",
            "a multicast or broadcast address cannot be connected to; use the backend's own",
        ),
    ]);
}

#[test]
fn names() {
    let allowed = "use letters, digits, '-', '_' and '.'";
    let long = "x".repeat(129);
    for (name, expected) in [
        ("a b", format!("' ' is not allowed in a name; {allowed}")),
        ("é", format!("'é' is not allowed in a name; {allowed}")),
        (&*long, "longer than 128 bytes; use a shorter one".into()),
    ] {
        let text = format!(
            "[[listener]]\nname = \"{name}\"\naddress = \"127.0.0.1:1\"\n[[cluster]]\nname = \"app\"\n"
        );
        let found = said(&format!("{text}[[route]]\ncluster = \"app\"\n"));
        assert!(
            found.contains(&format!("u.toml:2:8: listener {name:?}: name {name:?}: {expected}")),
            "{found:?}"
        );
    }
}

#[test]
fn hosts() {
    route_says(
        "host",
        &[
            ("\"\"", "empty; give it a value"),
            ("\"*\"", "not a host name; leave host out to take every host"),
            ("\"Example.com:80\"", "has a port; write \"example.com\": a route takes every port"),
            ("\"example.com.\"", "ends with a dot; write \"example.com\""),
            ("\"http://example.com\"", "a URL, not a host name; leave away the scheme and the path"),
            ("\"a..b\"", "has an empty label; remove the extra dot"),
            (
                "\"a*.b\"",
                "a wildcard takes whole labels at the start only; write *. at the start and nowhere else, as \
                          *.example.com",
            ),
            (
                "\"a.*.b\"",
                "a wildcard takes whole labels at the start only; write *. at the start and nowhere else, as \
                           *.example.com",
            ),
            ("\"bücher.example\"", "not ASCII; write international names in their xn-- form"),
            ("\"-a.example\"", "the label \"-a\" begins or ends with '-'; remove it"),
            ("\"a/b\"", "'/' is not allowed in a host name; remove it"),
            ("\"::1\"", "an IPv6 address without brackets; write [::1]"),
            ("\"[::g]\"", "not an IPv6 address in brackets; write it as [2001:db8::1]"),
        ],
    );
}

#[test]
fn hosts_are_read_in_lower_case() {
    let text = format!("{ITEMS}[[route]]\ncluster = \"app\"\nhost = \"*.Example.COM\"\n");
    let state = parse(&text, "u.toml").expect("valid");
    assert_eq!(state.routes[0].host.as_deref(), Some("*.example.com"));
}

#[test]
fn paths() {
    for key in ["path", "path_prefix"] {
        route_says(
            key,
            &[
                ("\"\"", "empty; give it a value"),
                ("\"api\"", "does not begin with /; write \"/api\""),
                ("\"/a?b=c\"", "holds more than a path; write \"/a\": queries are not matched"),
                ("\"/a/../b\"", "has a segment of dots; write the path that it stands for"),
                ("\"/a b\"", "' ' is not allowed in a path; write %20"),
                ("\"/é\"", "'é' is not allowed in a path; write %C3%A9"),
                ("\"/{id}\"", "'{' is not allowed in a path; write %7B"),
                ("\"/100%\"", "has a % without two hexadecimal digits; write %25 for the character %"),
            ],
        );
    }
    let text = format!("{ITEMS}[[route]]\ncluster = \"app\"\npath = \"/a\"\npath_prefix = \"/b\"\n");
    let expected = "u.toml:13:15: route 1: path_prefix \"/b\": path is given as well; keep one of the two";
    assert_eq!(said(&text), [expected]);
}

#[test]
fn what_is_there_twice() {
    let again = "[[listener]]\nname = \"web\"\naddress = \"0.0.0.0:8080\"\n[[cluster]]\nname = \"app\"\n\
                 [[cluster.backend]]\naddress = \"127.0.0.1:9000\"\n[[cluster.backend]]\naddress = \"127.0.0.1:9000\"\n\
                 [[route]]\nhost = \"a.example\"\npath_prefix = \"/\"\ncluster = \"app\"\n\
                 [[route]]\nhost = \"A.example\"\ncluster = \"app\"\n";
    let expected = [
        "u.toml:11:8: listener 2: name \"web\": listener 1 has this name already; give each its own",
        "u.toml:12:11: listener \"web\": address \"0.0.0.0:8080\": listener \"web\" listens there already; use another \
         address or port",
        "u.toml:14:8: cluster 2: name \"app\": cluster 1 has this name already; give each its own",
        "u.toml:18:11: cluster \"app\": backend 2: address \"127.0.0.1:9000\": backend 1 of this cluster has it \
         already; remove one of them",
        "u.toml:23:1: route 2: the same listener, host and path as route 1; remove one of them",
    ];
    assert_eq!(said(&format!("{ITEMS}{again}")), expected);
}

#[test]
fn names_that_are_not_there() {
    let text = format!("{ITEMS}[[route]]\nlistener = \"wbe\"\ncluster = \"other\"\n");
    let expected = [
        "u.toml:11:12: route 1: listener \"wbe\": there is no such listener; did you mean \"web\"?",
        "u.toml:12:11: route 1: cluster \"other\": there is no such cluster; add a [[cluster]] of this name, or name \
         another",
    ];
    assert_eq!(said(&text), expected);
    let text = ITEMS.replace("default_cluster = \"app\"", "default_cluster = \"apps\"");
    let found = said(&text);
    let expected = "u.toml:5:19: listener \"web\": default_cluster \"apps\": there is no such cluster; did you mean \"app\"?";
    assert!(found.contains(&expected.to_owned()), "{found:?}");
}

#[test]
fn columns_count_characters() {
    let text = "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:1\" # é\n[[route]]\n\"ß\" = 1\ncluster = \"é\"\n";
    assert!(said(text).contains(&"u.toml:5:1: route 1: ß: unknown key; remove it".to_owned()));
    let text = "log = { \"ß\" = 1, level = 2 }";
    assert_eq!(
        said(&format!("{text}{ITEMS}"))[1],
        "u.toml:1:26: log.level 2: a number, not a string; write it in quotes: \"2\""
    );
}

#[test]
fn the_number_of_errors_told_is_bounded() {
    let many: String = (0..200).map(|number| format!("zzz{number} = 1\n")).collect();
    let found = said(&format!("{many}{ITEMS}"));
    assert_eq!(found.len(), 101);
    assert_eq!(found[0], "u.toml:1:1: zzz0: unknown key; remove it");
    assert_eq!(found[100], "u.toml: 100 more problems; correct those above first");
}

#[test]
fn files_that_cannot_be_read() {
    let errors = load(Path::new("/nonexistent/u.toml")).expect_err("no such file");
    let expected = "/nonexistent/u.toml: cannot be read: No such file or directory (os error 2); name a file that this \
                    user may read";
    assert_eq!(errors.to_string(), expected);

    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(b"workers = 1\nuser = \"\xff\"\n").expect("written");
    let errors = load(file.path()).expect_err("not UTF-8");
    assert_eq!(
        errors.to_string(),
        format!("{}: not UTF-8 in line 2; save it as UTF-8", file.path().display())
    );

    file.as_file().set_len(FILE_SIZE_MAX + 1).expect("a sparse file");
    let errors = load(file.path()).expect_err("too large");
    assert_eq!(
        errors.to_string(),
        format!("{}: above 16777216 bytes; use a smaller file", file.path().display())
    );
}

#[test]
fn a_file_is_read() {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    // Some editors put a byte order mark first.
    file.write_all(format!("\u{feff}workers = 3{ITEMS}").as_bytes()).expect("written");
    let (state, warnings) = load_with_warnings(file.path()).expect("valid");
    assert_eq!((state.settings.workers, state.listeners[0].name.as_str(), warnings), (3, "web", Vec::new()));
}

/// A file says more than a state: a default that means nothing is refused too.
#[test]
fn keys_for_http_where_http_is_not_spoken() {
    let items =
        ITEMS.replace("default_cluster", "protocol = \"tcp\"\nx_forwarded = \"append\"\ndefault_cluster");
    let nothing = "means nothing where protocol is \"tcp\"; remove it";
    assert_eq!(said(&items), [format!("u.toml:6:15: listener \"web\": x_forwarded \"append\": {nothing}")]);
    let items = items.replace("x_forwarded = \"append\"\n", "");
    let route = "[[route]]\nsni = \"A.example\"\npath_prefix = \"/\"\ncluster = \"app\"\n";
    let nothing = "means nothing beside sni: inside TLS nobody sees it; remove it, or sni";
    assert_eq!(
        said(&format!("{items}{route}")),
        [format!("u.toml:13:15: route 1: path_prefix \"/\": {nothing}")]
    );
    assert_eq!(said(&format!("{items}{}", route.replace("path_prefix = \"/\"\n", ""))), Vec::<String>::new());
}
