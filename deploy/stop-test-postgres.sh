#!/usr/bin/env bash
# Stops the throw-away Postgres that the tests shared and removes its folder. Says nothing: the test summary comes last.
#   deploy/stop-test-postgres.sh FOLDER
set -euo pipefail

folder="${1:?usage: deploy/stop-test-postgres.sh FOLDER}"
[[ "$folder" == /tmp/hilum-test* ]] || {
    printf 'stop-test-postgres: %s is not a folder of the tests (/tmp/hilum-test…)\n' "$folder" >&2
    exit 1
}

while read -r pid_file; do
    pid="$(head -n 1 "$pid_file" 2>/dev/null || true)"
    [[ "$pid" =~ ^[0-9]+$ && "$(cat "/proc/$pid/comm" 2>/dev/null || true)" == postgres ]] || continue
    kill -QUIT "$pid" 2>/dev/null || continue # "immediate": nothing in it is worth a checkpoint
    for _ in {1..100}; do
        [[ -e "/proc/$pid/exe" ]] || break # a zombie has none
        sleep 0.1
    done
done < <(find "$folder" -maxdepth 3 -name postmaster.pid 2>/dev/null || true)
rm -rf "$folder"
