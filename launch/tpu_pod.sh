#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU pod slice that exists and has this repository, with its environment, in ~/d2v_jax.
#
#   TPU_NAME=my-pod ZONE=us-central2-b launch/tpu_pod.sh --config=configs/image_base.py --workdir=gs://bucket/run
#
# A pod runs one program: every worker needs the same command at the same time. Run it again to resume.
set -euo pipefail
: "${TPU_NAME:?set TPU_NAME to the name of the TPU VM}" "${ZONE:?set ZONE to its zone}"
printf -v arguments ' %q' "$@"
exec gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all \
  --command="cd ~/d2v_jax && D2V_DISTRIBUTED=1 .venv/bin/python -m d2v_jax.main$arguments"
