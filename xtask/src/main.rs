//! `cargo xtask`: everything a developer runs that is not the proxy itself.
#![forbid(unsafe_code)]

mod api_check;
mod bench;
mod build_ebpf;
mod churn;
mod ci;
mod fuzz;
mod lab;
mod machine;
mod process;
mod test;
mod tools;
mod vm;

use clap::Parser;

/// Builds, tests and measures underpass.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Command {
    /// Builds the BPF object from source; the one in the repository is built so
    BuildEbpf(build_ebpf::Options),
    /// Builds and runs every test; says what was skipped and why
    Test(test::Options),
    /// Checks the admin API of a running proxy against the OpenAPI document that it serves, with schemathesis
    ApiCheck(api_check::Options),
    /// Runs all that a change must pass: format, lints, policy, BPF build, tests, documentation, fuzzing, benchmark, lab, virtual machines
    Ci(ci::Options),
    /// Feeds random input to the parsers, if a nightly toolchain is there
    Fuzz(fuzz::Options),
    /// Measures proxies side by side on this machine, and the floor under them
    Bench(bench::Options),
    /// Changes a large configuration while it serves: what changes cost, and what they cost the requests
    Churn(churn::Options),
    /// Raises the load on underpass and others step by step until they break; compares modes and steering policies
    Lab(lab::Options),
    /// Tests the proxy in virtual machines with other kernels and a network card of several queues
    VmTest(vm::Options),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::BuildEbpf(options) => build_ebpf::run(&options),
        Command::Test(options) => test::run(&options),
        Command::ApiCheck(options) => api_check::run_check(&options),
        Command::Ci(options) => ci::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Churn(options) => churn::run(&options),
        Command::Lab(options) => lab::run(&options),
        Command::VmTest(options) => vm::run(&options),
    }
}
