//! A radix tree: values by byte strings, found by the longest of those that a key begins with.
//!
//! Adding, removing and finding take time in proportion to the key's length, whatever the number of values: nothing is ever
//! rebuilt or rehashed. A node has at most 256 children.

/// Candidates that are remembered on the way down, so that the way back needs no second look.
const REMEMBERED: usize = 8;

/// The tree.
#[derive(Debug)]
pub(super) struct Tree<V> {
    /// Its label is empty.
    root: Node<V>,
}

/// A cache line: most of a lookup's time is waiting for memory.
#[derive(Debug)]
struct Node<V> {
    /// The first byte of the label, so that a search among siblings stays in their own memory.
    first: u8,
    /// The bytes between the parent and this node; never empty but in the root.
    label: Label,
    /// Sorted by their first byte, which differs.
    children: Vec<Node<V>>,
    value: Option<Box<V>>,
}

/// As many bytes as fit into a label without memory of its own.
const SHORT: usize = 22;

#[derive(Debug)]
enum Label {
    Short(u8, [u8; SHORT]),
    Long(Box<[u8]>),
}

impl Label {
    fn new(bytes: &[u8]) -> Self {
        let mut short = [0; SHORT];
        match (u8::try_from(bytes.len()), short.get_mut(..bytes.len())) {
            (Ok(length), Some(start)) => {
                start.copy_from_slice(bytes);
                Self::Short(length, short)
            }
            _ => Self::Long(bytes.into()),
        }
    }
}

impl std::ops::Deref for Label {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Short(length, bytes) => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl<V> Default for Tree<V> {
    fn default() -> Self {
        Self { root: Node::new(&[], Vec::new(), None) }
    }
}

impl<V> Node<V> {
    fn new(label: &[u8], children: Vec<Self>, value: Option<Box<V>>) -> Self {
        Self { first: label.first().copied().unwrap_or(0), label: Label::new(label), children, value }
    }

    /// Where the child is that begins with `byte`, or where it would be.
    #[inline]
    fn position(&self, byte: u8) -> Result<usize, usize> {
        self.children.binary_search_by_key(&byte, |child| child.first)
    }

    /// The child that a key leads to, if it begins with the child's whole label.
    #[inline]
    fn child(&self, rest: &[u8]) -> Option<&Self> {
        let child = &self.children[self.position(*rest.first()?).ok()?];
        rest.starts_with(&child.label).then_some(child)
    }

    /// Makes a node of its own for the first `length` bytes of the label.
    fn split(&mut self, length: usize) {
        let lower = Self::new(&self.label[length..], std::mem::take(&mut self.children), self.value.take());
        self.label = Label::new(&self.label[..length]);
        self.children = vec![lower];
    }

    /// Takes the place of the only child of a node without value.
    fn merge(&mut self) {
        if self.value.is_none()
            && self.children.len() == 1
            && let Some(child) = self.children.pop()
        {
            self.label = Label::new(&[&*self.label, &*child.label].concat());
            self.children = child.children;
            self.value = child.value;
        }
    }
}

impl<V> Tree<V> {
    /// Whether it has no value.
    pub(super) fn is_empty(&self) -> bool {
        self.root.value.is_none() && self.root.children.is_empty()
    }

    /// The value of a key, for a change.
    pub(super) fn get_mut(&mut self, key: &[u8]) -> Option<&mut V> {
        let (mut node, mut rest) = (&mut self.root, key);
        while let Some(byte) = rest.first() {
            let at = node.position(*byte).ok()?;
            node = &mut node.children[at];
            rest = rest.strip_prefix(&*node.label)?;
        }
        node.value.as_deref_mut()
    }

    /// The value of a key, made where there is none.
    pub(super) fn entry(&mut self, key: &[u8]) -> &mut V
    where
        V: Default,
    {
        let (mut node, mut rest) = (&mut self.root, key);
        while let Some(byte) = rest.first() {
            match node.position(*byte) {
                Ok(at) => {
                    node = &mut node.children[at];
                    let common = node.label.iter().zip(rest).take_while(|(a, b)| a == b).count();
                    if common < node.label.len() {
                        node.split(common);
                    }
                    rest = &rest[common..];
                }
                Err(at) => {
                    node.children.insert(at, Node::new(rest, Vec::new(), None));
                    node = &mut node.children[at];
                    rest = &[];
                }
            }
        }
        node.value.get_or_insert_default()
    }

    /// Takes the value of a key out.
    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Box<V>> {
        let (mut node, mut rest) = (&mut self.root, key);
        if rest.is_empty() {
            return node.value.take();
        }
        loop {
            let at = node.position(*rest.first()?).ok()?;
            rest = rest.strip_prefix(&*node.children[at].label)?;
            if !rest.is_empty() {
                node = &mut node.children[at];
                continue;
            }
            let value = node.children[at].value.take();
            if node.children[at].children.is_empty() {
                node.children.remove(at);
                if !node.label.is_empty() {
                    node.merge();
                }
            } else {
                node.children[at].merge();
            }
            return value;
        }
    }

    /// Visits the values of all keys that `key` begins with, the longest first, with their lengths, until one gives an
    /// outcome.
    #[inline]
    pub(super) fn longest_first<'a, R>(
        &'a self,
        key: &[u8],
        mut visit: impl FnMut(&'a V, usize) -> Option<R>,
    ) -> Option<R> {
        let mut most = key.len();
        loop {
            let mut found: [Option<(&V, usize)>; REMEMBERED] = [None; REMEMBERED];
            let (mut count, mut node, mut at) = (0, &self.root, 0);
            loop {
                if let Some(value) = node.value.as_deref() {
                    found[count % REMEMBERED] = Some((value, at));
                    count += 1;
                }
                match node.child(&key[at..most]) {
                    None => break,
                    Some(child) => {
                        at += child.label.len();
                        node = child;
                    }
                }
            }
            let first = count.saturating_sub(REMEMBERED);
            for (value, length) in (first..count).rev().filter_map(|index| found[index % REMEMBERED]) {
                if let Some(outcome) = visit(value, length) {
                    return Some(outcome);
                }
                most = length;
            }
            // Those that were not remembered are shorter than the shortest that was.
            if first == 0 {
                return None;
            }
            most -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn count<V>(node: &Node<V>) -> usize {
        1 + node.children.iter().map(count).sum::<usize>()
    }

    fn check<V>(node: &Node<V>, root: bool) {
        assert!(root || node.value.is_some() || node.children.len() > 1, "a node that nobody needs");
        assert!(root || node.label.first() == Some(&node.first));
        assert!(node.children.is_sorted_by(|a, b| a.first < b.first));
        node.children.iter().for_each(|child| check(child, false));
    }

    fn all(tree: &Tree<u32>, key: &[u8]) -> Vec<(u32, usize)> {
        let mut found = Vec::new();
        let none: Option<()> = tree.longest_first(key, |value, length| {
            found.push((*value, length));
            None
        });
        assert_eq!(none, None);
        found
    }

    #[test]
    fn many_nested_keys_are_visited_from_the_longest() {
        let mut tree = Tree::default();
        let key = [b'a'; 100];
        for length in 0..=100 {
            *tree.entry(&key[..length]) = u32::try_from(length).expect("small");
        }
        let lengths: Vec<_> = all(&tree, &key[..90]).into_iter().map(|(_, length)| length).collect();
        assert_eq!(lengths, (0..=90).rev().collect::<Vec<_>>());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_holds_what_a_map_would(
            steps in vec(("[ab/]{0,12}", any::<u32>(), prop::bool::weighted(0.6)), 0..60),
            keys in vec("[ab/]{0,14}", 10),
        ) {
            let (mut tree, mut map) = (Tree::default(), BTreeMap::new());
            for (key, value, add) in &steps {
                if *add {
                    *tree.entry(key.as_bytes()) = *value;
                    map.insert(key.clone(), *value);
                } else {
                    prop_assert_eq!(tree.remove(key.as_bytes()).map(|value| *value), map.remove(key));
                }
                check(&tree.root, true);
                prop_assert!(count(&tree.root) <= 2 * map.len() + 1);
                prop_assert_eq!(tree.is_empty(), map.is_empty());
            }
            for (key, value) in &map {
                prop_assert_eq!(tree.get_mut(key.as_bytes()).copied(), Some(*value));
            }
            for key in &keys {
                let mut expected: Vec<_> = map
                    .iter()
                    .filter(|(shorter, _)| key.starts_with(shorter.as_str()))
                    .map(|(shorter, value)| (*value, shorter.len()))
                    .collect();
                expected.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
                prop_assert_eq!(all(&tree, key.as_bytes()), expected);
            }
            for key in map.keys() {
                tree.remove(key.as_bytes());
            }
            prop_assert_eq!(count(&tree.root), 1);
        }
    }
}
