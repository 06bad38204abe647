#!/usr/bin/env bash
# Measures imgfs against tar and ext4 (or whatever TMPDIR is on), in turns, and prints medians and ratios as Markdown.
# Usage: bench.sh [CORPUS-DIR] [ROUNDS]. Root. Builds the images if they are not there.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
corpus=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/imgfs-corpus} rounds=${2:-5}
"$here/scripts/corpus.sh" "$corpus" web-v0 web-v1 web-v2 web-v3
cd "$corpus"
[ -s web-v3.tar.xz ] || xz -T2 -2 -k web-v3.tar
[ -s web-v3.tar.zst ] || zstd -q -3 -k web-v3.tar
cargo build --release --quiet --manifest-path "$here/Cargo.toml"
imgfs=${CARGO_TARGET_DIR:-$here/target}/release/imgfs
work=$(mktemp -d); images=$work/images; store=$work/store; mkdir "$images"
trap '"$imgfs" umount --lazy "$images" 2> /dev/null || true; rm -rf "$work"' EXIT
"$imgfs" mount --store "$store" -o trash=0 "$images" > /dev/null
daemon=$(head -1 "$store/lock")

now() { date +%s.%N; }
run() { # NAME COMMAND...: adds the seconds it takes to the samples of NAME
  local name=$1 begin; shift
  begin=$(now); "$@" > /dev/null; awk -v a="$begin" -v b="$(now)" 'BEGIN { printf "%.4f\n", b - a }' >> "$work/s-$name"
}
median() { sort -n "$work/s-$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
peak() { awk '/VmHWM/ { print int($2 / 1024) }' "/proc/$daemon/status"; }
row() { # TEXT A B: two names and their ratio
  awk -v t="$1" -v a="$(median "$2")" -v b="$(median "$3")" 'BEGIN { printf "| %s | %.2f s | %.2f s | %.2f |\n", t, a, b, a / b }'
}
empty() { # deletes all images and gives the space back
  mkdir "$images/none"; ln -sfn none "$images/default"
  for image in "$images"/*/; do [ "$(basename "$image")" = none ] || rmdir "$images/$(basename "$image")" 2> /dev/null || true; done
  rmdir "$images/none"; "$imgfs" gc --trash --store "$store" > /dev/null
}
extract() { mkdir "$work/x"; tar xf "$1" -C "$work/x"; sync -f "$work/x"; }
walk() { find "$1" -ls; }
pack() { tar c -C "$1" . | cat; }

for _ in $(seq "$rounds"); do
  cat web-v*.tar web-v3.tar.* > /dev/null; sync
  run extract extract web-v3.tar; rm -rf "$work/x"; sync
  run first cp web-v3.tar "$images/web.tar"
  run same cp web-v3.tar "$images/web.tar"
  run other cp web-v2.tar "$images/web.tar"
  run shared cp web-v3.tar "$images/web.tar"
  empty; sync
  run xzdc xz -T2 -dc web-v3.tar.xz
  run xz cp web-v3.tar.xz "$images/x.tar.xz"
  run zstddc zstd -qdc web-v3.tar.zst
  run zstd cp web-v3.tar.zst "$images/z.tar.zst"
  empty; sync
done
memory=$(peak)

cp web-v0.tar "$images/web.tar"; cp web-v3.tar "$images/web/"; tree=$images/web/1/rootfs; extract web-v3.tar
for _ in 1 2; do walk "$tree" > /dev/null; pack "$tree" > /dev/null; pack "$work/x" > /dev/null; done
for _ in $(seq "$rounds"); do
  run find walk "$tree"; run find-ext4 walk "$work/x"
  run tar pack "$tree"; run tar-ext4 pack "$work/x"
  run rootfs cat "$images/web/1/rootfs.tar"; run rootfs-ext4 cat web-v3.tar
done
( while :; do :; done ) & busy=$!
for _ in $(seq "$rounds"); do
  run find-busy walk "$tree"; run find-ext4-busy walk "$work/x"
  run tar-busy pack "$tree"; run tar-ext4-busy pack "$work/x"
done
kill "$busy"
for n in $(seq 20); do cp web-v1.tar "$images/web/"; cp web-v0.tar "$images/web/"; done
for n in $(seq 2 40); do [ -d "$images/web/$n" ] && run rmdir rmdir "$images/web/$n"; [ "$(ls -d "$images"/web/[0-9]* | wc -l)" -gt 3 ] || break; done
sleep 11

echo "| web-v3.tar (533 MB), warm page cache | imgfs | against | ratio |"
echo "|---|---|---|---|"
row "cp, first version; \`tar xf\` and sync" first extract
row "cp, most content known; the first version" shared first
row "cp, the same again; the first version" same first
row "cp of .tar.xz; \`xz -T2 -dc\`" xz xzdc
row "cp of .tar.zst; \`zstd -dc\`" zstd zstddc
row "\`find -ls\`, warm; ext4" find find-ext4
row "\`tar c \\| cat\`, warm; ext4" tar tar-ext4
row "\`find -ls\`, a CPU busy; ext4" find-busy find-ext4-busy
row "\`tar c \\| cat\`, a CPU busy; ext4" tar-busy tar-ext4-busy
row "\`cat rootfs.tar\`, warm; the file on ext4" rootfs rootfs-ext4
echo
echo "\`rmdir\` of a version: median $(median rmdir) s, slowest $(sort -n "$work/s-rmdir" | tail -1) s of $(wc -l < "$work/s-rmdir") (with the process)."
echo "Daemon: $memory MiB at peak during ingest, $(awk '/VmRSS/ { print int($2 / 1024) }' "/proc/$daemon/status") MiB idle afterwards."
echo "Disk: $(du -sm "$store" | cut -f1) MB for web-v0 and web-v3 and a few versions that share their content."
