#!/usr/bin/env bash
# Does every kind of harm to a store and looks whether anything is lost. As root.
# Usage: torture.sh [short|long|NUMBER] [CLASS]: short takes about 7 minutes, long two days, of which stalls one; CLASS is a file of
# tests/torture without its .rs. IMGFS_SEED=N makes a run again; IMGFS_GESTURES=0-4 takes a part of calls.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh torture
IMGFS_TORTURE=${1:-short} exec cargo test --test torture -- --ignored --nocapture --test-threads=2 "${2:-}"
