#!/usr/bin/env bash
# Kills the daemon, and fails its calls, in the middle of each gesture, and looks at what is left.
# Usage: torture.sh [POINTS]: how many points of each gesture (5; 1000: every one), about half a second each.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh test
IMGFS_TORTURE=${1:-5} exec cargo test --test torture -- --ignored --nocapture --test-threads=1
