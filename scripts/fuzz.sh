#!/usr/bin/env bash
# Fuzzes every native decoder with libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, and ends with its figures.
#
# Environment:
#   FUZZ_SECONDS   how long (default 600)
#   FUZZ_JOBS      processes that share what they find (default 1)
#
# What is found is kept in build/fuzz/found; an input that breaks a claim is written to build/fuzz and is the exit code's
# reason. `scripts/fuzz.sh keep` moves the finds that reach new code into tests/fuzz/corpus.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:$PWD/.venv/bin  # where pip puts a cmake

build=build/fuzz corpus=tests/fuzz/corpus
clang=$(scripts/clang.sh)
cmake -S tests/fuzz -B $build -DLIBFUZZER=ON -DCMAKE_CXX_COMPILER="$clang" >/dev/null
cmake --build $build
mkdir -p $build/found $corpus
options=(-max_len=65536 -detect_leaks=0 -timeout=20 -rss_limit_mb=2048 -artifact_prefix=$build/)

if [[ ${1:-} == keep ]]; then
  exec "$build/decoders" "${options[@]}" -merge=1 $corpus $build/found
fi
exec "$build/decoders" "${options[@]}" -max_total_time="${FUZZ_SECONDS:-600}" -fork="${FUZZ_JOBS:-1}" $build/found $corpus
