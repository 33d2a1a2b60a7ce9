//! Which trace a request says that it belongs to.

use super::super::TraceParent;
use super::{accepted, get};

const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn found(lines: &str) -> Option<TraceParent> {
    let text = get(lines);
    let (_, fields) = accepted(&text);
    TraceParent::of(text.as_bytes(), &fields)
}

#[test]
fn the_example_of_the_specification() {
    let parent = TraceParent::parse(VALID.as_bytes()).expect("valid");
    assert_eq!(parent.trace_id(), b"0af7651916cd43dd8448eb211c80319c");
    assert_eq!(parent.as_bytes(), VALID.as_bytes());
}

#[test]
fn what_is_no_traceparent() {
    let zero_trace = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
    let zero_parent = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", "0".repeat(16));
    let longer = format!("{VALID}-00");
    let upper = VALID.to_uppercase();
    let forbidden = VALID.replacen("00", "ff", 1);
    let glued = format!("{}0", VALID.replacen("00", "cc", 1));
    for text in [
        "",
        &VALID[..54],
        &zero_trace,
        &zero_parent,
        &longer,
        &upper,
        &forbidden,
        &glued,
        &VALID.replace('-', "_"),
        &VALID.replacen("00", "0x", 1),
        &VALID.replace("-01", "-0g"),
        &format!("{VALID}, {VALID}"),
    ] {
        assert_eq!(TraceParent::parse(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn a_higher_version_may_be_longer() {
    let higher = VALID.replacen("00", "cc", 1);
    for text in [higher.clone(), format!("{higher}-"), format!("{higher}-what-the-future-has")] {
        let parent = TraceParent::parse(text.as_bytes()).expect("valid");
        assert_eq!(parent.trace_id(), b"0af7651916cd43dd8448eb211c80319c", "{text}");
    }
}

#[test]
fn what_is_started_is_valid_whatever_the_numbers() {
    for (trace_id, parent_id) in [(0, 0), (1, 1), (u128::MAX, u64::MAX), (0xab << 64, 0xcd)] {
        let started = TraceParent::start(trace_id, parent_id);
        assert_eq!(TraceParent::parse(started.as_bytes()), Some(started));
    }
    let started = TraceParent::start(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331);
    assert_eq!(started.as_bytes(), VALID.as_bytes());
}

#[test]
fn a_head_has_one_or_none() {
    let line = format!("Traceparent: {VALID}\r\n");
    assert!(found(&line).is_some());
    assert!(found(&format!("X: y\r\n{}", line.to_uppercase())).is_none());
    assert!(found("").is_none());
    assert!(found(&format!("{line}{line}")).is_none());
    // What Connection names goes no further, but a second line is no less confusing for it.
    assert!(found(&format!("Connection: traceparent\r\n{line}")).is_none());
}
