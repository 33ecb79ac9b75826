#!/usr/bin/env bash
# Unpacks Debian packages into the user's cache, without root and without installing them, and prints the folder.
#
#   scripts/fetch_debian.sh PACKAGE...    prints e.g. ~/.cache/zipmoe/debian/prometheus-amd64-e4af19ee8b2c
#
# Dependencies are not followed: name each package that is needed. A second call finds the folder and asks nobody.
# Exits with 1 and a reason on stderr where the packages cannot be had (no apt, no network, unknown package).
set -euo pipefail

if (($# == 0)); then
  echo "usage: $0 PACKAGE..." >&2
  exit 2
fi
for tool in apt-get dpkg dpkg-deb flock; do
  command -v "$tool" >/dev/null || { echo "$tool is not on this machine, so Debian packages cannot be fetched" >&2; exit 1; }
done

cache="${ZIPMOE_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/zipmoe}/debian"
key=$(printf '%s\n' "$@" | sort -u | sha256sum | cut -c1-12)
root="$cache/${1//[^a-z0-9.+-]/_}-$(dpkg --print-architecture)-$key"
mkdir -p "$cache"

exec 9>"$root.lock"
flock 9
if [[ -d $root ]]; then
  echo "$root"
  exit 0
fi

work=$(mktemp -d "$cache/.new.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/debs" "$work/root"
# Root would hand the download to the user _apt, who may not write into root's cache.
options=(-qq -o APT::Sandbox::User=root -o Acquire::Retries=1 -o Acquire::http::Timeout=30)

download() {
  (cd "$work/debs" && apt-get "${options[@]}" "$@" 2>"$work/reason" >&2)
}

if ! download download "${@}"; then
  # The machine's package lists may be missing or too old; an ordinary user cannot renew them, so use lists of our own.
  mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial"
  options+=(-o "Dir::State=$cache/apt" -o "Dir::State::lists=$cache/apt/lists" -o "Dir::Cache=$cache/apt")
  options+=(-o "Dir::State::status=/var/lib/dpkg/status")
  if ! { download update && download download "${@}"; }; then
    echo "cannot fetch $*: $(tr '\n' ' ' <"$work/reason")" >&2
    exit 1
  fi
fi
for deb in "$work"/debs/*.deb; do
  dpkg-deb -x "$deb" "$work/root"
done
mv "$work/root" "$root"
echo "$root"
