//! What was checked, in which kernel, and what came of it: a line for each check as it ends.

use std::time::Instant;

use anyhow::Result;

/// The results of all guests.
#[derive(Debug, Default)]
pub(super) struct Report {
    passed: usize,
    failed: usize,
    skipped: usize,
    repeated: usize,
}

impl Report {
    /// Runs a check and prints how it ended: `ok KERNEL: CHECK: what was found`.
    pub(super) fn check(&mut self, kernel: &str, name: &str, check: impl FnOnce() -> Result<String>) {
        let began = Instant::now();
        let result = check();
        let took = began.elapsed().as_secs_f64();
        match result {
            Ok(found) => {
                self.passed += 1;
                println!("ok      {kernel}: {name}: {found} ({took:.1} s)");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAILED  {kernel}: {name}: {error:#} ({took:.1} s)");
            }
        }
    }

    /// Notes a kernel that is not there.
    pub(super) fn skip(&mut self, kernel: &str, reason: &str) {
        self.skipped += 1;
        println!("skipped {kernel}: {reason}");
    }

    /// Notes that so many checks failed in a guest that is now started once more.
    pub(super) fn repeated(&mut self, failed: usize) {
        self.repeated += failed;
    }

    /// Adds what was found in one guest.
    pub(super) fn add(&mut self, guest: &Self) {
        self.passed += guest.passed;
        self.failed += guest.failed;
        self.skipped += guest.skipped;
        self.repeated += guest.repeated;
    }

    pub(super) fn failed(&self) -> usize {
        self.failed
    }

    /// Whether anything was checked at all.
    pub(super) fn is_empty(&self) -> bool {
        self.passed + self.failed == 0
    }

    pub(super) fn closing_line(&self) -> String {
        let Self { passed, failed, skipped, repeated } = self;
        let mut line = format!("{passed} checks passed, {failed} failed; {skipped} kernels skipped");
        if *repeated > 0 {
            line += &format!("; {repeated} had failed before their guest was started once more");
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_was_checked_and_what_not() {
        let mut report = Report::default();
        report.skip("6.12", "no mirror");
        assert!(report.is_empty());
        report.check("6.1", "boots", || Ok("in 6 s".into()));
        report.check("6.1", "serves", || anyhow::bail!("no answer"));
        assert_eq!(report.failed(), 1);
        assert_eq!(report.closing_line(), "1 checks passed, 1 failed; 1 kernels skipped");
    }

    #[test]
    fn a_guest_that_was_started_again_counts_by_its_second_run() {
        let (mut report, mut second) = (Report::default(), Report::default());
        report.repeated(2);
        second.check("6.1", "serves", || Ok("all".into()));
        report.add(&second);
        assert_eq!(report.failed(), 0);
        let expected = "1 checks passed, 0 failed; 0 kernels skipped; 2 had failed before their guest was started once more";
        assert_eq!(report.closing_line(), expected);
    }
}
