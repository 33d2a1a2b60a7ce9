//! The `underpass` executable.

fn main() {}
