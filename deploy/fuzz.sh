#!/usr/bin/env bash
# Fuzzes the targets of fuzz/: deploy/fuzz.sh [SECONDS_EACH [TARGET...]]. `make fuzz` calls it.
#
# The corpus grows in fuzz/corpus/ (not in git): hand-made seeds, earlier findings, and pieces of the files of the pydicom
# packages, which stay out of the repository for their licences. A finding is left in fuzz/artifacts/TARGET/: make it
# small, put it into fuzz/regressions/TARGET/, and `make test` replays it for ever.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds_each="${1:-60}"
shift || true
targets=("$@")
if [[ ${#targets[@]} -eq 0 ]]; then
    for file in fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

# Coverage instrumentation is for nightly compilers; the pinned one can do it as well. No address sanitizer: the code
# that is fuzzed has no `unsafe`, and libtorch is not built for it.
export RUSTC_BOOTSTRAP=1
export LD_LIBRARY_PATH="$LIBTORCH/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export CARGO_TARGET_DIR="${HILUM_FUZZ_TARGET_DIR:-$HILUM_CACHE/fuzz-target}"

"${HILUM_PEERS_PYTHON:-python3}" fuzz/make_corpus.py "$HILUM_TEST_FIXTURES" fuzz/corpus
failed=()
for target in "${targets[@]}"; do
    for folder in seeds regressions; do
        [[ ! -d "fuzz/$folder/$target" ]] || cp "fuzz/$folder/$target"/* "fuzz/corpus/$target/"
    done
    printf 'fuzz: %s for %s s\n' "$target" "$seconds_each"
    cargo fuzz run --sanitizer none "$target" -- \
        -max_total_time="$seconds_each" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 || failed+=("$target")
done
if [[ ${#failed[@]} -gt 0 ]]; then
    printf 'fuzz: findings in fuzz/artifacts/ for: %s\n' "${failed[*]}" >&2
    exit 1
fi
printf 'fuzz: nothing found in %d targets\n' "${#targets[@]}"
