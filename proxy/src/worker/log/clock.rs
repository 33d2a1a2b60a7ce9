//! The time of day as lines of the formats of Apache and nginx have it.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// `23/Nov/2026:13:45:06 +0100`
const SIZE: usize = 26;
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Knows the machine's time zone, and writes each second once.
pub(super) struct Clock {
    zone: TimeZone,
    second: Option<i64>,
    text: [u8; SIZE],
}

impl Clock {
    /// A clock in the zone that the machine is in now; what is unknown is taken for UTC.
    pub(super) fn new() -> Self {
        Self::in_zone(TimeZone::try_system().unwrap_or(TimeZone::UTC))
    }

    fn in_zone(zone: TimeZone) -> Self {
        Self { zone, second: None, text: [b' '; SIZE] }
    }

    /// A time, to the second.
    pub(super) fn local(&mut self, time: SystemTime) -> &str {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        if self.second != Some(second) {
            self.second = Some(second);
            let time = Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH);
            self.write(time);
        }
        std::str::from_utf8(&self.text).unwrap_or_default()
    }

    fn write(&mut self, time: Timestamp) {
        let offset = self.zone.to_offset(time);
        let local = offset.to_datetime(time);
        let month =
            usize::try_from(local.month() - 1).ok().and_then(|month| MONTHS.get(month)).unwrap_or(&"???");
        let (sign, minutes) = match offset.seconds() / 60 {
            minutes @ 0.. => ('+', minutes),
            minutes => ('-', -minutes),
        };
        self.text = [b' '; SIZE];
        // It is as long as it is until the year 10000.
        let _ = write!(
            &mut self.text[..],
            "{:02}/{month}/{:04}:{:02}:{:02}:{:02} {sign}{:02}{:02}",
            local.day(),
            local.year(),
            local.hour(),
            local.minute(),
            local.second(),
            minutes / 60,
            minutes % 60,
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::tz::Offset;

    use super::*;

    fn text(offset_seconds: i32, seconds: u64) -> String {
        let zone = TimeZone::fixed(Offset::from_seconds(offset_seconds).expect("an offset"));
        let mut clock = Clock::in_zone(zone);
        let time = UNIX_EPOCH + Duration::from_secs(seconds);
        clock.local(time).to_owned()
    }

    #[test]
    fn as_apache_and_nginx_write_it() {
        assert_eq!(text(0, 0), "01/Jan/1970:00:00:00 +0000");
        // The example of Apache's documentation.
        assert_eq!(text(-7 * 3600, 971_211_336), "10/Oct/2000:13:55:36 -0700");
        assert_eq!(text(5 * 3600 + 1800, 1_798_761_599), "01/Jan/2027:05:29:59 +0530");
    }

    #[test]
    fn each_second_has_its_own() {
        let mut clock = Clock::in_zone(TimeZone::UTC);
        let at =
            |seconds, clock: &mut Clock| clock.local(UNIX_EPOCH + Duration::from_secs(seconds)).to_owned();
        assert_eq!(at(59, &mut clock), "01/Jan/1970:00:00:59 +0000");
        assert_eq!(at(60, &mut clock), "01/Jan/1970:00:01:00 +0000");
        assert_eq!(at(59, &mut clock), "01/Jan/1970:00:00:59 +0000");
    }
}
