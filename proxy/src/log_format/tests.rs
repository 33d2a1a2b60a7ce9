use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// The same text for every text, the same number for every number.
struct Known<'a>(&'a [u8], Option<u64>);

impl Values for Known<'_> {
    fn field(&self, field: Field) -> Value<'_> {
        match (field.is_number(), self.1) {
            (true, Some(number)) => Value::Number(number),
            (true, None) => Value::Missing,
            (false, _) => Value::Text(self.0),
        }
    }

    fn header(&self, _: usize) -> Value<'_> {
        Value::Text(self.0)
    }
}

fn line(template: &str, escape: Escape, values: &Known<'_>) -> String {
    let template = Template::new(template, escape).expect("a template");
    let mut out = Vec::new();
    template.write(values, &mut out);
    String::from_utf8(out).expect("ASCII")
}

fn refused(template: &str, escape: Escape) -> (Option<usize>, String) {
    let error = Template::new(template, escape).expect_err("it must be refused");
    (error.at, format!("{}; {}", error.reason, error.remedy))
}

/// Every field once, in quotes where it is a text.
fn everything(escape: Escape) -> String {
    let field = |(field, name, _): &(Field, &str, &str)| match (field.is_number(), escape) {
        (true, Escape::Json) => format!("\"{name}\":${name}"),
        (false, Escape::Json) => format!("\"{name}\":\"${name}\""),
        (_, Escape::Text) => format!("${{{name}}}"),
    };
    let fields: Vec<String> = FIELDS.iter().map(field).collect();
    match escape {
        Escape::Json => format!("{{{},\"agent\":\"$http_user_agent\"}}", fields.join(",")),
        Escape::Text => format!("{} $http_user_agent", fields.join(" ")),
    }
}

#[test]
fn fields_headers_and_dollars() {
    let values = Known(b"a b", Some(7));
    let line = |template| line(template, Escape::Text, &values);
    assert_eq!(line("$status"), "7\n");
    assert_eq!(line("\"$host\" ${status}00 $$5"), "\"a b\" 700 $5\n");
    assert_eq!(line("$host|\"$http_x_y\""), "a\\x20b|\"a b\"\n");
    assert_eq!(line("\"$request\""), "\"a b a b a b\"\n");
    let template = Template::new("$http_User_Agent $http_referer $http_user_agent", Escape::Text).unwrap();
    assert_eq!(template.headers(), ["user-agent", "referer"]);
    assert!(!template.names(Field::Status));
}

#[test]
fn what_is_missing_is_a_dash_in_text_and_null_or_empty_in_json() {
    let nothing = Known(b"", None);
    assert_eq!(line("$status \"$host\"", Escape::Text, &nothing), "- \"-\"\n");
    let json = r#"{"a":$status,"b":"$host"}"#;
    assert_eq!(line(json, Escape::Json, &nothing), "{\"a\":null,\"b\":\"\"}\n");
}

#[test]
fn what_a_client_says_stays_what_it_is() {
    let values = Known(b"\"\\\n\xe9\x7f", None);
    assert_eq!(line("\"$host\"", Escape::Text, &values), "\"\\x22\\x5C\\x0A\\xE9\\x7F\"\n");
    assert_eq!(line("\"$host\"", Escape::Json, &values), "\"\\\"\\\\\\u000A\\u00E9\\u007F\"\n");
}

#[test]
fn what_is_refused_says_where_and_what_is_near() {
    let (at, text) = refused("$client $statu", Escape::Text);
    assert_eq!(at, Some(9));
    assert!(text.contains("no field $statu;") && text.contains("did you mean $status?"), "{text}");
    let (at, text) = refused("é $remote_addr", Escape::Text);
    assert_eq!((at, text.contains("did you mean $client?")), (Some(3), true), "{text}");
    assert_eq!(refused("a $ b", Escape::Text).0, Some(3));
    assert_eq!(refused("${status", Escape::Text).0, Some(1));
    assert_eq!(refused("a\nb", Escape::Text).0, Some(2));
    assert!(refused("$http_", Escape::Text).1.contains("names no header field"));
    assert!(refused("", Escape::Text).1.starts_with("empty"));
    assert!(refused(&"$host".repeat(64), Escape::Text).1.contains("may need 4097 bytes"));
    let headers: String = (0..17).map(|n| format!("$http_h{n} ")).collect();
    assert!(refused(&headers, Escape::Text).1.contains("one header field more than 16"));
}

#[test]
fn json_that_is_none_is_refused() {
    let (at, text) = refused(r#"{"host":$host}"#, Escape::Json);
    assert_eq!((at, text.contains("write \"$host\"")), (Some(9), true), "{text}");
    assert!(refused(r#"{"host":"$host""#, Escape::Json).1.contains("no JSON"));
    assert!(refused("$status $status", Escape::Json).1.contains("no JSON"));
    // What is missing is null, and no part of a number or of a letter's code.
    for template in
        [r#"{"s":${connect_us}e-6}"#, r#"{"s":-$queue_us}"#, r#"["\u000$status"]"#, "$bytes$attempts"]
    {
        assert!(refused(template, Escape::Json).1.contains("no JSON"), "{template}");
    }
    Template::new(r#"{"s":${duration_us}e-6}"#, Escape::Json).expect("it is never missing");
    // A quote of the text does not end it.
    Template::new(r#"{"a":"\"$host\""}"#, Escape::Json).expect("JSON");
}

#[test]
fn the_named_format_and_one_of_every_field_are_templates() {
    Template::new(COMBINED, Escape::Text).expect("combined");
    for escape in [Escape::Text, Escape::Json] {
        Template::new(&everything(escape), escape).expect("everything");
    }
}

#[test]
fn every_name_of_nginx_leads_to_a_field() {
    for (theirs, ours) in field::IN_NGINX {
        assert!(Field::named(ours).is_some(), "{theirs}: {ours}");
        assert!(Field::named(theirs).is_none(), "{theirs}");
    }
}

#[test]
fn the_specification_lists_every_field() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../SPECIFICATION.md");
    let text = std::fs::read_to_string(path).expect("the specification");
    for (_, name, doc) in FIELDS {
        assert!(text.contains(&format!("| `${name}` | {doc} |")), "| `${name}` | {doc} |");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_line_is_one_line_and_json_is_json(
        text in vec(any::<u8>(), 0..3000),
        number in proptest::option::of(any::<u64>()),
    ) {
        let values = Known(&text, number);
        for escape in [Escape::Text, Escape::Json] {
            let line = line(&everything(escape), escape, &values);
            prop_assert!(line.len() <= LINE_SIZE_MAX);
            prop_assert_eq!(line.find('\n'), Some(line.len() - 1));
            prop_assert!(line[..line.len() - 1].bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            if escape == Escape::Json {
                let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
                prop_assert_eq!(value.as_object().expect("an object").len(), FIELDS.len() + 1);
            } else {
                // `$request` has two spaces of its own; nobody else brings any.
                prop_assert_eq!(line.split(' ').count(), FIELDS.len() + 1 + 2);
            }
        }
        let combined = line(COMBINED, Escape::Text, &values);
        prop_assert_eq!(combined.matches('"').count(), 6);
    }

    #[test]
    fn a_template_is_read_or_refused(text in "[$a-z{}\"_ \\\\]{0,40}") {
        for escape in [Escape::Text, Escape::Json] {
            if let Ok(template) = Template::new(&text, escape) {
                let mut out = Vec::new();
                template.write(&Known(b"\" ", None), &mut out);
                prop_assert_eq!(out.iter().position(|byte| *byte == b'\n'), Some(out.len() - 1));
            }
        }
    }
}
