#!/usr/bin/env bash
# Runs a command as N processes of one program on this machine, as a cluster of N hosts would: for trying that out.
#
#   launch/local.sh 2 python -m d2v_jax.main --config=configs/quickstart.py --workdir=runs/two
#
# Each line of output says which process it is from. When one process fails, the others are stopped.
set -euo pipefail
if [[ $# -lt 2 ]] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local.sh NUMBER_OF_PROCESSES COMMAND [ARGUMENT ...]" >&2
  exit 2
fi
count=$1
shift
export D2V_DISTRIBUTED=1 JAX_NUM_PROCESSES=$count
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-localhost:$((20000 + RANDOM % 20000))}
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' INT TERM EXIT
for ((i = 0; i < count; i++)); do
  JAX_PROCESS_ID=$i "$@" > >(sed -u "s/^/[$i] /") 2>&1 &
  pids+=("$!")
done
status=0
for _ in "${pids[@]}"; do
  wait -n || { status=$?; break; }
done
exit "$status"
