//! The methods that something may be asked for with.

/// The most that are told: a route has at most 16, and nobody needs to know more than a few routes' worth.
const METHODS_MAX: usize = 32;

/// Methods of routes that a request would take if it had one of these.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed<'a> {
    methods: [&'a str; METHODS_MAX],
    count: usize,
}

impl<'a> Allowed<'a> {
    pub(super) fn add(&mut self, method: &'a str) {
        if self.count < METHODS_MAX && !self.methods().contains(&method) {
            self.methods[self.count] = method;
            self.count += 1;
        }
    }

    /// In the order of the alphabet.
    pub(super) fn sorted(mut self) -> Self {
        self.methods[..self.count].sort_unstable();
        self
    }

    /// The methods, each once.
    pub fn methods(&self) -> &[&'a str] {
        &self.methods[..self.count]
    }

    /// Adds them as the value of an `Allow` field: RFC 9110 section 10.2.1.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        for (index, method) in self.methods().iter().enumerate() {
            out.extend_from_slice(if index > 0 { b", " } else { b"" });
            out.extend_from_slice(method.as_bytes());
        }
    }
}
