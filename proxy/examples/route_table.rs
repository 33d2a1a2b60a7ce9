//! What 50,000 routes cost: time of a lookup, of a change, and memory.
//!
//! `cargo run --release --package underpass --example route_table`

use std::hint::black_box;
use std::time::Instant;

use underpass::http1::Fields;
use underpass::route::{Asked, Destination, Found, Table};
use underpass_command::state::{PathMatch, Route};

const ROUTES: usize = 50_000;
const LOOKUPS: usize = 2_000_000;

const CASES: [&str; 4] =
    ["one for each host", "one host, prefixes", "one host, nested prefixes", "500 hosts, 100 prefixes"];

fn main() -> std::io::Result<()> {
    if let Some(case) = std::env::args().nth(1) {
        measure(&case, |n| selector(&case, n));
        return Ok(());
    }
    println!("{ROUTES} routes; lookups in random order, ns each; changes: remove and add, ns each");
    for case in CASES {
        // A process each: memory that another has left would hide what this one takes.
        std::process::Command::new(std::env::current_exe()?).arg(case).status()?;
    }
    Ok(())
}

/// Host and path of a route.
fn selector(case: &str, n: usize) -> (String, String) {
    let api = || "api.example.com".to_owned();
    match case {
        "one for each host" => (format!("app{n}.example.com"), "/".to_owned()),
        "one host, prefixes" => (api(), format!("/v1/customers/{n}/orders")),
        "one host, nested prefixes" => {
            (api(), format!("/{}/{}/{}/{}", n / 1000, n / 100 % 10, n / 10 % 10, n % 10))
        }
        _ => (format!("app{}.example.com", n / 100), format!("/part{}", n % 100)),
    }
}

fn measure(name: &str, selector: impl Fn(usize) -> (String, String)) {
    let routes: Vec<Route> = (0..ROUTES)
        .map(|n| {
            let (host, prefix) = selector(n);
            Route { host: Some(host), path: PathMatch::Prefix(prefix), ..Route::new("app") }
        })
        .collect();
    let asked: Vec<(String, String)> = (0..ROUTES)
        .map(|n| {
            let (host, prefix) = selector(n);
            (host, format!("{}/item/17", prefix.trim_end_matches('/')))
        })
        .collect();
    let destination = || Destination { cluster: Some(1), ..Destination::default() };
    let before = resident();
    let mut table = Table::default();
    for route in &routes {
        table.add(route, destination()).expect("a valid route");
    }
    let bytes = resident().saturating_sub(before);
    let fields = Fields::default();
    let mut state = 1_u64;
    let mut draw = || {
        // Steele, Lea, Flood: SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        usize::try_from(mixed >> 33).unwrap_or(0) % ROUTES
    };
    let begin = Instant::now();
    for _ in 0..LOOKUPS {
        let (host, path) = &asked[draw()];
        let asked = Asked {
            host: host.as_bytes(),
            path: path.as_bytes(),
            method: b"GET",
            fields: &fields,
            bytes: b"",
        };
        assert!(matches!(black_box(table.find(0, &asked)), Found::Route(_)));
    }
    let lookup = begin.elapsed().as_nanos() / LOOKUPS as u128;
    let mut longest = 0;
    let begin = Instant::now();
    for _ in 0..ROUTES {
        let route = &routes[draw()];
        let started = Instant::now();
        assert!(table.remove(&route.key()));
        table.add(route, destination()).expect("a valid route");
        longest = longest.max(started.elapsed().as_micros());
    }
    let change = begin.elapsed().as_nanos() / ROUTES as u128;
    println!(
        "{name}: lookup {lookup} ns, change {change} ns (longest {longest} us), {} bytes for each route",
        bytes / ROUTES
    );
}

/// Memory that the process has in RAM, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}
