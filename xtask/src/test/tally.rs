//! Counts tests from what libtest prints.

/// Begin of the reason of an ignored test that is none: other tests start it as a process of theirs, and what it does shows in
/// their outcome.
const PART_OF_OTHERS: &str = "is started by other tests";

/// What is counted so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Suites that cargo started, in order.
    started: Vec<String>,
    /// Suites that printed their result.
    finished: usize,
    /// Tests that ended well, also those that skipped themselves.
    ok: usize,
    failed: usize,
    /// Names of tests that ended well.
    ok_names: Vec<String>,
    failed_names: Vec<String>,
    /// Name and reason.
    skipped: Vec<(String, String)>,
    /// Name and reason of tests marked `#[ignore]`.
    ignored: Vec<(String, String)>,
    /// Inside the captured output of tests that passed.
    in_successes: bool,
}

/// What the counts are judged by.
pub(crate) struct Verdict<'a> {
    /// Whether `cargo test` ended with status 0.
    pub(crate) ended_well: bool,
    /// Whether root ran the tests.
    pub(crate) root: bool,
    /// Ends of names that root may skip, with the reason.
    pub(crate) allowed: &'a [(&'a str, &'a str)],
}

/// The outcome of a run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
    /// What to tell: skips with their reason, failures by name.
    pub(crate) lines: Vec<String>,
}

impl Report {
    /// The one line that ends the run.
    pub(crate) fn closing_line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl Tally {
    /// Takes a line of cargo's standard output; returns whether it is worth showing.
    pub(crate) fn stdout_line(&mut self, line: &str) -> bool {
        if self.skip_line(line) {
            return true;
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.in_successes = false;
            self.finished += 1;
            self.ok += count_before(counts, " passed");
            self.failed += count_before(counts, " failed");
        } else if line == "successes:" {
            self.in_successes = true;
        } else if line == "failures:" {
            self.in_successes = false;
        } else if let Some((name, outcome)) = test_line(line) {
            let name = name.to_owned();
            match outcome.split_once(", ").unwrap_or((outcome, "marked #[ignore]")) {
                ("ok", _) => self.ok_names.push(name),
                ("FAILED", _) => self.failed_names.push(name),
                ("ignored", reason) if reason.starts_with(PART_OF_OTHERS) => {}
                ("ignored", reason) => self.ignored.push((name, reason.to_owned())),
                _ => {}
            }
        }
        !self.in_successes
    }

    /// Takes a line of cargo's standard error.
    pub(crate) fn stderr_line(&mut self, line: &str) {
        if self.skip_line(line) {
            return;
        }
        let line = line.trim_start();
        if let Some(suite) = line.strip_prefix("Running ").or_else(|| line.strip_prefix("Doc-tests ")) {
            self.started.push(suite.to_owned());
        }
    }

    fn skip_line(&mut self, line: &str) -> bool {
        let Some((name, reason)) = line.strip_prefix("SKIP ").and_then(|rest| rest.split_once(": ")) else {
            return false;
        };
        self.skipped.push((name.to_owned(), reason.to_owned()));
        true
    }

    /// Judges the run.
    pub(crate) fn report(&self, verdict: &Verdict<'_>) -> Report {
        let mut failed = self.failed;
        let mut lines: Vec<String> = self.failed_names.iter().map(|name| format!("FAILED {name}")).collect();
        let skips = self.skipped.iter().chain(&self.ignored);
        for (name, reason) in skips {
            let allowed = verdict.allowed.iter().any(|(end, _)| is_end_of(end, name));
            lines.push(format!("skipped {name}: {reason}"));
            if verdict.root && !allowed {
                failed += 1;
                lines.push(format!("FAILED {name}: root can run every test, so this one may not be skipped"));
            }
        }
        for (name, _) in &self.skipped {
            if !self.ok_names.iter().any(|test| is_end_of(name, test)) {
                failed += 1;
                lines
                    .push(format!("FAILED {name}: reported as skipped, but no test of this name ended well"));
            }
        }
        if self.finished < self.started.len() {
            let missing = self.started.len() - self.finished;
            failed += missing;
            lines.push(format!("FAILED {missing} of {} suites: died without a result", self.started.len()));
        }
        if !verdict.ended_well && failed == 0 {
            failed = 1;
            lines.push("FAILED: cargo test ended with an error; see its output above".into());
        }
        let passed = self.ok.saturating_sub(self.skipped.len());
        Report { passed, failed, skipped: self.skipped.len() + self.ignored.len(), lines }
    }
}

/// Splits `test NAME ... OUTCOME`.
fn test_line(line: &str) -> Option<(&str, &str)> {
    let (name, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    Some((name.trim_end_matches(" - should panic"), outcome))
}

/// The number that stands before a word, as in `ok. 12 passed; 0 failed`.
fn count_before(text: &str, word: &str) -> usize {
    let before = text.split(word).next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Whether a test's full name is this name, or ends with it after `::`.
fn is_end_of(end: &str, name: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: Verdict<'_> = Verdict { ended_well: true, root: false, allowed: &[] };
    const ROOT: Verdict<'_> = Verdict { ended_well: true, root: true, allowed: &[] };

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        tally.stderr_line("     Running unittests src/lib.rs (target/checked/deps/x-1)");
        for line in lines {
            tally.stdout_line(line);
        }
        tally
    }

    #[test]
    fn counts_come_from_the_result_lines() {
        let tally = tally(&[
            "running 3 tests",
            "test a::one ... ok",
            "test a::two ... FAILED",
            "test a::three - should panic ... ok",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
        ]);
        let report = tally.report(&Verdict { ended_well: false, ..USER });
        assert_eq!(report.closing_line(), "2 passed, 1 failed, 0 skipped");
        assert_eq!(report.lines, ["FAILED a::two"]);
    }

    #[test]
    fn a_skipped_test_does_not_count_as_passed() {
        let mut tally = tally(&[
            "test a::one ... ok",
            "test a::two ... ok",
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
        ]);
        tally.stderr_line("SKIP a::two: needs root");
        let report = tally.report(&USER);
        assert_eq!(report.closing_line(), "1 passed, 0 failed, 1 skipped");
        assert_eq!(report.lines, ["skipped a::two: needs root"]);
    }

    #[test]
    fn a_skip_in_captured_output_counts_too_and_the_rest_is_hidden() {
        let mut tally = tally(&["test a::two ... ok"]);
        assert!(!tally.stdout_line("successes:"));
        assert!(!tally.stdout_line("---- a::two stdout ----"));
        assert!(tally.stdout_line("SKIP two: needs root"));
        assert!(tally.stdout_line("test result: ok. 1 passed; 0 failed; 0 ignored"));
        assert_eq!(tally.report(&USER).closing_line(), "0 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn root_may_skip_only_what_is_allowed() {
        let mut tally = tally(&["test a::two ... ok", "test result: ok. 1 passed; 0 failed; 0 ignored"]);
        tally.stderr_line("SKIP a::two: no second core");
        assert_eq!(tally.report(&ROOT).closing_line(), "0 passed, 1 failed, 1 skipped");
        let allowed = Verdict { allowed: &[("a::two", "needs two cores")], ..ROOT };
        assert_eq!(tally.report(&allowed).closing_line(), "0 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn an_ignored_test_is_a_skipped_one() {
        let tally = tally(&[
            "test a::one ... ignored, takes an hour",
            "test a::two ... ignored",
            "test result: ok. 0 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out",
        ]);
        let report = tally.report(&USER);
        assert_eq!(report.closing_line(), "0 passed, 0 failed, 2 skipped");
        assert_eq!(report.lines, ["skipped a::one: takes an hour", "skipped a::two: marked #[ignore]"]);
    }

    #[test]
    fn a_process_of_other_tests_is_no_test() {
        let tally = tally(&[
            "test a::one ... ok",
            "test a::process ... ignored, is started by other tests, as the process of a worker",
            "test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
        ]);
        assert_eq!(tally.report(&ROOT).closing_line(), "1 passed, 0 failed, 0 skipped");
    }

    #[test]
    fn a_suite_that_dies_is_a_failure() {
        let died = tally(&["test a::one ... ok"]);
        let report = died.report(&Verdict { ended_well: false, ..USER });
        assert_eq!(report.closing_line(), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn an_error_of_cargo_is_a_failure_even_if_no_test_ran() {
        let report = Tally::default().report(&Verdict { ended_well: false, ..USER });
        assert_eq!(report.closing_line(), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn a_skip_that_belongs_to_no_test_is_a_failure() {
        let mut tally = tally(&["test a::one ... ok", "test result: ok. 1 passed; 0 failed; 0 ignored"]);
        tally.stderr_line("SKIP another: needs root");
        assert_eq!(tally.report(&USER).failed, 1);
    }
}
