#!/usr/bin/env bash
# Benchmarks of the node beside Orthanc and dcmtk's storescp, side by side in one run. `make bench` starts this.
#
#   HILUM   the binary to measure (default: the one that `make run` builds)
#   ARGS    options of bench.py, for example: make bench ARGS='--quick', ARGS='--only receive', ARGS=--help
#
# A complete run writes its tables into docs/benchmarks.md. Nothing here is a test: speed never fails a build.
set -euo pipefail

folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cache="${HILUM_CACHE:-$HOME/.cache/hilum}"
export HILUM="${HILUM:-${CARGO_TARGET_DIR:-$cache/target}/debug/hilum}"
export PATH="$PATH:/usr/sbin" # Debian's Orthanc

[[ -x "$HILUM" ]] || {
    printf 'bench: there is no program %s; run `make bench`, or name one with HILUM=\n' "$HILUM" >&2
    exit 1
}
for program in storescu storescp Orthanc psql strace; do
    command -v "$program" >/dev/null || {
        printf 'bench: %s is missing; `deploy/setup.sh bench` installs it\n' "$program" >&2
        exit 1
    }
done
exec "${HILUM_PEERS_PYTHON:-$cache/peers-venv/bin/python}" "$folder/bench.py" "$@"
