//! Writes metrics as text: the Prometheus format, version 0.0.4, and OpenMetrics 1.0.
//!
//! prometheus-client keeps metrics of its own and writes OpenMetrics only; what is here stands in shared memory already and
//! must be readable by every scraper, so it is written directly.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>,
//! <https://prometheus.io/docs/specs/om/open_metrics_spec/>

use std::fmt::{Display, Write};

use super::durations::Durations;

/// The text formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// What every scraper reads.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The format that an Accept field asks for.
    pub fn accepted_by(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What kind of value a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its samples end in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of values by their size.
    Histogram,
    /// The sum and the count of values.
    Summary,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
        }
    }
}

/// Labels of a sample: names, and values that may hold anything.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// The upper ends of published buckets, in microseconds; each is one of the fine scale's.
pub const PUBLISHED_BOUNDS_US: [u64; 18] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// A text under construction.
#[derive(Debug)]
pub struct Exposition {
    text: String,
    format: Format,
    series: u64,
    series_max: u64,
    left_out: u64,
}

impl Exposition {
    /// A text of at most so many series; those beyond are counted and left out.
    pub fn new(format: Format, series_max: u64) -> Self {
        Self { text: String::new(), format, series: 0, series_max, left_out: 0 }
    }

    /// Begins a family. `name` has no `_total`, also where samples have it.
    pub fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &'a str) -> Family<'a> {
        Family { exposition: self, name, kind, help, begun: false }
    }

    /// A family of one sample without labels.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help).sample(&[], value);
    }

    /// Series that were left out because there would have been too many.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// The text. It tells how many series it has not.
    pub fn finish(mut self) -> String {
        let (left_out, limit) = (self.left_out, self.series_max);
        self.series_max = u64::MAX;
        self.single(
            "underpass_metrics_series_left_out",
            Kind::Gauge,
            "Series that are not in this text, because there would be more than the limit.",
            left_out,
        );
        self.single(
            "underpass_metrics_series_limit",
            Kind::Gauge,
            "Series that the text may have (metrics.series_max).",
            limit,
        );
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    /// Whether there is room for `count` series more; counts them one way or the other.
    fn admit(&mut self, count: u64) -> bool {
        let fits = self.series + count <= self.series_max;
        *(if fits { &mut self.series } else { &mut self.left_out }) += count;
        fits
    }
}

/// The samples of one metric.
#[derive(Debug)]
pub struct Family<'a> {
    exposition: &'a mut Exposition,
    name: &'a str,
    kind: Kind,
    help: &'a str,
    begun: bool,
}

impl Family<'_> {
    /// Adds a sample of a counter or gauge.
    pub fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        debug_assert!(matches!(self.kind, Kind::Counter | Kind::Gauge));
        if self.exposition.admit(1) {
            self.begin();
            let suffix = if self.kind == Kind::Counter { "_total" } else { "" };
            self.line(suffix, labels, None, value);
        }
    }

    /// Adds a histogram, or with its sum and count only a summary.
    pub fn durations(&mut self, labels: Labels<'_>, durations: &Durations) {
        let total = durations.total();
        let sum = seconds(durations.sum_us());
        let buckets = match self.kind {
            Kind::Histogram => &PUBLISHED_BOUNDS_US[..],
            _ => &[],
        };
        let infinite = u64::from(self.kind == Kind::Histogram);
        if !self.exposition.admit(buckets.len() as u64 + infinite + 2) {
            return;
        }
        self.begin();
        for bound in buckets {
            let bound_s = seconds(*bound);
            // OpenMetrics wants a float that cannot be taken for a whole number.
            let le = match self.exposition.format {
                Format::Prometheus => format!("{bound_s}"),
                Format::OpenMetrics => format!("{bound_s:?}"),
            };
            self.line("_bucket", labels, Some(&le), durations.up_to(*bound));
        }
        if infinite == 1 {
            self.line("_bucket", labels, Some("+Inf"), total);
        }
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, total);
    }

    /// A family begins with what it is, once it has a sample.
    fn begin(&mut self) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let Exposition { text, format, .. } = &mut *self.exposition;
        let suffix = match (self.kind, *format) {
            (Kind::Counter, Format::Prometheus) => "_total",
            _ => "",
        };
        // Writing into a String cannot fail.
        let _ = write!(text, "# HELP {}{suffix} ", self.name);
        escape(text, self.help, *format == Format::OpenMetrics);
        let _ = write!(text, "\n# TYPE {}{suffix} {}\n", self.name, self.kind.name());
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, le: Option<&str>, value: impl Display) {
        let text = &mut self.exposition.text;
        text.push_str(self.name);
        text.push_str(suffix);
        let mut open = '{';
        for (name, value) in labels.iter().copied().chain(le.map(|le| ("le", le))) {
            text.push(open);
            text.push_str(name);
            text.push_str("=\"");
            escape(text, value, true);
            text.push('"');
            open = ',';
        }
        if open == ',' {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
    }
}

/// Microseconds as seconds.
pub fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn escape(out: &mut String, text: &str, quotes: bool) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::durations::FINE;
    use super::*;

    fn text(format: Format, write: impl FnOnce(&mut Exposition)) -> String {
        let mut exposition = Exposition::new(format, 1000);
        write(&mut exposition);
        let text = exposition.finish();
        let end = text.find("# HELP underpass_metrics_series_left_out").expect("always there");
        text[..end].to_owned()
    }

    #[test]
    fn a_counter_in_both_formats() {
        let write = |exposition: &mut Exposition| {
            let mut family = exposition.family("x_bytes", Kind::Counter, "A \"help\".\nTwo lines.");
            family.sample(&[("a", "q\"\\\n"), ("b", "")], 7);
            family.sample(&[], 1);
        };
        let samples = "x_bytes_total{a=\"q\\\"\\\\\\n\",b=\"\"} 7\nx_bytes_total 1\n";
        assert_eq!(
            text(Format::Prometheus, write),
            format!("# HELP x_bytes_total A \"help\".\\nTwo lines.\n# TYPE x_bytes_total counter\n{samples}")
        );
        assert_eq!(
            text(Format::OpenMetrics, write),
            format!("# HELP x_bytes A \\\"help\\\".\\nTwo lines.\n# TYPE x_bytes counter\n{samples}")
        );
    }

    #[test]
    fn a_histogram_is_cumulative_and_ends_with_all() {
        let mut durations = Durations::new(&FINE);
        [90, 100, 101, 1_000_000, 99_000_000].into_iter().for_each(|value| durations.count(value));
        for (format, one) in [(Format::Prometheus, "1"), (Format::OpenMetrics, "1.0")] {
            let text = text(format, |exposition| {
                exposition.family("d_seconds", Kind::Histogram, "H.").durations(&[("c", "x")], &durations);
            });
            for line in [
                "d_seconds_bucket{c=\"x\",le=\"0.0001\"} 2",
                "d_seconds_bucket{c=\"x\",le=\"0.00025\"} 3",
                &format!("d_seconds_bucket{{c=\"x\",le=\"{one}\"}} 4"),
                "d_seconds_bucket{c=\"x\",le=\"+Inf\"} 5",
                "d_seconds_sum{c=\"x\"} 100.000291",
                "d_seconds_count{c=\"x\"} 5",
            ] {
                assert!(text.lines().any(|found| found == line), "{line} is missing in {text}");
            }
        }
    }

    #[test]
    fn every_published_bound_ends_a_bucket_of_the_fine_scale() {
        assert!(PUBLISHED_BOUNDS_US.iter().all(|bound| FINE.bounds_us().contains(bound)));
        assert!(PUBLISHED_BOUNDS_US.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn what_is_too_much_is_left_out_whole_and_counted() {
        let mut exposition = Exposition::new(Format::Prometheus, 5);
        let durations = Durations::new(&FINE);
        exposition.family("h_seconds", Kind::Histogram, "H.").durations(&[], &durations);
        (0..7).for_each(|n| exposition.family("c", Kind::Counter, "C.").sample(&[], n));
        assert_eq!(exposition.left_out(), PUBLISHED_BOUNDS_US.len() as u64 + 3 + 2);
        let text = exposition.finish();
        assert!(!text.contains("h_seconds"), "{text}");
        assert!(text.contains("\nunderpass_metrics_series_left_out 23\n"), "{text}");
    }

    #[test]
    fn the_format_is_negotiated() {
        let openmetrics = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
        assert_eq!(Format::accepted_by(Some(openmetrics)), Format::OpenMetrics);
        for other in [None, Some("*/*"), Some("text/plain;version=0.0.4")] {
            assert_eq!(Format::accepted_by(other), Format::Prometheus);
        }
    }
}
