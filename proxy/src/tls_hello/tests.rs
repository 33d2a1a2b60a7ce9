use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

mod invariants;

/// A structure behind its length in `width` bytes.
fn sized(width: usize, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("a length").to_be_bytes();
    [&length[4 - width..], content].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &sized(2, content)].concat()
}

/// The extension that names these servers, each with the type of its name.
fn names(list: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> =
        list.iter().flat_map(|(kind, name)| [&[*kind][..], &sized(2, name)].concat()).collect();
    extension(0, &sized(2, &list))
}

/// A hello with these extensions; `None` leaves even their length out.
fn hello(extensions: Option<&[u8]>) -> Vec<u8> {
    let body = [
        &[3, 3][..],
        &[7; 32],
        &sized(1, &[1; 32]),
        &sized(2, &[0x13, 0x01, 0x13, 0x02]),
        &sized(1, &[0]),
        &extensions.map_or_else(Vec::new, |extensions| sized(2, extensions)),
    ]
    .concat();
    [&[1][..], &sized(3, &body)].concat()
}

fn record(content: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &sized(2, content)].concat()
}

/// The answer for these bytes, after a look at every split of the input and of its records.
fn read(input: &[u8]) -> Result<Option<Hello>, Fault> {
    invariants::hello(input);
    for size in [1, 2, 3, 5, 16, 100] {
        invariants::fragments(input, size);
    }
    parse(input)
}

/// The name in a hello that must be read.
fn name(extensions: &[u8]) -> Option<String> {
    let input = record(&hello(Some(extensions)));
    let hello = read(&input).expect("valid").expect("whole");
    hello.server_name.map(|name| String::from_utf8(name.as_bytes().to_vec()).expect("ASCII"))
}

#[test]
fn the_name_among_other_extensions() {
    let named = names(&[(0, b"a.Example")]);
    assert_eq!(name(&named), Some("a.Example".into()));
    let others = [extension(10, &[0, 2, 0, 29]), extension(0xffff, &[]), extension(51, &[9; 1200])].concat();
    assert_eq!(name(&[&others[..], &named].concat()), Some("a.Example".into()));
    assert_eq!(name(&[&named[..], &others].concat()), Some("a.Example".into()));
    // A type of name that nobody knows is passed over.
    assert_eq!(name(&names(&[(7, b"\0\xff"), (0, b"b")])), Some("b".into()));
    let longest = "x".repeat(255);
    assert_eq!(name(&names(&[(0, longest.as_bytes())])), Some(longest));
}

#[test]
fn no_name() {
    assert_eq!(name(&[]), None);
    assert_eq!(name(&extension(10, &[0, 2, 0, 29])), None);
    assert_eq!(name(&names(&[(7, b"x")])), None);
    assert_eq!(read(&record(&hello(None))), Ok(Some(Hello { server_name: None })));
}

#[test]
fn what_follows_the_hello_is_not_looked_at() {
    let hello = record(&hello(Some(&names(&[(0, b"a")]))));
    let answer = parse(&hello);
    // Early data, for instance (RFC 8446 section 4.2.10).
    for after in [&b"\x17\x03\x03\x00\x05early"[..], b"anything", &[22, 3, 3, 0, 0]] {
        assert_eq!(parse(&[&hello, after].concat()), answer);
    }
}

#[test]
fn what_is_not_tls() {
    for input in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"\x16\x02",
        b"\x15\x03\x01\0\x02\x02\x28",
        b"\x80\x2e\x01",
        b"SSH-2.0-x\r\n",
    ] {
        assert_eq!(read(input), Err(Fault::Missing), "{input:?}");
    }
    // A handshake, but not a client's beginning.
    assert_eq!(read(&record(&[2, 0, 0, 1, 0])), Err(Fault::Missing));
    assert_eq!(read(&[22, 3, 1, 0, 0]), Err(Fault::Missing));
    assert_eq!(read(&[22, 3, 1, 0x40, 1]), Err(Fault::Missing));
    assert_eq!(read(&[]), Ok(None));
    assert_eq!(read(&[22, 3]), Ok(None));
}

#[test]
fn lengths_that_do_not_fit_together() {
    let good = hello(Some(&names(&[(0, b"a.example")])));
    let changed = |at: usize, by: i8| {
        let mut changed = good.clone();
        changed[at] = changed[at].wrapping_add_signed(by);
        record(&changed)
    };
    let (session_id, suites, methods, extensions) = (38, 71 + 1, 71 + 6, 71 + 8 + 1);
    assert_eq!(good[session_id], 32);
    assert_eq!(read(&changed(session_id, 1)), Err(Fault::Malformed));
    assert_eq!(good[suites], 4);
    assert_eq!(read(&changed(suites, -1)), Err(Fault::Malformed));
    assert_eq!(read(&changed(suites, -4)), Err(Fault::Malformed));
    assert_eq!(good[methods], 1);
    assert_eq!(read(&changed(methods, -1)), Err(Fault::Malformed));
    for by in [-1, 1] {
        assert_eq!(read(&changed(extensions, by)), Err(Fault::Malformed));
        // The extension, its list, the name: each longer or shorter than what is around it.
        for at in [extensions + 4, extensions + 6] {
            assert_eq!(read(&changed(at, by)), Err(Fault::Malformed), "{at} by {by}");
        }
        assert_eq!(read(&changed(extensions + 9, by)), Err(Fault::Malformed));
    }
    // The message ends within its fixed part.
    assert_eq!(read(&record(&[1, 0, 0, 10, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0])), Err(Fault::Malformed));
}

#[test]
fn names_that_are_refused() {
    let input = |extensions: &[u8]| record(&hello(Some(extensions)));
    let named = names(&[(0, b"a")]);
    assert_eq!(read(&input(&[&named[..], &named].concat())), Err(Fault::Malformed), "two extensions");
    for list in [
        &[(0, &b"a"[..]), (0, b"b")][..],
        &[(0, b"")],
        &[(0, &[b'x'; 256])],
        &[(0, b"a b")],
        &[(0, b"a\n")],
        &[(0, b"a\0")],
        &[(0, b"\xc3\xa4")],
        &[],
    ] {
        assert_eq!(read(&input(&names(list))), Err(Fault::Malformed), "{list:?}");
    }
    assert_eq!(read(&input(&extension(0, &[]))), Err(Fault::Malformed), "an extension without a list");
}

/// A record of another kind, or an empty one, in the middle of the hello.
#[test]
fn records_that_break_the_hello() {
    let whole = hello(Some(&names(&[(0, b"a")])));
    let (first, second) = whole.split_at(20);
    for between in [&b"\x17\x03\x03\0\x01x"[..], b"\x16\x02\x01\0\x01x", b"\x16\x03\x01\0\0"] {
        assert_eq!(read(&[&record(first), between, &record(second)].concat()), Err(Fault::Malformed));
    }
    assert!(matches!(read(&[record(first), record(second)].concat()), Ok(Some(_))));
}

proptest! {
    // The same bytes in every run.
    #![proptest_config(ProptestConfig {
        cases: 500,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_split_gives_the_same_answer(
        host in "[a-z.]{0,20}", others in vec((any::<u16>(), vec(any::<u8>(), 0..20)), 0..4),
        change in any::<Option<(prop::sample::Index, u8)>>(), size in 1..200_usize
    ) {
        let others: Vec<u8> = others.iter().flat_map(|(kind, content)| extension(*kind, content)).collect();
        let mut input = record(&hello(Some(&[&others[..], &names(&[(0, host.as_bytes())])].concat())));
        if let Some((at, to)) = change {
            let at = at.index(input.len());
            input[at] = to;
        }
        invariants::hello(&input);
        invariants::fragments(&input, size);
        if let Some(other) = invariants::refragmented(&input, size) {
            invariants::hello(&other);
        }
    }
}
