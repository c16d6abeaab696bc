#!/usr/bin/env bash
# Starts one of the measurements that run beside other people's programs; `make bench`, `make bench-receive`, `make
# bench-scale`, `make interop`, `make faults` and `make bench-cases` do it.
#
#   run.sh bench|receive|scale|infer|train|e2e|cases|interop|faults [OPTIONS]     --help lists the options of each
#
#   HILUM   the binary to measure (default: the one that `make run` builds)
#
# Nothing here is a test of speed: speed never fails a build. `faults` is one of durability and does.
set -euo pipefail

folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export HILUM_CACHE="${HILUM_CACHE:-$HOME/.cache/hilum}"
export HILUM="${HILUM:-${CARGO_TARGET_DIR:-$HILUM_CACHE/target}/debug/hilum}"
export PATH="$PATH:/usr/sbin" # Debian's Orthanc

what="${1:?usage: benches/run.sh bench|receive|scale|infer|train|e2e|cases|interop|faults [OPTIONS]}"
shift
case "$what" in
bench | receive | scale | infer | train | e2e | interop) script="$folder/$what.py" setup=bench ;;
faults) script="$folder/../tests/faults/faults.py" setup=test ;;
cases) exec "$HILUM" cases measure "$@" ;; # needs nobody else's programs
*)
    printf 'run.sh: there is no %s; expected bench, receive, scale, infer, train, e2e, cases, interop or faults\n' "$what" >&2
    exit 2
    ;;
esac

[[ -x "$HILUM" ]] || {
    printf '%s: there is no program %s; run `make run` once, or name one with HILUM=\n' "$what" "$HILUM" >&2
    exit 1
}
for program in storescu storescp Orthanc psql strace cc; do
    command -v "$program" >/dev/null || {
        printf '%s: %s is missing; `deploy/setup.sh %s` installs it\n' "$what" "$program" "$setup" >&2
        exit 1
    }
done
exec "${HILUM_PEERS_PYTHON:-$HILUM_CACHE/peers-venv/bin/python}" "$script" "$@"
