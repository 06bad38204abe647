#!/usr/bin/env bash
# Measures imgfs beside what people use instead, in turns in one run; writes tables, JSON and charts.
# Usage: bench.sh [--rounds N] [--corpus DIR] [--out DIR] [--record] [SECTION...]; sections: ingest space read ends scale
# (all but scale by default). Root; 10 GB of disk, half an hour; scale: 50 GB, ten minutes more. Builds the images it needs.
# --record puts the figures into docs/bench.json, and from there into README.md and docs/performance.md.
# bench.sh write does that last step alone; bench.sh check says whether the documents agree with docs/bench.json.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
case ${1:-} in write | check) exec python3 "$here/scripts/bench_report.py" "$@" ;; esac
((EUID == 0)) || { echo "bench.sh: mounts file systems and drops caches: run it as root" >&2; exit 1; }
"$here/scripts/setup.sh" build images bench
cargo build --release --quiet --manifest-path "$here/Cargo.toml"
exec python3 "$here/scripts/bench.py" --imgfs "${CARGO_TARGET_DIR:-$here/target}/release/imgfs" "$@"
