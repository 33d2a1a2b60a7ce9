//! Cookies of a request (RFC 6265 section 4.2.1), as far as a proxy looks at them.

use super::Fields;
use super::fields::trim;

/// The value of the first field of this name.
pub fn field_value<'a>(buffer: &'a [u8], fields: &Fields, name: &[u8]) -> Option<&'a [u8]> {
    values(buffer, fields, name).next()
}

/// The value of the first cookie of this name.
pub fn cookie_value<'a>(buffer: &'a [u8], fields: &Fields, name: &[u8]) -> Option<&'a [u8]> {
    values(buffer, fields, b"cookie")
        .flat_map(|value| value.split(|byte| *byte == b';'))
        .find_map(|pair| trim(pair).strip_prefix(name)?.strip_prefix(b"="))
}

fn values<'a>(buffer: &'a [u8], fields: &Fields, name: &[u8]) -> impl Iterator<Item = &'a [u8]> {
    fields
        .list()
        .iter()
        .filter(move |field| field.name.of(buffer).eq_ignore_ascii_case(name))
        .map(move |field| field.value.of(buffer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{Limits, parse_request};

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nCookie: xid=1; id =2;id=3;id=4\r\nX-User: u\r\ncookie: late=5=6\r\n\r\n";
        let limits = Limits { head_size_max: 4096, header_count_max: 20, target_size_max: 1024 };
        let mut fields = Fields::with_capacity(20);
        parse_request(head, &mut fields, &limits).expect("valid").expect("whole");
        let cookie = |name: &[u8]| cookie_value(head, &fields, name);
        assert_eq!(cookie(b"id"), Some(&b"3"[..]));
        assert_eq!(cookie(b"late"), Some(&b"5=6"[..]));
        assert_eq!((cookie(b"ID"), cookie(b"d"), cookie(b"i")), (None, None, None));
        assert_eq!(field_value(head, &fields, b"x-USER"), Some(&b"u"[..]));
        assert_eq!(field_value(head, &fields, b"x-users"), None);
    }
}
