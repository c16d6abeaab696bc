#!/usr/bin/env bash
# Trains and measures the reference bundles anew: the commands behind models/cxr-lungs and models/cxr-covid-reference.
#
#   deploy/reference.sh DATA [FOLDER]
#
# DATA is the data set cxr-open: a folder with manifest.csv, images/ and masks/, made of covid-chestxray-dataset and Kermany et
# al. (their licences and addresses are in the model cards). FOLDER [default: data/reference] gets the trainings. Hours on
# two cores; what was interrupted goes on where it stopped. Needs `make release`, or HILUM with the path of a binary.
set -euo pipefail

fail() {
    printf 'reference: %s\n' "$@" >&2
    exit 1
}

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[[ $# -ge 1 && -f "$1/manifest.csv" ]] || fail 'give the folder of the data set, which holds manifest.csv'
data="$(cd "$1" && pwd)"
folder="${2:-$repository/data/reference}"
hilum="${HILUM:-${CARGO_TARGET_DIR:-${HILUM_CACHE:-$HOME/.cache/hilum}/target}/release/hilum}"
[[ -x "$hilum" ]] || fail "there is no binary at $hilum: run 'make release', or set HILUM"

# The paths in commands and cards are relative to this folder, whatever the machine.
mkdir -p "$folder/data"
cd "$folder"
ln -sfn "$data" data/cxr-open
cp "$repository/config/reference/lungs.toml" "$repository/config/reference/classes.toml" .
hilum() { "$hilum" "$@"; }

# Lungs: five folds by patient, then all films.
hilum train --config lungs.toml --out runs/lungs --fold all/5
hilum train --config lungs.toml --out runs/lungs-final --without-validation

# Classes, in the same folds: each film's lungs are found by a segmenter that was not trained on its patient.
hilum train --config classes.toml --out runs/classes --fold all/5
hilum train --config classes.toml --out runs/classes-final --without-validation

# The bundles with the figures of cross-validation in their manifests, and their cards.
publish() {
    local name="$1" training="$2"
    rm -rf "models/$name"
    mkdir -p models
    cp -r "$training-final/bundle" "models/$name"
    hilum evaluate "models/$name" --data data/cxr-open --cross-validated "$training" "${@:3}" \
        --out "reports/$name" --write --whose makers
    hilum model card "$name" --models-dir models >"models/$name/README.md"
    hilum model verify "$name" --models-dir models
    rm -rf "${repository:?}/models/$name"
    cp -r "models/$name" "$repository/models/"
}
publish cxr-lungs runs/lungs --without-shortcut-tests
publish cxr-covid-reference runs/classes --map covid=COVID-19 --map 'normal=No COVID-19 pattern' \
    --map 'pneumonia=No COVID-19 pattern'
