//! Bodies whose every byte is known: a stream that any offset of can be recomputed, and its hash.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

/// A stream of bytes that looks random and is the same for the same seed.
#[derive(Clone, Debug)]
pub struct Content {
    seed: u64,
    offset: u64,
    length: u64,
}

impl Content {
    /// So many bytes.
    pub fn new(seed: u64, length: u64) -> Self {
        Self { seed, offset: 0, length }
    }

    /// All of it.
    #[track_caller]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.clone().read_to_end(&mut bytes).expect("reading from memory");
        bytes
    }

    /// Its SHA-256 in hexadecimal.
    #[track_caller]
    pub fn hash(&self) -> String {
        hash_of(&mut self.clone()).expect("reading from memory").0
    }

    /// The eight bytes at an offset that is a multiple of eight.
    fn word(&self, offset: u64) -> u64 {
        // The finalizer of SplitMix64: neighbouring offsets give unrelated words, so a block that is lost, doubled or moved
        // changes the stream.
        let mut word = self.seed ^ (offset / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

impl Read for Content {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let rest = self.length - self.offset;
        let count = usize::try_from(rest).map_or(into.len(), |rest| rest.min(into.len()));
        let mut done = 0;
        while done < count {
            let word = self.word(self.offset & !7).to_le_bytes();
            // Below 8, so it fits.
            let skip = (self.offset & 7) as usize;
            let take = (8 - skip).min(count - done);
            into[done..done + take].copy_from_slice(&word[skip..skip + take]);
            done += take;
            self.offset += take as u64;
        }
        Ok(count)
    }
}

/// SHA-256 in hexadecimal, and the number of bytes.
///
/// # Errors
/// Those of the source.
pub fn hash_of(source: &mut impl Read) -> io::Result<(String, u64)> {
    let mut hash = Hashing(Sha256::new());
    let count = io::copy(&mut io::BufReader::with_capacity(256 * 1024, source), &mut hash)?;
    Ok((hash.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), count))
}

struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_does_not_depend_on_how_it_is_read() {
        let whole = Content::new(7, 1000).to_vec();
        assert_eq!(whole.len(), 1000);
        let mut pieces = Vec::new();
        let mut content = Content::new(7, 1000);
        for size in (1..).take_while(|&size| size < 60) {
            let mut piece = vec![0; size];
            let count = content.read(&mut piece).unwrap();
            pieces.extend_from_slice(&piece[..count]);
        }
        assert_eq!(pieces, whole);
        assert_ne!(whole, Content::new(8, 1000).to_vec());
    }

    #[test]
    fn the_hash_is_sha256() {
        let (hash, count) = hash_of(&mut &b"abc"[..]).unwrap();
        assert_eq!(count, 3);
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
