//! That the benchmark of a full index still fits the tables: it fills them by SQL, past the program. How fast anything is
//! does not matter here.

use std::{path::Path, process::Command};

use super::support::{run, said};

#[test]
fn heavy_the_benchmark_of_a_full_index_fits_the_tables() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/run.sh");
    let output = run(Command::new("bash")
        .arg(script)
        .args(["scale", "--quick", "--small", "100", "--large", "1000", "--wait", "0"])
        .env("HILUM", env!("CARGO_BIN_EXE_hilum")));
    assert!(output.status.success(), "the benchmark ended with {}:\n{}", output.status, said(&output));
    let told = String::from_utf8_lossy(&output.stdout);
    let closing = told.trim_end().lines().last().unwrap_or_default();
    assert!(closing.starts_with("studies=1000 c_store_p95_ratio="), "{told}");
}
