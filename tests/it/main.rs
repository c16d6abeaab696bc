//! Whole-node tests: the real binary, a real Postgres and real peers, over loopback.
//!
//! `support` is the harness; every other module is one theme.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::assigning_clones,
    clippy::duration_suboptimal_units,
    clippy::needless_borrows_for_generic_args,
    clippy::needless_pass_by_value,
    clippy::unnecessary_debug_formatting,
    reason = "a test that cannot go on fails, and says so"
)]

mod support;
mod validators;

mod crash;
mod doctor;
mod duplicates;
mod hostile;
mod outage;
mod path;
mod site;
mod status;
mod studies;
