#!/usr/bin/env bash
# Installs what is missing, builds imgfs, puts it in the PATH and mounts the default store.
# Usage: mount.sh MNT [OPTIONS of imgfs mount...]
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 MNT [OPTIONS of imgfs mount...]" >&2; exit 2; }
point=$1; shift
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$point"

"$here/scripts/setup.sh" build
[ -e "${CARGO_TARGET_DIR:-$here/target}/release/imgfs" ] || echo "building imgfs, which takes some minutes the first time" >&2
cargo build --release --quiet --manifest-path "$here/Cargo.toml"
program=${CARGO_TARGET_DIR:-$here/target}/release/imgfs

# The program, its man pages and completions, and the name that mount(8) and fstab look for.
if ((EUID == 0)); then prefix=/usr/local; else prefix=$HOME/.local; fi
mkdir -p "$prefix/bin" "$prefix/share/bash-completion/completions"
install -m 755 "$program" "$prefix/bin/imgfs"
for page in imgfs.1 imgfs.7 imgfs-mount.8; do
  section=${page##*.}
  mkdir -p "$prefix/share/man/man$section"
  "$program" man "$section" > "$prefix/share/man/man$section/$page"
done
"$program" completions bash > "$prefix/share/bash-completion/completions/imgfs"
if ((EUID == 0)); then for name in mount umount; do ln -sfn "$prefix/bin/imgfs" /sbin/$name.fuse.imgfs; done; fi
case :$PATH: in *:"$prefix/bin":*) ;; *) echo "add $prefix/bin to your PATH to call imgfs by its name" >&2 ;; esac

exec "$prefix/bin/imgfs" mount "$@" "$point"
