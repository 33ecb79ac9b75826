#!/usr/bin/env bash
# Prints a clang++ that has libFuzzer and the sanitizers: the system's own, or Debian's from the user's cache (40 MB, once).
#
# Exits with 1 and a reason on stderr where there is none.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=14

links_libfuzzer() {
  echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
    "$1" -x c++ -fsanitize=fuzzer,address,undefined -o /dev/null - 2>/dev/null
}

for own in clang++ $(compgen -c clang++- | sort -uV); do
  if command -v "$own" >/dev/null && links_libfuzzer "$own"; then
    command -v "$own"
    exit 0
  fi
done

root=$("$here/fetch_debian.sh" clang-$version libclang-cpp$version libllvm$version libclang-{common,rt}-$version-dev \
  libz3-4 libedit2 libxml2 libbsd0 libmd0 libicu72 llvm-$version)
libraries=$(printf '%s:' "$root"/usr/lib/*-linux-gnu "$root/usr/lib/llvm-$version/lib")
wrapper=$(dirname "$(dirname "$root")")/clang-$version++
cat >"$wrapper.$$" <<END
#!/bin/sh
LD_LIBRARY_PATH='${libraries%:}' exec '$root/usr/bin/clang++-$version' "\$@"
END
chmod +x "$wrapper.$$"
mv "$wrapper.$$" "$wrapper"
if ! links_libfuzzer "$wrapper"; then
  echo "$wrapper does not link libFuzzer" >&2
  exit 1
fi
echo "$wrapper"
