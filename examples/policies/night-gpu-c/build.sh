#!/bin/sh
# Builds night_gpu_c.wasm in the folder given (default: target). Ends with 77 where a tool is missing, and says which.
#
# Debian: apt-get install clang lld wasi-libc libclang-rt-dev-wasm32
# cargo install --locked wit-bindgen-cli --version 0.61.1 --no-default-features --features c
set -eu
cd "$(dirname "$0")"
out=${1:-target}

for tool in clang wasm-ld wit-bindgen; do
  command -v "$tool" >/dev/null || { echo "night-gpu-c is not built: $tool is missing"; exit 77; }
done
[ -e /usr/include/wasm32-wasi/stdlib.h ] || { echo "night-gpu-c is not built: wasi-libc is missing"; exit 77; }

mkdir -p "$out"
# The interface as C: a header, the code that passes values, and an object with the description of the world.
wit-bindgen c --world lease-policy --out-dir "$out" ../../../policy-sdk/wit
# Of the C library only memory and strings are used, so nothing of WASI is imported; the host would refuse it.
clang --target=wasm32-wasi -O2 -Wall -Wextra -Werror -nostartfiles -Wl,--no-entry -Wl,--strip-debug -I"$out" \
  src/policy.c "$out/lease_policy.c" "$out/lease_policy_component_type.o" -o "$out/night_gpu_c.wasm"
echo "$out/night_gpu_c.wasm"
