//! How bodies get from one socket to the other, and the ledger that says how much of them is left.

mod ledger;

pub use ledger::{Ledger, Part, TrailerLimits};
