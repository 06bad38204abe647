#!/usr/bin/env bash
# Looks for what the other scripts need, each tool by what is needed of it, says in a sentence each what is missing, and
# installs it. Usage: setup.sh [build] [test] [torture] [images] [bench] [judges]
# As root from Debian's packages, unless that would take others away; as another user it only says what is missing.
set -euo pipefail

declare -A package=(
  [cc]="gcc libc6-dev" [fusermount3]=fuse3 [curl]=curl
  [busybox]=busybox-static [rsync]=rsync [jq]=jq [vim]=vim [perl]=perl [python3]=python3 [wget]=wget
  [zstd]=zstd [lz4]=lz4 [bzip2]=bzip2 [xz]=xz-utils [gzip]=gzip [setfattr]=attr [getfattr]=attr [setfacl]=acl [chattr]=e2fsprogs
  [setpriv]=util-linux [mksquashfs]=squashfs-tools [qemu-img]=qemu-utils [mmdebstrap]=mmdebstrap [bc]=bc [file]=file [fallocate]=util-linux
  [git]=git [tar]=tar [cp]=coreutils [find]=findutils [mount]=mount [unshare]=util-linux [bash]=bash
  [faketime]=faketime [mkfs.ext4]=e2fsprogs [mkfs.xfs]=xfsprogs [losetup]=mount
  [lxd]=lxd [lxc]=lxd-client
  [borg]=borgbackup [casync]=casync [squashfuse_ll]=squashfuse [mkfs.erofs]=erofs-utils [restic]=restic [ostree]=ostree
)
build="cc fusermount3"
test="$build bash git tar cp find mount unshare busybox rsync jq vim perl python3 wget curl zstd lz4 bzip2 xz gzip setfattr setfacl setpriv chattr
  mksquashfs qemu-img"
torture="$test faketime getfattr mkfs.ext4 mkfs.xfs losetup"
images="mmdebstrap xz zstd"
bench="$build python3 mksquashfs squashfuse_ll mkfs.erofs borg casync restic ostree jq setfattr xz zstd gzip"
# Real clients that some tests ask; a test whose judge is missing says so, and is skipped.
judges="lxd lxc"

# What is needed of a tool beyond its name, and whether it can do that; asked in an empty directory.
declare -A needed=(
  [cc]="a C compiler that links programs" [bash]="bash 5 or newer"
  [tar]="GNU tar" [cp]="GNU coreutils" [find]="GNU find" [mount]="mount and umount of util-linux"
  [busybox]="a busybox that runs in a chroot, with cp, diff, gzip, ln, mv, rm, sed, sh, tar and wget"
  [python3]="Python 3.8 or newer, with bz2, ctypes, lzma, sqlite3 and zlib" [qemu-img]="a qemu-img that writes qcow2"
)
can_cc() { echo 'int main(void) { return 0; }' > a.c; cc a.c -o a && ./a; }
can_bash() { bash -c '((BASH_VERSINFO[0] >= 5))'; }
can_tar() { [[ $(tar --version) = *"GNU tar"* ]]; }
can_cp() { [[ $(cp --version) = *"GNU coreutils"* ]]; }
can_find() { [[ $(find --version) = *GNU* ]]; }
can_mount() { [[ $(mount --version) = *util-linux* && $(umount --version) = *util-linux* ]]; }
can_python3() { python3 -c 'import bz2, ctypes, lzma, sqlite3, sys, zlib; sys.exit(sys.version_info < (3, 8))'; }
can_qemu-img() { qemu-img create -q -f qcow2 a.qcow2 1M; }
can_busybox() {
  local applets applet program library
  applets=" $(busybox --list | tr '\n' ' ') "
  for applet in cp diff gzip ln mv rm sed sh tar wget; do [[ $applets = *" $applet "* ]]; done
  ((EUID == 0)) || return 0
  # One that is linked dynamically brings its libraries along.
  program=$(command -v busybox)
  for library in "$program" $(ldd "$program" | grep -o '/[^ ]*' || true); do
    mkdir -p "root/$(dirname "$library")"; cp -L "$library" "root/$library"
  done
  chroot root "$program" true
}

work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
can() { # TOOL: whether it is there, and does what is needed
  command -v "$1" > /dev/null || return 1
  [ -n "${needed[$1]:-}" ] || return 0
  rm -rf "$work/try"; mkdir "$work/try"
  (cd "$work/try"; set -e; "can_$1") > /dev/null 2>&1 # `set -e` holds only where nobody asks for the result
}
look() { # Sets `missing`, and says each of it in a sentence.
  local tool; missing=()
  for tool in $wanted; do
    set +e; can "$tool"; local found=$?; set -e
    ((found == 0)) && continue
    missing+=("$tool")
    if command -v "$tool" > /dev/null; then
      echo "missing: ${needed[$tool]} (Debian: ${package[$tool]}); $(command -v "$tool") is not one" >&2
    else
      echo "missing: ${needed[$tool]:-$tool} (Debian: ${package[$tool]})" >&2
    fi
  done
}

wanted=
for set in "${@:-build}"; do for tool in ${!set}; do case " $wanted " in *" $tool "*) ;; *) wanted+=" $tool" ;; esac; done; done
look
if ((${#missing[@]})); then
  packages=()
  for tool in "${missing[@]}"; do packages+=(${package[$tool]}); done
  if ((EUID != 0)) || ! command -v apt-get > /dev/null; then
    echo "setup.sh: install these packages, then run this again: ${packages[*]}" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq > /dev/null
  taken=$(apt-get install -s "${packages[@]}" | awk '$1 == "Remv" { print $2 }')
  if [ -n "$taken" ]; then
    echo "setup.sh: apt would take away" $taken "for ${packages[*]}: install these yourself, then run this again" >&2
    exit 1
  fi
  echo "installing ${packages[*]}" >&2
  apt-get install -y -qq "${packages[@]}" > /dev/null
  look
  ((${#missing[@]} == 0)) || exit 1
fi

if ! command -v cargo > /dev/null; then
  if [ -x "$HOME/.cargo/bin/cargo" ]; then
    echo "cargo is in ~/.cargo/bin: add that to your PATH" >&2
  else
    echo "missing: Rust 1.95 or newer (cargo): install it with rustup or from your distribution" >&2
  fi
  exit 1
fi
version=$(rustc --version | cut -d' ' -f2)
if [ "$(printf '%s\n' 1.95 "$version" | sort -V | head -1)" != 1.95 ]; then
  echo "missing: Rust 1.95 or newer; $(command -v rustc) is $version" >&2
  exit 1
fi
[ -e /dev/fuse ] || { echo "missing: /dev/fuse (the kernel module fuse)" >&2; exit 1; }
case " $* " in *" test "* | *" torture "*)
  # A bare root has none, and fusermount3 wants it for an ordinary user's mounts.
  if ! [ -e /etc/mtab ]; then
    ((EUID == 0)) && ln -s ../proc/self/mounts /etc/mtab ||
      { echo "missing: /etc/mtab, which fusermount3 reads: ln -s ../proc/self/mounts /etc/mtab" >&2; exit 1; }
    echo "made the link /etc/mtab, which fusermount3 reads" >&2
  fi
  cp "$(type -P true)" "$work/true"
  "$work/true" || { echo "missing: a temporary directory from which programs may be run; ${TMPDIR:-/tmp} is none (see TMPDIR)" >&2; exit 1; }
  if ((EUID == 0)); then
    mkdir "$work/point"
    mount -t tmpfs none "$work/point" || { echo "missing: the right to mount (a container needs CAP_SYS_ADMIN)" >&2; exit 1; }
    umount "$work/point"
  fi ;;
esac
