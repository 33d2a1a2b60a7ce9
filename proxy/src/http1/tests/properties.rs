//! Heads that are drawn at random, the same ones in every run.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::RngSeed;

use super::super::Method;
use super::{LIMITS, Reason, invariants, request, response_to};

/// Field lines that framing, routing or edits depend on, good and bad.
const LINES: &[&str] = &[
    "Host: a.example",
    "Host: [::1]:80",
    "Content-Length: 5",
    "Content-Length: 5, 5",
    "content-length: 05",
    "Content-Length: 6",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: , CHUNKED",
    "Transfer-Encoding: gzip, chunked",
    "Connection: close",
    "Connection: keep-alive, Upgrade",
    "Connection: X, via, X-Forwarded-For, Host, Content-Length",
    "Keep-Alive: timeout=5",
    "Proxy-Connection: close",
    "TE: trailers",
    "Upgrade: websocket",
    "Upgrade: h2c",
    "Expect: 100-continue",
    "Max-Forwards: 0",
    "Max-Forwards: 7",
    "max-forwards:\t99999999999 ",
    "Connection: max-forwards",
    "Via: 1.0 fred",
    "X-Forwarded-For: 10.0.0.1",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: b.example",
    "X-Forwarded-Port: 443",
    "Forwarded: for=10.0.0.1",
    "X-Request-Id: theirs",
    "X: y",
    "x:",
];

/// Bytes that mean something to a parser.
fn telling_byte() -> impl Strategy<Value = u8> {
    prop_oneof![4 => select(&b"\r\n\0:; \t,/\"*?@[]015aX\x7f\x80"[..]), 1 => any::<u8>()]
}

/// Names that are no known field's, and values with the white space that may stand around them.
fn other_field() -> impl Strategy<Value = (String, String, String, String)> {
    let space = || select(vec!["", " ", "\t", " \t "]).prop_map(str::to_owned);
    ("Z[!#$%&'*+.^_`|~0-9A-Za-z-]{0,12}", space(), "([!-~\u{e4}]([ -~\t]{0,12}[!-~])?)?", space())
}

fn lines() -> impl Strategy<Value = String> {
    let drawn =
        other_field().prop_map(|(name, before, value, after)| format!("{name}:{before}{value}{after}"));
    let line = prop_oneof![4 => select(LINES).prop_map(str::to_owned), 1 => drawn];
    vec(line, 0..8).prop_map(|lines| lines.iter().map(|line| format!("{line}\r\n")).collect())
}

fn request_text() -> impl Strategy<Value = String> {
    let methods = vec!["GET", "HEAD", "POST", "OPTIONS", "TRACE", "CONNECT", "PATCH"];
    let targets = vec![
        "/",
        "/a/b?c",
        "*",
        "a.example:80",
        "http://a.example",
        "http://b:1?c",
        "http://[::1]/x",
        "https://a/",
    ];
    (select(methods), select(targets), select(vec!["1.1", "1.1", "1.0"]), any::<bool>(), lines()).prop_map(
        |(method, target, version, host, lines)| {
            let host = if host { "Host: a.example:81\r\n" } else { "" };
            format!("{method} {target} HTTP/{version}\r\n{host}{lines}\r\n")
        },
    )
}

fn response_text() -> impl Strategy<Value = String> {
    let statuses = vec!["100 Continue", "101 ", "103 ", "200 OK", "204", "304 ", "426 ", "502 \u{e4}"];
    (select(vec!["1.1", "1.1", "1.0"]), select(statuses), lines())
        .prop_map(|(version, status, lines)| format!("HTTP/{version} {status}\r\n{lines}\r\n"))
}

fn method() -> impl Strategy<Value = Method> {
    select(vec![Method::Get, Method::Head, Method::Connect])
}

/// Where, what, and which byte.
type Mutation = (Index, u8, u8);

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    vec((any::<Index>(), 0..3_u8, telling_byte()), 0..4)
}

fn mutate(text: &str, mutations: Vec<Mutation>) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for (index, kind, byte) in mutations {
        let at = index.index(bytes.len());
        match kind {
            0 => bytes[at] = byte,
            1 => bytes.insert(at, byte),
            _ => drop(bytes.remove(at)),
        }
    }
    bytes
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn any_request_mutated_or_not(text in request_text(), mutations in mutations()) {
        invariants::request(&mutate(&text, mutations));
    }

    #[test]
    fn any_response_mutated_or_not(text in response_text(), mutations in mutations(), method in method()) {
        invariants::response(&mutate(&text, mutations), method);
    }

    #[test]
    fn any_bytes(bytes in vec(telling_byte(), 0..40), start in select(vec!["", "GET / HTTP/1.1\r\n", "HTTP/1.1 2"])) {
        let bytes = [start.as_bytes(), &bytes].concat();
        invariants::request(&bytes);
        invariants::response(&bytes, Method::Get);
    }

    #[test]
    fn valid_heads_give_back_their_parts(fields in vec(other_field(), 0..12), tail in "[ -~\r\n]{0,20}") {
        let lines: String =
            fields.iter().map(|(name, before, value, after)| format!("{name}:{before}{value}{after}\r\n")).collect();
        let expected: Vec<_> =
            fields.iter().map(|(name, _, value, _)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect();
        let parts = |bytes: &[u8], fields: &super::Fields| -> Vec<_> {
            fields.list().iter().map(|f| (f.name.of(bytes).to_vec(), f.value.of(bytes).to_vec())).collect()
        };

        let text = format!("GET / HTTP/1.0\r\n{lines}\r\n{tail}");
        let Ok(Some((head, fields))) = request(text.as_bytes()) else { panic!("{text:?}") };
        prop_assert_eq!(head.size as usize, text.len() - tail.len());
        prop_assert_eq!(parts(text.as_bytes(), &fields), expected.clone());

        let text = format!("HTTP/1.1 200 OK\r\n{lines}\r\n{tail}");
        let Ok(Some((head, fields))) = response_to(Method::Get, text.as_bytes()) else { panic!("{text:?}") };
        prop_assert_eq!(head.size as usize, text.len() - tail.len());
        prop_assert_eq!(parts(text.as_bytes(), &fields), expected);
    }
}

/// Heads around the bounds, where the answer must not depend on what came in one read.
#[test]
fn bounds_and_splits() {
    let head_size_max = LIMITS.head_size_max as usize;
    for size in head_size_max - 3..head_size_max + 3 {
        let text = super::get(&format!("A: {}\r\n", "b".repeat(size - super::get("A: \r\n").len())));
        invariants::request(format!("{text}GET").as_bytes());
        let fits = request(text.as_bytes()).map(|parsed| parsed.is_some());
        assert_eq!(fits, if size <= head_size_max { Ok(true) } else { Err(Reason::HeadTooLarge) }, "{size}");
    }
    for size in 255..259 {
        invariants::request(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(size - 1)).as_bytes());
    }
    for count in 14..18 {
        invariants::request(super::get(&"A:\r\n".repeat(count)).as_bytes());
    }
}
