//! Header fields that lines tell: kept for each session when its request begins, because the head is gone when it ends.

use crate::http1::{Fields, Known};
use crate::log_format::{Field, HEADER_SIZE_MAX, Template};
use crate::route::{CREDENTIALS_SIZE_MAX, user_of};

/// What is kept for all sessions; sized once, and nothing where no template wants any.
pub(super) struct KeptHeaders {
    /// Values of one session: those of the template's header fields, and the user's name.
    count: usize,
    bytes: Vec<u8>,
    lengths: Vec<u16>,
}

impl KeptHeaders {
    pub(super) fn new(template: Option<&Template>, sessions: usize) -> Self {
        let headers = template.map_or(0, |template| template.headers().len());
        let user = template.is_some_and(|template| template.names(Field::User));
        let count = if user || headers > 0 { headers + 1 } else { 0 };
        Self {
            count,
            // Zeroed memory is the kernel's until it is used, so sessions that never are cost none.
            bytes: vec![0; sessions * count * HEADER_SIZE_MAX],
            lengths: vec![0; sessions * count],
        }
    }

    /// Forgets what there was of an earlier request.
    pub(super) fn forget(&mut self, key: usize) {
        self.lengths[key * self.count..(key + 1) * self.count].fill(0);
    }

    /// Keeps the fields of a request that the template names.
    pub(super) fn keep(&mut self, key: usize, template: &Template, fields: &Fields, bytes: &[u8]) {
        for (index, name) in template.headers().iter().enumerate() {
            for field in fields.list() {
                if field.name.of(bytes).eq_ignore_ascii_case(name.as_bytes()) {
                    self.add(key, index, field.value.of(bytes));
                }
            }
        }
        if template.names(Field::User) {
            let mut decoded = [0; CREDENTIALS_SIZE_MAX];
            if let Some(user) = user_of(fields.values(bytes, Known::Authorization), &mut decoded) {
                self.add(key, self.count - 1, user);
            }
        }
    }

    /// Adds a value, as far as there is room. RFC 9110 section 5.3: lines of one name are one list.
    fn add(&mut self, key: usize, index: usize, value: &[u8]) {
        let place = key * self.count + index;
        let kept = &mut self.bytes[place * HEADER_SIZE_MAX..(place + 1) * HEADER_SIZE_MAX];
        let mut end = usize::from(self.lengths[place]);
        let comma: &[u8] = if end > 0 { b", " } else { b"" };
        for part in [comma, value] {
            let taken = part.len().min(kept.len() - end);
            kept[end..end + taken].copy_from_slice(&part[..taken]);
            end += taken;
        }
        self.lengths[place] = u16::try_from(end).unwrap_or(u16::MAX);
    }

    /// What was kept of a session's request.
    pub(super) fn of(&self, key: usize) -> Kept<'_> {
        Kept { all: self, first: key * self.count }
    }
}

/// What was kept of one request.
#[derive(Clone, Copy)]
pub(super) struct Kept<'a> {
    all: &'a KeptHeaders,
    first: usize,
}

impl<'a> Kept<'a> {
    /// A header field by its place in the template's list.
    pub(super) fn header(self, index: usize) -> &'a [u8] {
        let place = self.first + index;
        let start = place * HEADER_SIZE_MAX;
        &self.all.bytes[start..start + usize::from(self.all.lengths[place])]
    }

    /// The name of the user.
    pub(super) fn user(self) -> &'a [u8] {
        self.header(self.all.count - 1)
    }
}
