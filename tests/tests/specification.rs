//! SPECIFICATION.md names the test that holds each promise; a name without a test would be a promise that nobody keeps.

use std::fs;
use std::path::Path;

/// The sources of all tests.
fn sources(folder: &Path, text: &mut String) {
    let mut entries: Vec<_> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).expect("a file"));
        }
    }
}

#[test]
fn every_promise_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = String::new();
    for folder in ["tests", "../proxy/src", "../proxy/command/src"] {
        sources(&root.join(folder), &mut tests);
    }
    let specification = fs::read_to_string(root.join("../SPECIFICATION.md")).unwrap();
    let mut in_table = false;
    let mut promises = 0;
    for line in specification.lines() {
        let Some(row) = line.strip_prefix('|').and_then(|rest| rest.strip_suffix('|')) else {
            in_table = false;
            continue;
        };
        let last = row.rsplit('|').next().unwrap_or_default().trim();
        if last == "held by" {
            in_table = true;
        } else if in_table && !last.starts_with("---") {
            promises += 1;
            let names: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
            assert!(!names.is_empty(), "no test is named: {line}");
            for name in names {
                let function = name.rsplit("::").next().unwrap_or_default();
                assert!(tests.contains(&format!("fn {function}(")), "there is no test {name}: {line}");
            }
        }
    }
    assert!(promises > 20, "only {promises} promises found");
}
