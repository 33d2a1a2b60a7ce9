use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

mod invariants;

const SIZE_MAX: usize = 4096;

/// The answer for these bytes, after a look at every split.
fn read(input: impl AsRef<[u8]>) -> Result<Option<Received>, Fault> {
    invariants::header(input.as_ref());
    parse(input.as_ref(), SIZE_MAX)
}

/// Size, source and destination of a header that must be read.
fn told(input: impl AsRef<[u8]>) -> (usize, Option<(String, String)>) {
    let received = read(input).expect("valid").expect("whole");
    let addresses = received.addresses;
    (received.size, addresses.map(|told| (told.source.to_string(), told.destination.to_string())))
}

fn pair(source: &str, destination: &str) -> Option<(String, String)> {
    Some((source.into(), destination.into()))
}

#[test]
fn version_1() {
    let line = "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n";
    assert_eq!(told(line), (line.len(), pair("192.0.2.1:56324", "198.51.100.7:443")));
    assert_eq!(told(format!("{line}GET / HTTP/1.1\r\n")).0, line.len());
    let line = "PROXY TCP6 2001:db8::1 ::1 0 65535\r\n";
    assert_eq!(told(line), (line.len(), pair("[2001:db8::1]:0", "[::1]:65535")));
    assert_eq!(told("PROXY UNKNOWN\r\n"), (15, None));
    // The longest there can be (section 2.1).
    let longest = "PROXY UNKNOWN ffff:f:f:f:f:f:f:ffff ".to_owned() + &"f".repeat(69) + "\r\n";
    assert_eq!(longest.len(), 107);
    assert_eq!(told(&longest), (107, None));
    assert_eq!(read("PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r"), Ok(None));
}

#[test]
fn version_1_malformed() {
    for line in [
        "PROXY \r\n",
        "PROXY UNKNOWNX\r\n",
        "PROXY TCP4\r\n",
        "PROXY tcp4 1.1.1.1 2.2.2.2 1 2\r\n",
        "PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n",
        "PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
        "PROXY TCP4 1.1.1.1  2.2.2.2 1 2\r\n",
        "PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n",
        "PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n",
        "PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n",
        "PROXY TCP4 1.1.1.01 2.2.2.2 1 2\r\n",
        "PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n",
        "PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n",
        "PROXY TCP4 ::1 2.2.2.2 1 2\r\n",
        "PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n",
        "PROXY TCP6 ::1%eth0 ::1 1 2\r\n",
        "PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n",
        "PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n",
        "PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n",
        "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n\r\n",
        "PROXY TCP4 1.1.1.1 2.2.2.2 1 \u{0661}\r\n",
    ] {
        assert_eq!(read(line), Err(Fault::Malformed), "{line:?}");
    }
    let endless = "PROXY UNKNOWN ".to_owned() + &"x".repeat(107);
    assert_eq!(read(&endless[..106]), Ok(None));
    assert_eq!(read(&endless[..107]), Err(Fault::Malformed));
    assert_eq!(read(endless + "\r\n"), Err(Fault::Malformed));
}

#[test]
fn what_begins_otherwise_has_no_header() {
    for input in
        ["GET / HTTP/1.1\r\n", "PROXX", "PROXY\r\n", "proxy ", "\n", "\r\n\r\nx", "\0", "\r\n\r\n\0\r\nQUIX"]
    {
        assert_eq!(read(input), Err(Fault::Missing), "{input:?}");
    }
    assert_eq!(read(""), Ok(None));
    assert_eq!(read("PROXY"), Ok(None));
    assert_eq!(read("\r\n\r\n\0\r\nQUIT"), Ok(None));
}

/// A version 2 header of these parts; its length is that of `rest`.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("a length");
    [v2::SIGNATURE, &[command, family], &length.to_be_bytes(), rest].concat()
}

const IPV4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 0x01, 0xbb];

#[test]
fn version_2() {
    let header = v2(0x21, 0x11, &IPV4);
    assert_eq!(told(&header), (28, pair("192.0.2.1:56324", "198.51.100.7:443")));
    assert_eq!(told([&header, &b"GET /"[..]].concat()).0, 28);
    assert_eq!(read(&header[..27]), Ok(None));
    let mut ipv6 = [0; 36];
    (ipv6[15], ipv6[31], ipv6[33], ipv6[35]) = (1, 2, 3, 4);
    assert_eq!(told(v2(0x21, 0x21, &ipv6)), (52, pair("[::1]:3", "[::2]:4")));
}

#[test]
fn version_2_with_values_behind_the_addresses() {
    // PP2_TYPE_ALPN "h2", PP2_TYPE_NOOP of no length: skipped, and so is what is no TLV at all.
    for rest in [&[1, 0, 2, b'h', b'2', 4, 0, 0][..], &[0xff; 5], &[0; 400]] {
        let header = v2(0x21, 0x11, &[&IPV4, rest].concat());
        assert_eq!(told(&header), (28 + rest.len(), pair("192.0.2.1:56324", "198.51.100.7:443")));
    }
}

#[test]
fn version_2_that_tells_no_address() {
    // LOCAL, with any family that there is and any length.
    for (family, rest) in [(0, &[][..]), (0x11, &IPV4), (0x11, &[]), (0x21, &[1, 2, 3])] {
        assert_eq!(told(v2(0x20, family, rest)), (16 + rest.len(), None));
    }
    // Unspecified, datagrams, Unix sockets.
    for (family, rest) in
        [(0, 0), (0, 7), (0x01, 0), (0x10, 12), (0x12, 12), (0x22, 36), (0x31, 216), (0x32, 216)]
    {
        assert_eq!(told(v2(0x21, family, &vec![1; rest])), (16 + rest, None));
    }
}

#[test]
fn version_2_malformed() {
    for command in [0x00, 0x01, 0x11, 0x22, 0x2f, 0x31] {
        assert_eq!(read(v2(command, 0x11, &IPV4)), Err(Fault::Malformed), "command {command:#x}");
    }
    for family in [0x13, 0x1f, 0x03, 0x41, 0xf1] {
        assert_eq!(read(v2(0x21, family, &IPV4)), Err(Fault::Malformed), "family {family:#x}");
    }
    for (family, size) in [(0x11, 11), (0x21, 35), (0x31, 215), (0x12, 0)] {
        assert_eq!(read(v2(0x21, family, &vec![0; size])), Err(Fault::Malformed), "family {family:#x}");
    }
}

#[test]
fn version_2_longer_than_is_waited_for() {
    let long = v2(0x21, 0x11, &[0; SIZE_MAX - 16]);
    assert_eq!(
        parse(&long, SIZE_MAX),
        Ok(Some(Received { size: SIZE_MAX, ..parse(&long, SIZE_MAX).unwrap().unwrap() }))
    );
    let longer = v2(0x21, 0x11, &[0; SIZE_MAX - 15]);
    // It is not waited for.
    assert_eq!(parse(&longer[..16], SIZE_MAX), Err(Fault::TooLong));
}

#[test]
fn headers_are_written_as_the_specification_shows_them() {
    let addresses = |source: &str, destination: &str| Addresses {
        source: source.parse().expect("an address"),
        destination: destination.parse().expect("an address"),
    };
    let written =
        |version, addresses| Header::new(version, addresses).map(|header| header.as_bytes().to_vec());
    let v4 = addresses("192.0.2.1:56324", "198.51.100.7:443");
    assert_eq!(written(SendProxy::Off, v4), None);
    let line = &b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"[..];
    assert_eq!(written(SendProxy::V1, v4).as_deref(), Some(line));
    assert_eq!(written(SendProxy::V2, v4), Some(v2(0x21, 0x11, &IPV4)));
    // IPv4 clients of an IPv6 socket are IPv4 clients.
    assert_eq!(
        written(SendProxy::V1, addresses("[::ffff:192.0.2.1]:56324", "[::ffff:198.51.100.7]:443")).as_deref(),
        Some(line)
    );
    assert_eq!(
        written(SendProxy::V1, addresses("192.0.2.1:1", "[2001:db8::2]:2")),
        Some(b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2\r\n".to_vec())
    );
    let longest = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
    assert!(
        written(SendProxy::V1, addresses(longest, longest)).is_some_and(|line| line.ends_with(b" 65535\r\n"))
    );
    assert_eq!(written(SendProxy::V2, addresses(longest, longest)).map(|header| header.len()), Some(52));
}

/// Text that is nearly a version 1 header.
fn nearly_v1() -> impl Strategy<Value = Vec<u8>> {
    "PROXY (TCP4|TCP6|UNKNOWN|)( [0-9a-f:.]{1,39}| 192\\.0\\.2\\.[0-9]{1,3}| ::[0-9a-f]{1,4}){0,3}( [0-9]{1,6}){0,3}(\r\n|\r|\n|)[a-z]{0,5}"
        .prop_map(String::into_bytes)
}

/// Bytes that are nearly a version 2 header.
fn nearly_v2() -> impl Strategy<Value = Vec<u8>> {
    let kinds = (0x1f..=0x23_u8, any::<u8>());
    (kinds, 0..60_u16, vec(any::<u8>(), 0..80)).prop_map(|((command, family), length, rest)| {
        [v2::SIGNATURE, &[command, family & 0x33], &length.to_be_bytes(), &rest].concat()
    })
}

proptest! {
    // The same bytes in every run.
    #![proptest_config(ProptestConfig {
        cases: 2000,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_split_gives_the_same_answer(
        input in prop_oneof![nearly_v1(), nearly_v2(), vec(any::<u8>(), 0..40)]
    ) {
        invariants::header(&input);
    }

    #[test]
    fn any_addresses_come_out_as_they_went_in(
        source in any::<(u128, u16)>(), destination in any::<(u128, u16)>(), v4 in any::<[u32; 2]>(), both: bool
    ) {
        let six = |(ip, port): (u128, u16)| SocketAddr::new(std::net::Ipv6Addr::from(ip).into(), port);
        let four = |ip: u32, port| SocketAddr::new(std::net::Ipv4Addr::from(ip).into(), port);
        let addresses = match both {
            true => Addresses { source: six(source), destination: six(destination) },
            false => Addresses { source: four(v4[0], source.1), destination: four(v4[1], destination.1) },
        };
        for version in [SendProxy::V1, SendProxy::V2] {
            let header = Header::new(version, addresses).expect("a version");
            let read = parse(header.as_bytes(), 107).expect("valid").expect("whole");
            prop_assert_eq!(read.size, header.as_bytes().len());
            prop_assert_eq!(read.addresses, Some(addresses.of_one_family()));
        }
    }
}
