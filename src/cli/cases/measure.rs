//! `hilum cases measure`: how long a search takes; `make bench-cases` runs it.

use std::time::Instant;

use clap::Args;

use super::super::output::print;
use crate::infer::nearest::{VectorTable, distance, normalised};

#[derive(Debug, Args)]
pub(in crate::cli) struct Options {
    /// Cases in the library
    #[arg(long, default_value_t = 100_000)]
    cases: usize,
    /// Numbers of each vector
    #[arg(long, default_value_t = 2048)]
    dimensions: usize,
    /// Searches
    #[arg(long, default_value_t = 20)]
    searches: usize,
}

/// Of one search.
const NEIGHBOURS: usize = 4;

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    anyhow::ensure!(options.cases > NEIGHBOURS && options.dimensions > 0 && options.searches > 0, "nothing to measure");
    let mut state = 1_u64;
    let mut random_vector = || {
        let values: Vec<f32> = (0..options.dimensions)
            .map(|_| {
                // Knuth's MMIX generator: the same vectors on every machine.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1_u32 << 24) as f32 - 0.5
            })
            .collect();
        normalised(&values).unwrap_or(values)
    };
    let mut table = VectorTable::new(options.dimensions);
    table.reserve(options.cases);
    for _ in 0..options.cases {
        table.push(&random_vector());
    }
    let mut milliseconds = Vec::new();
    for _ in 0..options.searches {
        let query = random_vector();
        let started = Instant::now();
        let found = table.nearest(&query, NEIGHBOURS, |_| true, |one, other| one.cmp(&other));
        milliseconds.push(started.elapsed().as_secs_f64() * 1000.0);
        let mut exact: Vec<(usize, f64)> =
            (0..table.len()).filter_map(|row_idx| Some((row_idx, distance(&query, table.row(row_idx)?)))).collect();
        exact.sort_by(|one, other| one.1.total_cmp(&other.1).then(one.0.cmp(&other.0)));
        exact.truncate(NEIGHBOURS);
        anyhow::ensure!(found == exact, "the search found {found:?} where 64 bits find {exact:?}");
    }
    milliseconds.sort_by(f64::total_cmp);
    let at = |share: f64| milliseconds.get(((milliseconds.len() - 1) as f64 * share) as usize).copied().unwrap_or(0.0);
    print(&format!(
        "{} cases of {} dimensions, {:.0} MB, {} searches: median {:.1} ms, fastest {:.1} ms, slowest {:.1} ms; all exact",
        options.cases,
        options.dimensions,
        (options.cases * options.dimensions * size_of::<f32>()) as f64 / 1e6,
        options.searches,
        at(0.5),
        at(0.0),
        at(1.0)
    ))
}
