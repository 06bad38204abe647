#!/usr/bin/env bash
# Installs what the other scripts need and the machine lacks. Usage: setup.sh [build] [test] [torture] [images] [bench]
# As root from Debian's packages; as another user it says what is missing.
set -euo pipefail

declare -A package=(
  [cc]=gcc [fusermount3]=fuse3 [curl]=curl
  [busybox]=busybox-static [rsync]=rsync [jq]=jq [vim]=vim-tiny [perl]=perl [python3]=python3 [wget]=wget
  [zstd]=zstd [lz4]=lz4 [bzip2]=bzip2 [xz]=xz-utils [gzip]=gzip [setfattr]=attr [getfattr]=attr [setfacl]=acl [chattr]=e2fsprogs
  [setpriv]=util-linux [mksquashfs]=squashfs-tools [qemu-img]=qemu-utils [mmdebstrap]=mmdebstrap [bc]=bc [file]=file [fallocate]=util-linux
  [faketime]=faketime [mkfs.ext4]=e2fsprogs [mkfs.xfs]=xfsprogs [losetup]=mount
  [borg]=borgbackup [casync]=casync [squashfuse_ll]=squashfuse [mkfs.erofs]=erofs-utils [restic]=restic [ostree]=ostree
)
build="cc fusermount3"
test="$build busybox rsync jq vim perl python3 wget curl zstd lz4 bzip2 xz gzip setfattr setfacl setpriv mksquashfs qemu-img"
torture="$test faketime getfattr mkfs.ext4 mkfs.xfs losetup"
images="mmdebstrap xz zstd"
bench="$build python3 mksquashfs squashfuse_ll mkfs.erofs borg casync restic ostree jq setfattr xz zstd gzip"

wanted=
for set in "${@:-build}"; do wanted+=" ${!set}"; done
missing=()
for tool in $wanted; do command -v "$tool" > /dev/null || missing+=("${package[$tool]}"); done

if ((${#missing[@]})); then
  if ((EUID == 0)) && command -v apt-get > /dev/null; then
    echo "installing ${missing[*]}" >&2
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"; } > /dev/null
  else
    echo "missing: install the packages ${missing[*]} (Debian's names), then run this again" >&2
    exit 1
  fi
fi

if ! command -v cargo > /dev/null; then
  if [ -x "$HOME/.cargo/bin/cargo" ]; then
    echo "cargo is in ~/.cargo/bin: add that to your PATH" >&2
  else
    echo "missing: Rust 1.95 or newer (cargo): install it with rustup or from your distribution" >&2
  fi
  exit 1
fi
[ -e /dev/fuse ] || { echo "missing: /dev/fuse (the kernel module fuse)" >&2; exit 1; }
