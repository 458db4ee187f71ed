#!/usr/bin/env bash
# Usage: dist_train.sh CONFIG GPUS [arguments of train.py]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as torchrun
# takes them. Without GPUs, GPUS processes train on the CPU. With MAX_RESTARTS=N
# torchrun starts all processes again when one has died, up to N times, and
# the training goes on after its last checkpoint.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [arguments of train.py]" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
if [ -z "${PORT:-}" ]; then
    # Machines must agree on a port; one machine can take any free one, so
    # that two runs on it do not meet.
    PORT=29500
    if [ "$NNODES" = 1 ]; then
        PORT=$("$PYTHON" -c 'import socket; s = socket.socket(); \
s.bind(("", 0)); print(s.getsockname()[1])')
    fi
fi

MEETING=(--node_rank="$NODE_RANK" --master_addr="$MASTER_ADDR"
    --master_port="$PORT")
if [ "${MAX_RESTARTS:-0}" != 0 ]; then
    MEETING=(--max_restarts="$MAX_RESTARTS" --rdzv_backend=c10d
        --rdzv_endpoint="$MASTER_ADDR:$PORT" --rdzv_id="$PORT")
    # The store that torchrun shares still knows the dead (torch 2.14).
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    # Checkpoints that are older are of another training.
    WSLD_LAUNCHED=$(date +%s)
    export WSLD_LAUNCHED
fi

export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m torch.distributed.run \
    --nnodes="$NNODES" \
    "${MEETING[@]}" \
    --nproc_per_node="$GPUS" \
    "$TOOLS/train.py" "$CONFIG" --launcher pytorch "${@:3}"
