#!/usr/bin/env bash
# Installs Hilum on a server for production: the binary, the libtorch libraries that it links, a system user, the
# systemd unit, and a configuration if there is none. Run again to upgrade: configuration and data are never touched.
#
#   sudo deploy/install.sh BINARY        BINARY is what `make release` printed
#
# DESTDIR=FOLDER installs below another root (for packages and for trying it out) and makes no user.
set -euo pipefail

deploy_folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
binary="${1:-}"
root="${DESTDIR:-}"

say() { printf 'install: %s\n' "$*"; }
fail() {
    printf 'install: %s\n' "$@" >&2
    exit 1
}

[[ -n "$binary" ]] || fail "usage: sudo deploy/install.sh BINARY (build it with 'make release')"
[[ -x "$binary" ]] || fail "$binary is not an executable file; build it with 'make release'"
[[ "$(uname -s) $(uname -m)" == 'Linux x86_64' ]] || fail "Hilum supports Linux on x86-64 only"
[[ -n "$root" || "$(id -u)" == 0 ]] || fail "this writes to /usr/local, /etc and /var/lib: run it as root"

program_folder=/usr/local/lib/hilum
config_folder=/etc/hilum
data_folder=/var/lib/hilum

# put MODE SOURCE TARGET: replaces the target in one step, so that a running Hilum keeps the file that it has open.
put() {
    local mode="$1" source="$2" target="$root$3"
    if cmp --silent "$source" "$target"; then return 0; fi
    mkdir -p "$(dirname "$target")"
    install -m "$mode" "$source" "$target.new"
    mv -f "$target.new" "$target"
    say "wrote $target"
}

# The libraries below libtorch's folder keep their places to each other: their own run path is relative.
install_libraries() {
    local library relative count=0
    while read -r library; do
        relative="$(sed -E 's#^.*/((torch|nvidia)/.*)$#\1#' <<<"$library")"
        put 644 "$(readlink -f "$library")" "$program_folder/$relative"
        count=$((count + 1))
    done < <(ldd "$binary" | awk '$3 ~ /\/(torch|nvidia)\// { print $3 }' | xargs -r -n 1 realpath -s)
    if ldd "$binary" | grep 'not found' >&2; then fail "$binary does not find the libraries above"; fi
    ((count > 0)) || fail "$binary links no libtorch: is it hilum?"
}

if [[ -z "$root" ]] && ! getent passwd hilum >/dev/null; then
    useradd --system --user-group --home-dir "$data_folder" --shell /usr/sbin/nologin --comment 'Hilum DICOM node' hilum
    say "made the system user hilum"
fi

install_libraries
put 755 "$binary" "$program_folder/hilum"
launcher="$(mktemp)"
trap 'rm -f "$launcher"' EXIT
cat >"$launcher" <<LAUNCHER
#!/bin/sh
# Hilum with the libtorch that was installed beside it.
export LD_LIBRARY_PATH="$program_folder/torch/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
exec $program_folder/hilum "\$@"
LAUNCHER
put 755 "$launcher" /usr/local/bin/hilum
put 644 "$deploy_folder/../README.md" /usr/local/share/doc/hilum/README.md
put 644 "$deploy_folder/../LICENSE" /usr/local/share/doc/hilum/LICENSE

mkdir -p "$root$config_folder" "$root$data_folder/models"
if [[ ! -e "$root$config_folder/hilum.toml" ]]; then
    sed -E "s#^models_dir = .*#models_dir = \"$data_folder/models\"#" "$deploy_folder/../config/hilum.example.toml" \
        >"$root$config_folder/hilum.toml"
    say "wrote $root$config_folder/hilum.toml (defaults; read it)"
fi
put 644 "$deploy_folder/../config/site.example.toml" "$config_folder/site.example.toml"
if [[ -z "$root" ]]; then
    chown root:hilum "$config_folder" "$config_folder/hilum.toml"
    chown hilum:hilum "$data_folder" "$data_folder/models"
fi
# The configuration may hold the password of the database, and the data folder holds patients' images.
chmod 750 "$root$config_folder" "$root$data_folder"
chmod 640 "$root$config_folder/hilum.toml"

put 644 "$deploy_folder/hilum.service" /etc/systemd/system/hilum.service
if [[ -z "$root" && -d /run/systemd/system ]]; then
    systemctl daemon-reload
fi

cat <<NEXT

Hilum is installed. What is left to do, once:
  1. A database. On this machine:
       sudo -u postgres createuser hilum
       sudo -u postgres createdb --owner hilum hilum
     Elsewhere: set database.url or database.url_file in $config_folder/hilum.toml.
  2. A model bundle below $data_folder/models. Without one, for trying out, random weights:
       sudo -u hilum hilum model init --config $config_folder/hilum.toml
  3. sudo -u hilum hilum check-config --config $config_folder/hilum.toml
     sudo -u hilum hilum migrate --config $config_folder/hilum.toml
  4. AE titles, peers, routes and destinations: copy $config_folder/site.example.toml, edit it, and
       sudo -u hilum hilum apply --config $config_folder/hilum.toml SITE.toml
  5. sudo systemctl enable --now hilum
After an upgrade: step 3 again, then sudo systemctl restart hilum.
NEXT
