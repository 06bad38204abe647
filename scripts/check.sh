#!/usr/bin/env bash
# What CI runs: format, lints as errors, all tests, docs, the README's session. Prints what it skips and why.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh build test
# All mounts of this run are below a directory of its own, so that none of another run is touched.
TMPDIR=$(mktemp -d); export TMPDIR
chmod 755 "$TMPDIR"
cleanup() { # Mounts of tests that failed in the middle.
  cut -d' ' -f2 /proc/self/mounts | grep -F "$TMPDIR/" | sort -r | xargs -r -n1 umount -l || true
  rm -rf "$TMPDIR"
}
trap cleanup EXIT

step() { echo "== $*" >&2; "$@"; }
step cargo fmt --check
step cargo clippy --quiet --all-targets -- -D warnings
if ((EUID == 0)); then
  # Real Debian images for the tests that compare with GNU tar; without a mirror those tests say that they skip.
  export IMGFS_CORPUS=${IMGFS_CORPUS:-${XDG_CACHE_HOME:-$HOME/.cache}/imgfs-corpus}
  ./scripts/corpus.sh "$IMGFS_CORPUS" web-v0 web-v1 || echo "skipped: the Debian images (no mirror?)" >&2
else
  echo "skipped: the Debian images, and tests as several users: not root" >&2
fi
step cargo test --quiet -- --test-threads=2
if ((EUID == 0)); then step ./scripts/torture.sh short; else echo "skipped: torture.sh: not root" >&2; fi
RUSTDOCFLAGS="-D warnings" step cargo doc --quiet --no-deps --document-private-items
if [ -n "${IMGFS_CORPUS:-}" ] && [ -s "$IMGFS_CORPUS/web-v1.tar" ]; then step ./scripts/demo.sh "$IMGFS_CORPUS"; else step ./scripts/demo.sh; fi
