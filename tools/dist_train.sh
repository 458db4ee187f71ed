#!/usr/bin/env bash
# Usage: dist_train.sh CONFIG GPUS [arguments of train.py]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as torchrun
# takes them. Without GPUs, GPUS processes train on the CPU.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [arguments of train.py]" >&2
    exit 2
fi
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# One machine takes any free port, so that two runs on it do not meet.
WHERE=(--standalone)
if [ "${NNODES:-1}" != 1 ]; then
    WHERE=(--nnodes="$NNODES" --node_rank="${NODE_RANK:-0}"
        --master_addr="${MASTER_ADDR:-127.0.0.1}"
        --master_port="${PORT:-29500}")
fi
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run "${WHERE[@]}" \
    --nproc_per_node="$2" "$TOOLS/${WSLD_TOOL:-train.py}" "$1" \
    --launcher pytorch "${@:3}"
