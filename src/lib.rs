//! Hilum: a DICOM network node that puts chest-imaging AI between scanners and the PACS.
//!
//! The modules are the rooms of `docs/architecture.md`, in the order in which an image walks through them.

pub mod types;

pub mod dimse;

pub mod tls;

pub mod receive;

pub mod archive;

pub mod assemble;

pub mod retention;

pub mod imaging;

pub mod nn;

pub mod infer;

pub mod train;

pub mod report;

pub mod deliver;

pub mod db;

pub mod jobs;

pub mod admin;

pub mod config;

pub mod telemetry;

pub mod cli;

pub mod app;

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
