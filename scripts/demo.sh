#!/usr/bin/env bash
# The README's session on a throw-away store; stops at the first thing that is not as said.
# Usage: demo.sh [DIR-WITH-web-v0.tar-AND-web-v1.tar]; without it, they are built (root) or made from /etc and /usr/bin.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d); images=$work/images
trap 'code=$?; imgfs umount --lazy "$images" 2> /dev/null || true; rm -rf "$work"; [ $code = 0 ] || echo "demo: FAILED" >&2; exit $code' EXIT

if [ -n "${1:-}" ]; then
  corpus=$(cd "$1" && pwd)
elif corpus=${XDG_CACHE_HOME:-$HOME/.cache}/imgfs-corpus && ((EUID == 0)) && "$here/scripts/corpus.sh" "$corpus" web-v0 web-v1; then
  :
else
  corpus=$work/corpus; mkdir -p "$corpus"
  tar -C / -cf "$corpus/web-v0.tar" --ignore-failed-read etc usr/bin 2> /dev/null || true
  tar -C / -cf "$corpus/web-v1.tar" --ignore-failed-read --exclude=etc/hostname etc usr/bin 2> /dev/null || true
fi
cd "$work"
xz -T0 -1 -c "$corpus/web-v0.tar" > web-v0.tar.xz
ln -s "$corpus/web-v1.tar" web-v1.tar
export PATH=$work/bin:$PATH
mkdir -p bin "$images"
cargo build --release --quiet --manifest-path "$here/Cargo.toml"
cp "${CARGO_TARGET_DIR:-$here/target}/release/imgfs" bin/

step() { # TEXT COMMAND: shows a command, runs it, fails with it
  echo "\$ $1"
  bash -euo pipefail -c "${2:-$1}"
}
expect() { # WHAT GOT WANTED
  [ "$2" = "$3" ] || { echo "demo: $1 is '$2', not '$3'" >&2; exit 1; }
}
export images
step "imgfs mount --store $work/store \$images"
step 'cp web-v0.tar.xz $images/web.tar.xz'
step 'ls -l $images/web/0/rootfs/etc' 'ls -l $images/web/0/rootfs/etc | head -4'
step 'cat $images/web/0/metadata.json'
expect status "$(sed -n 's/.*"status": "\(.*\)",/\1/p' "$images/web/metadata.json" | head -1)" active
step 'cp web-v1.tar $images/web/'
step 'ls -l $images/web'
expect latest "$(readlink "$images/web/latest")" 1
expect default "$(readlink "$images/web/default")" latest
step 'diff -r $images/web/0/rootfs/etc $images/web/1/rootfs/etc' 'diff -r --no-dereference $images/web/0/rootfs/etc $images/web/1/rootfs/etc | head -5 || true'
step 'cmp web-v1.tar $images/web/1/rootfs.tar'
if ((EUID == 0)); then
  step 'mkdir somewhere; tar xf $images/web/1/rootfs.tar -C somewhere'
  step 'diff -r --no-dereference somewhere $images/web/1/rootfs' 'diff -r --no-dereference somewhere $images/web/1/rootfs 2>&1 | grep -v "special file" || true; test -d somewhere/etc'
fi
step 'ln -sfn 0 $images/web/default'
expect 'the pinned default' "$(readlink "$images/web/default")" 0
step 'ln -s web $images/prod; ln -sfn web $images/default'
expect 'the alias' "$(readlink "$images/prod")" web
step 'rmdir $images/web/1; rm -r $images/web'
expect 'what is left' "$(ls "$images")" ""
step 'mv $images/.imgfs/trash/web $images/'
expect 'what came back' "$(readlink "$images/prod") $(ls "$images/web" | head -1)" "web 0"
step 'imgfs umount $images'
step "imgfs fsck --store $work/store"
echo "demo: all as said"
