//! What is said of templates of the access log.

use crate::config::parse_with_warnings;

/// Everything that is said of a file with these keys under `[log]`, of which the first is in line 2.
fn said(log: &str) -> String {
    let items = "[[listener]]\nname = \"web\"\naddress = \"0.0.0.0:80\"\ndefault_cluster = \"app\"\n[[cluster]]\nname = \"app\"\n\
                 [[cluster.backend]]\naddress = \"127.0.0.1:9000\"\n";
    let all = match parse_with_warnings(&format!("[log]\n{log}\n{items}"), "u.toml") {
        Ok((_, warnings)) => warnings,
        Err(errors) => errors.diagnostics,
    };
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_good_one_is_taken() {
    assert_eq!(said("access = \"combined\""), "");
    assert_eq!(said("access = \"template\"\naccess_template = '$client ${status}00'"), "");
}

#[test]
fn a_name_that_is_not_known_is_told_with_its_place_and_the_nearest() {
    assert_eq!(
        said("access = \"template\"\naccess_template = '$client $satus'"),
        "u.toml:3:19: log.access_template '$client $satus': at character 9: there is no field $satus; did you mean $status? \
         underpass check --explain lists them all"
    );
}

#[test]
fn it_must_be_there_where_it_is_wanted() {
    let text = said("access = \"template\"");
    assert!(
        text.ends_with(
            "log.access_template: missing, and log.access is \"template\"; add it, or use another format"
        ),
        "{text}"
    );
}

#[test]
fn in_json_a_text_stands_in_quotes() {
    let text = said("access = \"template\"\naccess_escape = \"json\"\naccess_template = '{\"a\":$host}'");
    assert!(
        text.contains("at character 6: $host is a text, and stands outside of quotes; write \"$host\""),
        "{text}"
    );
}
