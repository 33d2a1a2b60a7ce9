//! Sets of CPUs, in the two notations of the kernel.

use std::fmt;

/// The highest number of a CPU that is believed; Linux has fewer.
const CPU_MAX: u32 = 65_535;

/// A set of CPUs, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpus(Vec<u32>);

impl Cpus {
    pub(super) const fn none() -> Self {
        Self(Vec::new())
    }

    /// The set of one.
    pub fn one(cpu: u32) -> Self {
        Self(vec![cpu])
    }

    /// Reads a list such as `0-3,8`; `None` for what is none.
    pub fn from_list(text: &str) -> Option<Self> {
        let mut cpus = Vec::new();
        for range in text.trim().split(',').filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            if first > last || last > CPU_MAX {
                return None;
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        Some(Self(cpus))
    }

    /// Reads a mask such as `00000000,0000000f`, groups of 32 bits with the highest first; `None` for what is none.
    pub fn from_mask(text: &str) -> Option<Self> {
        let mut cpus = Vec::new();
        for (group, digits) in (0..).zip(text.trim().rsplit(',')) {
            let bits = u32::from_str_radix(digits, 16).ok()?;
            cpus.extend((0..32).filter(|bit| bits >> bit & 1 == 1).map(|bit| group * 32 + bit));
        }
        Some(Self(cpus))
    }

    /// The notation that the files `rps_cpus` and `xps_cpus` take.
    pub fn to_mask(&self) -> String {
        let groups = self.0.last().map_or(0, |last| last / 32) + 1;
        let bits = |group: u32| {
            self.0.iter().filter(|cpu| **cpu / 32 == group).fold(0u32, |bits, cpu| bits | 1 << (cpu % 32))
        };
        let groups: Vec<String> = (0..groups).rev().map(|group| format!("{:08x}", bits(group))).collect();
        // A mask of one group is usually written short.
        match &groups[..] {
            [_] => format!("{:x}", bits(0)),
            _ => groups.join(","),
        }
    }

    /// Whether a CPU is in the set.
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.binary_search(&cpu).is_ok()
    }

    /// Whether all of it is in another set too.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.iter().all(|cpu| other.contains(*cpu))
    }

    /// Whether there is none in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The only CPU of the set, if it has one only.
    pub fn single(&self) -> Option<u32> {
        match self.0[..] {
            [cpu] => Some(cpu),
            _ => None,
        }
    }
}

/// As a list: `0-3,8`; `none` for the empty set.
impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let ranges = self.0.chunk_by(|a, b| a + 1 == *b).map(|range| match range {
            [first, .., last] => format!("{first}-{last}"),
            _ => range[0].to_string(),
        });
        f.write_str(&ranges.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_masks_mean_the_same() {
        for (list, mask) in [
            ("0", "1"),
            ("0-3", "f"),
            ("0-3,8", "10f"),
            ("31", "80000000"),
            ("0,32", "00000001,00000001"),
            ("64", "00000001,00000000,00000000"),
        ] {
            let cpus = Cpus::from_list(list).unwrap();
            assert_eq!(cpus.to_string(), list);
            assert_eq!(cpus.to_mask(), mask);
            assert_eq!(Cpus::from_mask(mask).unwrap(), cpus);
        }
        assert_eq!(Cpus::from_mask("00000000,00000003").unwrap(), Cpus::from_list("0-1").unwrap());
        assert_eq!(Cpus::from_mask("0").unwrap(), Cpus::default());
        assert_eq!(Cpus::default().to_mask(), "0");
        assert_eq!(Cpus::default().to_string(), "none");
    }

    #[test]
    fn sets_within_sets() {
        let set = |list| Cpus::from_list(list).unwrap();
        assert!(set("1,3").is_within(&set("0-3")) && set("0-3").is_within(&set("0-3")));
        assert!(!set("1,4").is_within(&set("0-3")));
        assert!(Cpus::none().is_within(&Cpus::none()) && !set("0").is_within(&Cpus::none()));
    }

    #[test]
    fn what_is_neither_is_refused() {
        for text in ["a-b", "3-1", "1-", "-", "0-99999999", "1;2"] {
            assert_eq!(Cpus::from_list(text), None, "{text}");
        }
        for text in ["", "g", "1,,2", "123456789"] {
            assert_eq!(Cpus::from_mask(text), None, "{text}");
        }
    }
}
