#!/usr/bin/env bash
# Installs what is missing and passes all tests; what CI runs.
set -euo pipefail
exec "$(dirname "$0")/check.sh"
