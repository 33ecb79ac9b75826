#!/usr/bin/env bash
# Makes .venv with the project (editable), its kernels and its tests' needs; touches the file $1 when all is there.
#
# Environment:
#   PYTHON       the interpreter to build on, 3.11 or newer (default python3)
#   TORCH_INDEX  the package index to take torch from, e.g. https://download.pytorch.org/whl/cu130
#
# An importable torch is kept, wherever it is: Jetson images bring their own, which no index has. Otherwise torch is
# installed in a build for the CPU unless this machine has an NVIDIA driver, so that nobody gets gigabytes of CUDA
# packages for nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

ready=$1
python=${PYTHON:-python3}
torch=2.13.0
cpu_index=https://download.pytorch.org/whl/cpu

fail() { echo "setup: $*" >&2; exit 1; }
install() { .venv/bin/python -m pip install --disable-pip-version-check "$@"; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is older than Python 3.11; set PYTHON"
command -v ${CXX:-c++ g++ clang++} >/dev/null || fail "no C++ compiler, install g++ or set CXX"

if ! .venv/bin/python -c '' 2>/dev/null; then
  packages=
  # A vendor's torch is the system's. That of an activated virtual environment is not seen from another one.
  "$python" -c 'import sys, torch; sys.exit(sys.prefix != sys.base_prefix)' 2>/dev/null && packages=--system-site-packages
  "$python" -m venv --clear $packages .venv || fail "$python cannot make a virtual environment (Debian: python3-venv)"
fi

if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  if [[ -n ${TORCH_INDEX:-} ]]; then
    install --index-url "$TORCH_INDEX" "torch==$torch"
  elif command -v nvidia-smi >/dev/null; then
    install "torch==$torch"
  else
    # A machine may have a CPU build at hand (it is called +cpu everywhere); else PyTorch's own index has one.
    install --quiet "torch==$torch+cpu" 2>/dev/null || install --retries 1 --index-url "$cpu_index" "torch==$torch" || {
      echo "setup: no CPU build of torch to be had, taking the default one, several GB; TORCH_INDEX chooses another" >&2
      install "torch==$torch"
    }
  fi
fi

# A vendor's torch is never replaced, so one that is too old has to be said here.
.venv/bin/python - <<'END' || fail "torch $(.venv/bin/python -c 'import torch; print(torch.__version__)') is too old, transformers 5.23 needs 2.6 as a final release"
import re, sys, torch
major, minor, rest = re.match(r"(\d+)\.(\d+)(.*)", torch.__version__).groups()
sys.exit((int(major), int(minor)) < (2, 6) or rest.startswith(".0a") and (int(major), int(minor)) == (2, 6))
END

install --quiet --editable '.[test]'
rm -f .venv/.ready*
touch "$ready"
