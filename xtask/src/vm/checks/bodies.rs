//! Do bodies pass through each redirect mode as they were sent?

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::{Scene, number};
use crate::process::check_interrupt;
use crate::vm::network::GUEST;
use crate::vm::traffic::{BODY_MAX, Client, Kind};

/// Sizes of bodies: none, small ones, those around a buffer, large ones.
const SIZES: [usize; 8] = [0, 1, 1_000, 16_383, 16_385, 300_000, 1 << 20, BODY_MAX];

/// Bodies by how they were moved, of one reading.
type Moved = BTreeMap<&'static str, u64>;

const COUNTERS: [&str; 4] = ["bodies_copied", "bodies_spliced", "bytes_copied", "bytes_spliced"];

fn moved(scene: &mut Scene<'_>) -> Result<Moved> {
    let status = scene.status()?;
    COUNTERS.iter().map(|&name| Ok((name, number(&status, &format!("/total/values/{name}"))?))).collect()
}

/// Downloads, chunked downloads and uploads of all sizes, in one connection; what was moved how.
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
        Ok(())
    })?;
    let after = moved(scene)?;
    Ok(after.into_iter().map(|(name, count)| (name, count - before[name])).collect())
}

fn describe(moved: &Moved) -> String {
    let exchanges = 3 * SIZES.len();
    let mib = |name: &str| moved[name] >> 20;
    format!(
        "{exchanges} exchanges of up to {} MiB, each byte the right one; {} MiB copied, {} MiB spliced",
        BODY_MAX >> 20,
        mib("bytes_copied"),
        mib("bytes_spliced")
    )
}

pub(super) fn copy(scene: &mut Scene<'_>) -> Result<String> {
    let moved = exchange(scene, "copy")?;
    ensure!(moved["bytes_spliced"] == 0 && moved["bodies_copied"] > 0, "moved so: {moved:?}");
    Ok(describe(&moved))
}

pub(super) fn splice(scene: &mut Scene<'_>) -> Result<String> {
    let moved = exchange(scene, "splice")?;
    ensure!(moved["bytes_spliced"] > moved["bytes_copied"], "moved so: {moved:?}");
    Ok(describe(&moved))
}

pub(super) fn auto(scene: &mut Scene<'_>) -> Result<String> {
    let moved = exchange(scene, "auto")?;
    ensure!(moved["bytes_spliced"] > 0 && moved["bodies_copied"] > 0, "moved so: {moved:?}");
    Ok(describe(&moved))
}
