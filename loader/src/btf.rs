//! Where fields lie in structures of the running kernel, by its own type information (BTF).
//!
//! The layouts differ between kernel versions and configurations. The programs get the offsets as constants.

use std::fmt;
use std::path::Path;

/// Where the kernel publishes its type information.
pub(crate) const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Offsets in bytes of the fields that the programs read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offsets {
    pub(crate) reuseport_skb: u32,
    pub(crate) reuseport_selected: u32,
    pub(crate) skb_queue_mapping: u32,
    pub(crate) skb_interface: u32,
    pub(crate) sock_backlog: u32,
    pub(crate) sock_backlog_max: u32,
    pub(crate) sock_cookie: u32,
}

impl Offsets {
    /// Reads them from the kernel's type information.
    pub(crate) fn read(path: &Path) -> Result<Self, BtfError> {
        let bytes = read(path)?;
        let offset = lookup(path, &bytes)?;
        Ok(Self {
            reuseport_skb: offset("sk_reuseport_kern", &["skb"])?,
            reuseport_selected: offset("sk_reuseport_kern", &["selected_sk"])?,
            skb_queue_mapping: offset("sk_buff", &["queue_mapping"])?,
            skb_interface: offset("sk_buff", &["skb_iif"])?,
            sock_backlog: offset("sock", &["sk_ack_backlog"])?,
            sock_backlog_max: offset("sock", &["sk_max_ack_backlog"])?,
            sock_cookie: offset("sock", &["__sk_common", "skc_cookie"])?,
        })
    }
}

/// Offset in `sk_buff` of where the stream parser keeps the begin of a message: `struct sk_skb_cb`, which a socket map
/// lays over the buffer's `cb`.
pub(crate) fn message_offset(path: &Path) -> Result<u32, BtfError> {
    let bytes = read(path)?;
    let offset = lookup(path, &bytes)?;
    Ok(offset("sk_buff", &["cb"])? + offset("sk_skb_cb", &["strp", "strp", "offset"])?)
}

fn read(path: &Path) -> Result<Vec<u8>, BtfError> {
    std::fs::read(path).map_err(|error| BtfError(format!("{}: {error}", path.display())))
}

/// A function from a structure and a path of fields to an offset.
fn lookup<'a>(
    path: &'a Path,
    bytes: &'a [u8],
) -> Result<impl Fn(&str, &[&str]) -> Result<u32, BtfError> + 'a, BtfError> {
    let btf = Btf::parse(bytes).ok_or_else(|| BtfError(format!("{}: not understood", path.display())))?;
    Ok(move |structure: &str, field: &[&str]| {
        let missing = || BtfError(format!("{}: no {structure}.{}", path.display(), field.join(".")));
        btf.offset(structure, field).ok_or_else(missing)
    })
}

/// Why offsets are not known.
#[derive(Clone, Debug)]
pub(crate) struct BtfError(String);

impl fmt::Display for BtfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Type information, indexed by type id. The format is that of the kernel's Documentation/bpf/btf.rst.
struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset in `types` of each type; the id 0 is `void` and has none.
    starts: Vec<usize>,
}

const MAGIC: u32 = 0xeb9f;
const HEADER_SIZE: usize = 24;
const TYPE_SIZE: usize = 12;
const MEMBER_SIZE: usize = 12;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
/// How deep structures without a name may nest.
const DEPTH_MAX: u32 = 8;

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        // magic: u16, version: u8, flags: u8, then u32 each: length of the header, begin and length of types and strings.
        if bytes.len() < HEADER_SIZE || u32_at(bytes, 0)? & 0xffff != MAGIC {
            return None;
        }
        let header = index(u32_at(bytes, 4)?);
        let section = |begin: u32, length: u32| {
            let begin = header.checked_add(index(begin))?;
            bytes.get(begin..begin.checked_add(index(length))?)
        };
        let types = section(u32_at(bytes, 8)?, u32_at(bytes, 12)?)?;
        let strings = section(u32_at(bytes, 16)?, u32_at(bytes, 20)?)?;
        let mut starts = vec![usize::MAX];
        let mut at = 0;
        while at < types.len() {
            starts.push(at);
            at += TYPE_SIZE + trailer_size(u32_at(types, at + 4)?)?;
        }
        Some(Self { types, strings, starts })
    }

    /// Offset in bytes of a field; each name after the first is a field of the one before.
    fn offset(&self, structure: &str, path: &[&str]) -> Option<u32> {
        let mut id = self.structures().find(|&id| self.name_of(id) == Some(structure.as_bytes()))?;
        let mut bits = 0u32;
        for name in path {
            let (offset, member) = self.member(id, name.as_bytes(), 0)?;
            bits = bits.checked_add(offset)?;
            id = member;
        }
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    fn structures(&self) -> impl Iterator<Item = u32> + '_ {
        (1..self.starts.len())
            .filter_map(|id| u32::try_from(id).ok())
            .filter(|&id| self.kind(id) == Some(KIND_STRUCT))
    }

    /// Offset in bits and type of a member, also inside members without a name.
    fn member(&self, id: u32, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        let kind = self.kind(id)?;
        if depth > DEPTH_MAX || (kind != KIND_STRUCT && kind != KIND_UNION) {
            return None;
        }
        let start = *self.starts.get(index(id))?;
        let info = u32_at(self.types, start + 4)?;
        // With this flag a member's offset holds the width of a bit field in its upper byte.
        let offset_mask = if info >> 31 == 0 { u32::MAX } else { 0x00ff_ffff };
        (0..index(info & 0xffff)).find_map(|number| {
            let at = start + TYPE_SIZE + number * MEMBER_SIZE;
            let member = u32_at(self.types, at + 4)?;
            let offset = u32_at(self.types, at + 8)? & offset_mask;
            match self.string(u32_at(self.types, at)?)? {
                b"" => {
                    let (inner, member) = self.member(member, name, depth + 1)?;
                    Some((offset.checked_add(inner)?, member))
                }
                found => (found == name).then_some((offset, member)),
            }
        })
    }

    fn kind(&self, id: u32) -> Option<u32> {
        let start = *self.starts.get(index(id))?;
        Some(kind_of(u32_at(self.types, start.checked_add(4)?)?))
    }

    fn name_of(&self, id: u32) -> Option<&'a [u8]> {
        self.string(u32_at(self.types, *self.starts.get(index(id))?)?)
    }

    fn string(&self, at: u32) -> Option<&'a [u8]> {
        self.strings.get(index(at)..)?.split(|&byte| byte == 0).next()
    }
}

fn kind_of(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// Bytes that follow the fixed part of a type; `None` for a kind that is not known, after which nothing can be read.
fn trailer_size(info: u32) -> Option<usize> {
    let length = index(info & 0xffff);
    Some(match kind_of(info) {
        // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
        2 | 7..=12 | 16 | 18 => 0,
        // integer, variable, declaration tag
        1 | 14 | 17 => 4,
        // array
        3 => 12,
        // structure, union, data section, 64 bit enumeration
        4 | 5 | 15 | 19 => 12 * length,
        // enumeration, function prototype
        6 | 13 => 8 * length,
        _ => return None,
    })
}

/// The kernel writes its type information in its own byte order.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn index(value: u32) -> usize {
    // The loader runs where Linux and BPF do: 32 bits fit.
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// struct outer { int a; union { struct { int b; }; }; int wide:3; struct inner { int c; int d; } in; }
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0a\0b\0outer\0inner\0c\0d\0in\0wide\0";
        let name = |name: &str| {
            let needle = [b"\0", name.as_bytes(), b"\0"].concat();
            let at = strings.windows(needle.len()).position(|window| window == needle).expect("name");
            u32::try_from(at + 1).expect("small")
        };
        let structure = |kind: u32, length: u32, flag: u32| flag << 31 | kind << 24 | length;
        let mut types: Vec<u32> = Vec::new();
        types.extend([name("int"), 1 << 24, 4, 32]); // 1
        types.extend([0, structure(KIND_STRUCT, 1, 0), 4, name("b"), 1, 0]); // 2
        types.extend([0, structure(KIND_UNION, 1, 0), 4, 0, 2, 0]); // 3
        types.extend([name("inner"), structure(KIND_STRUCT, 2, 0), 8, name("c"), 1, 0, name("d"), 1, 32]); // 4
        types.extend([name("outer"), structure(KIND_STRUCT, 4, 1), 20]); // 5
        types.extend([name("a"), 1, 0, 0, 3, 32, name("wide"), 1, 3 << 24 | 67, name("in"), 4, 96]);
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("small");
        let mut bytes = Vec::new();
        bytes.extend(0xeb9f_u16.to_ne_bytes());
        bytes.extend([1, 0]);
        for word in [24, 0, length(&types), length(&types), length(strings)] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn finds_members_by_path_and_inside_nameless_ones() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).expect("well-formed");
        assert_eq!(btf.offset("outer", &["a"]), Some(0));
        assert_eq!(btf.offset("outer", &["b"]), Some(4));
        assert_eq!(btf.offset("outer", &["in", "d"]), Some(16));
        assert_eq!(btf.offset("outer", &["wide"]), None, "a bit field has no offset in bytes");
        assert_eq!(btf.offset("outer", &["c"]), None, "a named member's fields are not the structure's");
        assert_eq!(btf.offset("other", &["a"]), None);
        assert_eq!(btf.offset("outer", &["a", "x"]), None);
    }

    #[test]
    fn cut_or_foreign_input_is_refused_without_panic() {
        let bytes = sample();
        for length in 0..bytes.len() {
            assert!(
                Btf::parse(&bytes[..length]).is_none_or(|btf| btf.offset("outer", &["in", "d"]).is_none())
            );
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0xff;
            if let Some(btf) = Btf::parse(&changed) {
                // Any answer will do; what counts is that there is one.
                let _ = btf.offset("outer", &["in", "d"]);
            }
        }
    }
}
