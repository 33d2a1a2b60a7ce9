//! Bodies between a real client and a real backend, compared byte for byte by their hash.

use underpass_command::state::RedirectMode;
use underpass_tests::body::Content;
use underpass_tests::nginx::Nginx;
use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::{Proxy, curl, is_root, until};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Around the sizes of buffers and pipes, where a count that is off by one shows.
const SIZES: [u64; 10] =
    [0, 1, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB, MIB + 1];

fn content(size: u64) -> Content {
    Content::new(size, size)
}

fn start(mode: RedirectMode, sizes: &[u64]) -> (Nginx, Proxy) {
    let names: Vec<String> = sizes.iter().map(u64::to_string).collect();
    let files: Vec<(&str, Content)> =
        names.iter().zip(sizes).map(|(name, &size)| (name.as_str(), content(size))).collect();
    let nginx = Nginx::start(&files);
    let proxy = Setup::to(&[nginx.address()]).redirect(mode).start();
    (nginx, proxy)
}

#[track_caller]
fn download(proxy: &Proxy, framing: &str, size: u64, options: &[&str]) {
    let url = format!("http://{}/{framing}/{size}", proxy.address());
    assert_eq!(curl::get(&url, options), (content(size).hash(), size), "{framing} {options:?}");
}

#[track_caller]
fn upload(nginx: &Nginx, proxy: &Proxy, size: u64, chunked: bool) {
    let url = format!("http://{}/upload/{size}", proxy.address());
    curl::put(&url, &nginx.file(&size.to_string()), chunked);
    assert_eq!(nginx.take_upload(&size.to_string()), (content(size).hash(), size), "chunked: {chunked}");
}

/// The bytes went the way they were to go.
#[track_caller]
fn expect_moved(proxy: &Proxy, mode: RedirectMode, bytes: u64) {
    let moved = || ["bytes_copied", "bytes_spliced", "bytes_sockmap"].map(|name| proxy.counter(name));
    // What the kernel passed on last is counted when the worker has looked at it.
    let [copied, spliced, redirected] =
        until("all bytes are counted", || Some(moved()).filter(|moved| moved.iter().sum::<u64>() >= bytes));
    let shares = format!("{copied} copied, {spliced} spliced, {redirected} by sockmap of {bytes}");
    if mode == RedirectMode::Copy {
        assert_eq!(spliced + redirected, 0, "{shares}");
        return;
    }
    // What came with a head is in a buffer already, and of chunks userspace reads the lines.
    assert!(copied < bytes / 100, "{shares}");
    if mode == RedirectMode::Sockmap && is_root() {
        // A backend that has closed cannot be redirected any more: what is in its receive queue then is spliced.
        assert!(redirected > bytes / 10 * 8, "{shares}");
    }
}

fn small_bodies(mode: RedirectMode) {
    let (nginx, proxy) = start(mode, &SIZES);
    for size in SIZES {
        for framing in ["length", "chunked", "close"] {
            download(&proxy, framing, size, &[]);
            download(&proxy, framing, size, &["--http1.0"]);
        }
        for chunked in [false, true] {
            upload(&nginx, &proxy, size, chunked);
        }
    }
    proxy.stop();
}

#[test]
fn small_bodies_by_copy() {
    small_bodies(RedirectMode::Copy);
}

#[test]
fn small_bodies_by_splice() {
    small_bodies(RedirectMode::Splice);
}

#[test]
fn small_bodies_by_sockmap() {
    small_bodies(RedirectMode::Sockmap);
}

#[test]
fn small_bodies_by_choice() {
    small_bodies(RedirectMode::Auto);
}

fn bodies_of_100_mib(mode: RedirectMode) {
    const SIZE: u64 = 100 * MIB;
    let (nginx, proxy) = start(mode, &[SIZE]);
    for framing in ["length", "chunked", "close"] {
        download(&proxy, framing, SIZE, &[]);
    }
    for chunked in [false, true] {
        upload(&nginx, &proxy, SIZE, chunked);
    }
    expect_moved(&proxy, mode, 5 * SIZE);
    proxy.stop();
}

#[test]
fn bodies_of_100_mib_by_copy() {
    bodies_of_100_mib(RedirectMode::Copy);
}

#[test]
fn bodies_of_100_mib_by_splice() {
    bodies_of_100_mib(RedirectMode::Splice);
}

#[test]
fn bodies_of_100_mib_by_sockmap() {
    bodies_of_100_mib(RedirectMode::Sockmap);
}

#[test]
fn a_body_of_1_gib_in_each_mode() {
    const SIZE: u64 = 1024 * MIB;
    let nginx = Nginx::start(&[("gib", content(SIZE))]);
    let expected = (content(SIZE).hash(), SIZE);
    for mode in MODES {
        let proxy = Setup::to(&[nginx.address()]).redirect(mode).start();
        let got = curl::get(&format!("http://{}/length/gib", proxy.address()), &[]);
        assert_eq!(got, expected, "{mode}");
        expect_moved(&proxy, mode, SIZE);
        proxy.stop();
    }
}

/// Ranges, and several connections of one client at once.
#[test]
fn parts_of_a_body_at_once() {
    const SIZE: u64 = 8 * MIB;
    for mode in MODES {
        let (_nginx, proxy) = start(mode, &[SIZE]);
        let whole = content(SIZE).to_vec();
        std::thread::scope(|scope| {
            for part in 0..8u64 {
                let (proxy, whole) = (&proxy, &whole);
                scope.spawn(move || {
                    let (from, to) = (part * MIB, (part + 1) * MIB);
                    let range = format!("{from}-{}", to - 1);
                    let url = format!("http://{}/length/{SIZE}", proxy.address());
                    let got = curl::get(&url, &["--range", &range]);
                    let at = |offset: u64| usize::try_from(offset).expect("8 MiB fit into memory");
                    let expected = underpass_tests::body::hash_of(&mut &whole[at(from)..at(to)]);
                    assert_eq!(got, expected.expect("reading from memory"), "{mode}: bytes {range}");
                });
            }
        });
        proxy.stop();
    }
}
