#!/usr/bin/env bash
# Fuzzes a parser with libFuzzer, on stable Rust. Usage: fuzz.sh archive|layers|tree|recipe [SECONDS] [LIBFUZZER-OPTION...]
# Inputs are kept in tests/fuzz/corpus/TARGET (not in git), findings in tests/fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/../tests/fuzz"
target=${1:?archive, layers, tree or recipe} seconds=${2:-60}
shift $(($# > 2 ? 2 : $#))
mkdir -p "corpus/$target" artifacts
cp -n "seeds/$target"/* "corpus/$target/" 2> /dev/null || true
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
 -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1"
cargo build --quiet --release --target x86_64-unknown-linux-gnu --bin "$target"
exec "target/x86_64-unknown-linux-gnu/release/$target" "corpus/$target" -max_total_time="$seconds" -timeout=10 \
  -rss_limit_mb=2048 -max_len=65536 -artifact_prefix=artifacts/ "$@"
