//! Whole-node tests: the real binary, a real Postgres and real peers, over loopback.
//!
//! `support` is the harness; every other module is one theme.

mod support;
mod validators;

mod crash;
mod hostile;
mod outage;
mod path;
