//! The short fault run, and whether it would notice a bad build. How it works: `tests/faults/faults.py`.

use std::{path::Path, process::Command};

use super::support::{run, said};

/// Runs the script with the binary under test. Returns what it said, its last line of standard output last.
#[track_caller]
fn fault_run(arguments: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/run.sh");
    let output = run(Command::new("bash")
        .arg(script)
        .arg("faults")
        .args(arguments)
        .env("HILUM", env!("CARGO_BIN_EXE_hilum"))
        .env_remove("LD_PRELOAD"));
    assert!(output.status.success(), "the fault run ended with {}:\n{}", output.status, said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Processes killed, power cut, disk full and failing, connections cut, PACS gone, all at once under load.
#[test]
fn heavy_random_faults_under_load_lose_double_and_damage_nothing() {
    let told = fault_run(&["--short", "--seed", "20261122"]);
    let line = told.trim_end().lines().last().unwrap_or_default();
    println!("{line}");
    assert!(line.ends_with("lost=0 duplicated=0 corrupted=0"), "{line}");
    let count = |name: &str| -> u32 {
        let word = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.expect("a count").parse().expect("a number")
    };
    assert!(count("faults") >= 40 && count("acknowledged") >= 400 && count("delivered") >= 20, "{line}");
}

/// A build that says Success before the file is on the disk, one that sends its results twice, and one that damages a file.
#[test]
fn heavy_the_fault_run_notices_early_success_double_delivery_and_damage() {
    let told = fault_run(&["--self-test"]);
    println!("{told}");
    assert!(told.contains("a build that acknowledges before it synchronises is caught"), "{told}");
    assert!(told.contains("a build that sends twice is caught"), "{told}");
    assert!(told.contains("a build that damages a file is caught"), "{told}");
}
