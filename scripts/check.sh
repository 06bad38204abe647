#!/usr/bin/env bash
# What CI runs, in three stages: quick (format, lints as errors, licences, units, documents; under 3 minutes once compiled),
# mounts (all other tests, the README's session), torture. Says what it skips and why. A step that fails keeps no other from
# running; the end names the time of each stage and step, and the tests that failed.
# Usage: check.sh [quick|mounts|torture]...: those stages alone.
set -euo pipefail
for wanted in "$@"; do
  case $wanted in quick | mounts | torture) ;; *) echo "check.sh: there is no stage $wanted: quick, mounts, torture" >&2; exit 2 ;; esac
done
wanted=${*:-quick mounts torture}
cd "$(dirname "$0")/.."
./scripts/setup.sh build test
# The scripts of the tests have paths unquoted.
case ${TMPDIR:-/tmp} in *[[:space:]]*) echo "TMPDIR has a blank: the tests use /tmp" >&2; export TMPDIR=/tmp ;; esac
# All mounts of this run are below a directory of its own, so that none of another run is touched.
TMPDIR=$(mktemp -d); export TMPDIR
chmod 755 "$TMPDIR"
notes=$(mktemp -d)
cleanup() { # Mounts of tests that failed in the middle.
  local points=() point _
  while read -r _ point _; do
    point=$(printf %b "${point//\\/\\0}") # a blank is \040 there
    case $point in "$TMPDIR"/*) points=("$point" "${points[@]}") ;; esac
  done < /proc/self/mounts
  for point in "${points[@]}"; do umount -l "$point" || fusermount3 -uz "$point" || true; done
  rm -rf "$TMPDIR" "$notes"
}
trap cleanup EXIT

stages=() steps=() all_ok=true stage= stage_begun=0
stage() { # [NAME]: ends the stage before, and begins another
  [ -z "$stage" ] || stages+=("$(printf '%-12s %7d' "$stage" $((SECONDS - stage_begun)))" "${steps[@]}")
  stage=${1:-} stage_begun=$SECONDS steps=()
}
note() { # NAME SECONDS RESULT
  steps+=("$(printf '  %-10s %7s  %s' "$1" "$2" "$3")")
}
step() { # NAME COMMAND...: runs it, and notes how long it took and whether it failed
  local name=$1 begun=$SECONDS result=ok; shift
  echo "== $name: $*" >&2
  "$@" 2>&1 | tee "$notes/$name" || result=failed all_ok=false
  note "$name" $((SECONDS - begun)) $result
  [ $result = ok ]
}
skip() { # NAME WHY
  echo "skipped: $1: $2" >&2
  note "$1" - "skipped: $2"
}
failing() { # The tests that a step's output says failed, and the files that did not come to their end.
  awk -v step="$1" '/^ *Running / { file = $2 == "unittests" ? $3 : $2 }
    match($0, /^test .* \.\.\. FAILED/) { print step ": " file ": " substr($0, 6, RLENGTH - 16) }
    /^    `-/ { print step ": " $0 }' "$notes/$1"
}

# Tests that mount nothing and take seconds; then the others.
quick_tests=(--test=layers --test=documents)
mounts_tests=(--test=gc_model --test=hostile --test=mounts)

quick() {
  # cargo fmt finds no file whose `mod` a macro writes (fs/places).
  step fmt bash -c "git ls-files '*.rs' | xargs rustfmt --check" || true
  step clippy cargo clippy --quiet --all-targets -- -D warnings || true
  step licences ./scripts/licences.sh || true
  step units cargo test --no-fail-fast --lib --bins "${quick_tests[@]}" || true
  RUSTDOCFLAGS="-D warnings" step docs cargo doc --quiet --no-deps --document-private-items || true
  step doctests cargo test --quiet --doc || true
}

mounts() {
  if ((EUID == 0)); then
    # Real Debian images for the tests that compare with GNU tar; without a mirror those tests say that they skip.
    export IMGFS_CORPUS=${IMGFS_CORPUS:-${XDG_CACHE_HOME:-$HOME/.cache}/imgfs-corpus}
    ./scripts/corpus.sh "$IMGFS_CORPUS" web-v0 web-v1 || echo "skipped: the Debian images (no mirror?)" >&2
  else
    echo "skipped: the Debian images, and tests as several users: not root" >&2
  fi
  if step compile cargo test --quiet --no-run; then
    step tests cargo test --no-fail-fast "${mounts_tests[@]}" -- --test-threads=2 || true
    if ((EUID == 0)); then
      # For root trees are mounts of their own; here are those tests once more, without, in which a tree is walked, deleted
      # or shared. The rest reads no more of a tree than these, and all of them twice would take half an hour.
      local files=(gestures semantics traces trees views staging kept users fidelity)
      IMGFS_TEST_TREES=inline step inline cargo test --test mounts -- --test-threads=2 "${files[@]/%/::}" || true
    else
      skip inline "not root: the tests above had no others"
    fi
  else
    skip tests "they do not compile"; skip inline "they do not compile"
  fi
  local corpus=
  if [ -n "${IMGFS_CORPUS:-}" ] && [ -s "$IMGFS_CORPUS/web-v1.tar" ]; then corpus=$IMGFS_CORPUS; fi
  step demo ./scripts/demo.sh ${corpus:+"$corpus"} || true
}

torture() {
  if ((EUID == 0)); then step torture ./scripts/torture.sh short || true; else skip torture "not root"; fi
}

for name in $wanted; do stage "$name"; "$name"; done
stage

printf '\n%-12s %7s  %s\n' step seconds result
printf '%s\n' "${stages[@]}"
if ! $all_ok; then
  for step in units tests inline torture; do [ ! -e "$notes/$step" ] || failing $step; done
  exit 1
fi
