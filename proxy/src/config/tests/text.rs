//! The texts that explain the keys, and the example.

use std::path::Path;

use underpass_command::state::State;

use crate::config::explain::sections;
use crate::config::{explain, load_with_warnings, man_page, parse_with_warnings, to_toml};

#[test]
fn the_explanation_is_a_valid_file_with_every_default() {
    let (state, warnings) = parse_with_warnings(&explain(), "explanation").expect("valid");
    assert_eq!(warnings, []);
    assert_eq!(state.settings, State::default().settings);
    // The keys that are left in it are the required ones; all others are as if they were left out.
    let required = "[[listener]]\nname = 'web'\naddress = '0.0.0.0:8080'\n\
                    [[cluster]]\nname = 'app'\n[[cluster.backend]]\naddress = '127.0.0.1:9000'\n\
                    [[route]]\ncluster = 'app'\n";
    let (expected, _) = parse_with_warnings(required, "required").expect("valid");
    assert_eq!(to_toml(&state), to_toml(&expected));
}

#[test]
fn the_examples_of_optional_keys_are_valid() {
    let explained = explain();
    // What begins with such a line may be left out as a whole.
    let (items, _) = explained.split_once("\n# [").expect("tables that may be left out");
    let uncommented: String = items
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => rest,
            _ => line,
        })
        // A route has one of path, path_prefix and path_regex, one of host and host_regex, and none of them beside sni.
        .filter(|line| {
            !["path = ", "path_regex = ", "host_regex = ", "sni = "].iter().any(|key| line.starts_with(key))
        })
        .fold(String::new(), |text, line| text + line + "\n");
    let (state, warnings) = parse_with_warnings(&uncommented, "explanation").expect("valid");
    assert_eq!(warnings, []);
    assert_eq!(state.routes[0].host.as_deref(), Some("*.example.com"));
    assert_eq!(state.listeners[0].default_cluster.as_deref(), Some("app"));
}

#[test]
fn the_explanation_tells_meaning_range_and_default() {
    let expected = "\n# Size of one buffer. A head must fit into it.\n\
                    # Takes: 4096 to 1048576 bytes. Default: 16384.\nbuffer_size = 16384\n";
    assert!(explain().contains(expected));
    let expected = "\n# Overrides the redirect mode of the process and of the listener.\n\
                    # Takes: one of copy, splice, sockmap, auto. No default.\n# redirect = \"splice\"\n";
    assert!(explain().contains(expected));
    let expected = "\n# Address of the backend. Unique in its cluster.\n\
                    # Takes: IP address and port. Required.\naddress = \"127.0.0.1:9000\"\n";
    assert!(explain().contains(expected));
    let fits = |line: &str| line.chars().count() < 80 || line.starts_with("# password = ");
    assert!(explain().lines().all(fits));
    let expected = "\n# [route.rewrite]\n\n# The Host field that the backend gets; a template.\n";
    assert!(explain().contains(expected));
}

#[test]
fn the_man_page_has_every_key() {
    let page = man_page();
    for section in sections() {
        assert!(section.header.is_empty() || page.contains(&format!(".SH \"{}\"\n", section.header)));
        for row in section.rows {
            assert!(page.contains(&format!("\n.TP\n.B {}\n", row.name)), "{}", row.name);
        }
    }
    let expected = ".TP\n.B buffer_size\nSize of one buffer. A head must fit into it.\n.br\n\
                    Takes: 4096 to 1048576 bytes.\n.br\nDefault: 16384.\n";
    assert!(page.contains(expected));
}

#[test]
fn the_man_page_uses_known_requests_only() {
    for line in man_page().lines().filter(|line| line.starts_with(['.', '\''])) {
        let request = line.split(' ').next().unwrap_or_default();
        assert!([".TH", ".SH", ".TP", ".B", ".I", ".br"].contains(&request), "{line}");
    }
}

#[test]
fn the_example_is_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../etc/underpass.toml");
    let (state, warnings) = load_with_warnings(&path).expect("valid");
    assert_eq!(warnings, []);
    assert_eq!((state.listeners.len(), state.clusters.len(), state.routes.len()), (1, 2, 2));
}

#[test]
fn the_examples_of_the_readme_are_valid() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"))
        .expect("the file");
    let examples: Vec<&str> =
        readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(examples.len(), 4);
    for example in examples {
        let (_, warnings) = parse_with_warnings(example, "README.md").expect("valid");
        assert_eq!(warnings, []);
    }
}
