//! What was checked, in which kernel, and what came of it: a line for each check as it ends.

use std::time::Instant;

use anyhow::Result;

/// The results of all guests.
#[derive(Debug, Default)]
pub(super) struct Report {
    passed: usize,
    failed: usize,
    skipped: usize,
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

    pub(super) fn failed(&self) -> usize {
        self.failed
    }

    /// Whether anything was checked at all.
    pub(super) fn is_empty(&self) -> bool {
        self.passed + self.failed == 0
    }

    pub(super) fn closing_line(&self) -> String {
        let Self { passed, failed, skipped } = self;
        format!("{passed} checks passed, {failed} failed; {skipped} kernels skipped")
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
}
