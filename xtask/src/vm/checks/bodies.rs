//! Do bodies, tunnels and TCP connections pass through each redirect mode as they were sent?

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use super::{Scene, number};
use crate::process::check_interrupt;
use crate::vm::network::GUEST;
use crate::vm::traffic::{BODY_MAX, Client, Kind};

/// Sizes of bodies: none, small ones, those around a buffer, large ones.
const SIZES: [usize; 8] = [0, 1, 1_000, 16_383, 16_385, 300_000, 1 << 20, BODY_MAX];
/// The first kernel on which sockmap loses nothing.
const SOCKMAP_SINCE: (u32, u32) = (6, 16);

/// What was moved how, by the names of the proxy's counters.
type Moved = BTreeMap<&'static str, u64>;

const COUNTERS: [&str; 5] =
    ["bodies_copied", "bytes_copied", "bytes_spliced", "bytes_sockmap", "fallback_sockmap_off"];

fn moved(scene: &mut Scene<'_>) -> Result<Moved> {
    let status = scene.status()?;
    COUNTERS.iter().map(|&name| Ok((name, number(&status, &format!("/total/values/{name}"))?))).collect()
}

/// Downloads, chunked downloads and uploads of all sizes in one connection, a tunnel and a TCP connection; what was moved
/// how.
fn exchange(scene: &mut Scene<'_>, mode: &str) -> Result<Moved> {
    scene.guest.run(&format!("underpass redirect set {mode}"))?;
    let before = moved(scene)?;
    let pattern = scene.pattern;
    scene.network.within(|| {
        let mut client = Client::connect(GUEST)?;
        for (number, size) in SIZES.into_iter().enumerate() {
            for kind in [Kind::Download, Kind::Chunked, Kind::Upload] {
                client.exchange(pattern, kind, size, number * 7)?;
                check_interrupt()?;
            }
        }
        for (name, http) in [("tunnel", true), ("TCP connection", false)] {
            let through = Client::tunnel(GUEST, http).and_then(|client| client.through(pattern));
            through.with_context(|| name)?;
        }
        Ok(())
    })?;
    let after = moved(scene)?;
    Ok(after.into_iter().map(|(name, count)| (name, count - before[name])).collect())
}

fn describe(moved: &Moved) -> String {
    let exchanges = 3 * SIZES.len();
    let mib = |name: &str| format!("{:.1} MiB", moved[name] as f64 / f64::from(1 << 20));
    format!(
        "{exchanges} exchanges, a tunnel and a TCP connection of up to {} MiB, each byte the right one; copied {}, \
         spliced {}, sockmap {}",
        BODY_MAX >> 20,
        mib("bytes_copied"),
        mib("bytes_spliced"),
        mib("bytes_sockmap"),
    )
}

pub(super) fn copy(scene: &mut Scene<'_>) -> Result<String> {
    let moved = exchange(scene, "copy")?;
    let others = moved["bytes_spliced"] + moved["bytes_sockmap"];
    ensure!(others == 0 && moved["bodies_copied"] > 0, "moved so: {moved:?}");
    Ok(describe(&moved))
}

pub(super) fn splice(scene: &mut Scene<'_>) -> Result<String> {
    let moved = exchange(scene, "splice")?;
    ensure!(moved["bytes_spliced"] > moved["bytes_copied"], "moved so: {moved:?}");
    ensure!(moved["bytes_sockmap"] == 0, "moved so: {moved:?}");
    Ok(describe(&moved))
}

/// The status must tell that it is there where the kernel is new enough, and else why not.
pub(super) fn sockmap_available(scene: &mut Scene<'_>) -> Result<String> {
    let status = scene.status()?;
    let (available, reason) = (&status["sockmap"]["available"], &status["sockmap"]["reason"]);
    let release = scene.kernel.release.as_str();
    if new_enough(release)? {
        ensure!(*available == true, "off: {reason}");
        return Ok("available, the self-test has passed".into());
    }
    ensure!(*available == false, "it must be off before {}.{}", SOCKMAP_SINCE.0, SOCKMAP_SINCE.1);
    let reason = reason.as_str().context("no reason is given")?;
    let expected = too_old_for_sockmap(release)?.unwrap_or_default();
    ensure!(reason.contains(&expected), "the reason is not that {expected}: {reason}");
    let shown = scene.guest.run("underpass status")?;
    ensure!(shown.contains(reason), "the reason is not shown: {reason}\n{shown}");
    Ok(format!("off: {reason}"))
}

/// Where it is off, the same bodies pass by the mode that takes its place, and that is counted.
pub(super) fn sockmap(scene: &mut Scene<'_>) -> Result<String> {
    let moved = exchange(scene, "sockmap")?;
    let fallbacks = moved["fallback_sockmap_off"];
    if new_enough(&scene.kernel.release)? {
        ensure!(moved["bytes_sockmap"] > BODY_MAX as u64 && fallbacks == 0, "moved so: {moved:?}");
        return Ok(describe(&moved));
    }
    ensure!(moved["bytes_sockmap"] == 0 && fallbacks > 0, "moved so: {moved:?}");
    Ok(format!("{}; {fallbacks} fallbacks counted", describe(&moved)))
}

pub(super) fn auto(scene: &mut Scene<'_>) -> Result<String> {
    let moved = exchange(scene, "auto")?;
    let by_kernel = moved["bytes_spliced"] + moved["bytes_sockmap"];
    ensure!(by_kernel > 0 && moved["bodies_copied"] > 0, "moved so: {moved:?}");
    Ok(describe(&moved))
}

/// What the proxy says of a kernel that is too old for sockmap; `None` for one that is not.
pub(super) fn too_old_for_sockmap(release: &str) -> Result<Option<String>> {
    let (major, minor) = SOCKMAP_SINCE;
    Ok((!new_enough(release)?).then(|| format!("kernel {release} is older than {major}.{minor}")))
}

/// Whether sockmap is safe on a kernel of this release.
fn new_enough(release: &str) -> Result<bool> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        anyhow::bail!("the release of the kernel is not understood: {release}");
    };
    Ok((major, minor) >= SOCKMAP_SINCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_by_their_release() {
        for (release, expected) in [
            ("6.1.0-50-cloud-amd64", false),
            ("6.12.107+deb13", false),
            ("6.16", true),
            ("7.3.4+deb13", true),
        ] {
            assert_eq!(new_enough(release).unwrap(), expected, "{release}");
        }
        assert!(new_enough("unknown").is_err());
    }
}
