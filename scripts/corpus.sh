#!/usr/bin/env bash
# Builds real Debian images to test and measure with, from Debian's packages (root, a few minutes).
# Usage: corpus.sh DIR [NAME...]; names: web-v0 web-v1 web-v2 web-v3 trixie-v0 dev-v0 (all by default).
# Four versions of one image as a distribution ships them, a second release, a big developer image.
set -euo pipefail
dir=${1:?usage: corpus.sh DIR [NAME...]}; shift
here=$(cd "$(dirname "$0")" && pwd)
"$here/setup.sh" images
mkdir -p "$dir"; cd "$dir"

uri() { # PATTERN: the first mirror that apt is set up with
  { grep -hE '^URIs:' /etc/apt/sources.list.d/*.sources; grep -hE '^deb ' /etc/apt/sources.list; } 2> /dev/null |
    grep -oE 'https?://[^ ]+' | grep -E "$1" | head -1 || true
}
main_uri=$(uri '/debian/?$'); security_uri=$(uri 'debian-security/?$')
[ -n "$main_uri" ] && [ -n "$security_uri" ] || { echo "corpus.sh: apt is set up with no Debian mirror" >&2; exit 1; }
main="deb $main_uri bookworm main"
updates=("$main" "deb $main_uri bookworm-updates main" "deb $security_uri bookworm-security main")
web=nginx-light,ca-certificates,curl,openssl
dev=build-essential,python3-dev,git,cmake,linux-headers-amd64,golang,default-jdk-headless
export SOURCE_DATE_EPOCH=1700000000

make() { # NAME SUITE PACKAGES SOURCE...
  local out=$1.tar suite=$2 packages=$3; shift 3
  [ -s "$out" ] && return
  mmdebstrap --quiet --variant=minbase --mode=root ${packages:+--include=$packages} --format=tar "$suite" "$out.part" "$@"
  mv "$out.part" "$out"
  ls -l "$out"
}

for name in "${@:-web-v0 web-v1 web-v2 web-v3 trixie-v0 dev-v0}"; do for name in $name; do
  case $name in
    web-v0) make web-v0 bookworm "" "$main" ;;
    web-v1) make web-v1 bookworm "" "${updates[@]}" ;;
    web-v2) make web-v2 bookworm "$web" "${updates[@]}" ;;
    web-v3) make web-v3 bookworm "$web,postgresql,python3" "${updates[@]}" ;;
    trixie-v0) make trixie-v0 trixie "" "deb $main_uri trixie main" ;;
    dev-v0) make dev-v0 bookworm "$dev" "${updates[@]}" ;;
    *) echo "no such image: $name" >&2; exit 2 ;;
  esac
done; done
