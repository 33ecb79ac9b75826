#!/usr/bin/env bash
# Prints a folder with a C++ compiler for aarch64 and an emulator, the system's own or Debian's from the user's cache:
#
#   c++                compiles for aarch64
#   emulate            runs an aarch64 program here: emulate PROGRAM ARGUMENT...
#   strip              strips aarch64 programs
#   toolchain.cmake    makes CMake use all of them
#
# Exits with 1 and a reason on stderr where they cannot be had. The first call fetches 55 MB.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

if compiler=$(command -v aarch64-linux-gnu-g++) && emulator=$(command -v qemu-aarch64 || command -v qemu-aarch64-static); then
  strip=$(command -v aarch64-linux-gnu-strip)
  flags= libraries=${LD_LIBRARY_PATH:-} sysroot=/usr/aarch64-linux-gnu
else
  command -v gcc >/dev/null || { echo "no gcc to tell which version of the cross-compiler to fetch" >&2; exit 1; }
  # Debian's compilers for all targets have one version, and share the libraries of the one that is installed.
  gcc=$(gcc -dumpversion)
  gcc=${gcc%%.*}
  root=$("$here/fetch_debian.sh" \
    {g++,gcc}-"$gcc"-aarch64-linux-gnu {libgcc,libstdc++}-"$gcc"-dev-arm64-cross libstdc++6-arm64-cross libgcc-s1-arm64-cross \
    binutils-aarch64-linux-gnu libbinutils libjansson4 libc6-arm64-cross libc6-dev-arm64-cross linux-libc-dev-arm64-cross \
    qemu-user libcapstone4 libglib2.0-0 libgnutls30 libnuma1 liburing2)
  sysroot=$root/usr/aarch64-linux-gnu
  compiler=$root/usr/bin/aarch64-linux-gnu-g++-$gcc
  emulator=$root/usr/bin/qemu-aarch64
  strip=$root/usr/bin/aarch64-linux-gnu-strip
  flags="-B$sysroot/bin -L$sysroot/lib -Wl,--sysroot=$root"
  libraries=$(printf '%s:' "$root"/usr/lib/*-linux-gnu)
  libraries=${libraries%:}
fi

tools=${ZIPMOE_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/zipmoe}/aarch64-tools
mkdir -p "$tools"
# Build folders remember the toolchain by its path: the real one stays when a link to it goes.
tools=$(cd "$tools" && pwd -P)
# Others may be reading these files: replace each at once.
put() { cat >"$tools/$1.$$" && chmod +x "$tools/$1.$$" && mv "$tools/$1.$$" "$tools/$1"; }

put c++ <<END
#!/bin/sh
LD_LIBRARY_PATH='$libraries' exec '$compiler' $flags "\$@"
END
put strip <<END
#!/bin/sh
LD_LIBRARY_PATH='$libraries' exec '$strip' "\$@"
END
put emulate <<END
#!/bin/sh
LD_LIBRARY_PATH='$libraries' exec '$emulator' -L '$sysroot' "\$@"
END
put toolchain.cmake <<END
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER "$tools/c++")
set(CMAKE_STRIP "$tools/strip")
set(CMAKE_CROSSCOMPILING_EMULATOR "$tools/emulate")
END
echo "$tools"
