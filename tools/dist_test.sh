#!/usr/bin/env bash
# Usage: dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# As dist_train.sh.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [arguments of test.py]" >&2
    exit 2
fi
export WSLD_TOOL=test.py
exec "$(dirname "${BASH_SOURCE[0]}")/dist_train.sh" "$1" "$3" "$2" "${@:4}"
