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

mod benches;
mod cases;
mod commitment;
mod crash;
mod ct;
mod dataset;
mod doctor;
mod duplicates;
mod evidence;
mod faults;
mod hostile;
mod models;
mod names;
mod outage;
mod packages;
mod path;
mod policy;
mod query;
mod results_delivery;
mod retention;
mod site;
mod status;
mod studies;
mod tls;
mod train;
mod trial;
