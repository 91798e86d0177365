"""Several processes as one program: JAX's multi-controller runtime."""

import os

import jax

from d2v_jax.parallel.host_memory import keep_freed_memory


def initialize() -> None:
  """Prepares this process; call it before any computation.

  It joins the other processes where the launch script says that there are any (`D2V_DISTRIBUTED=1`).
  On Cloud TPU pods and under SLURM JAX finds them by itself; elsewhere the script sets JAX_COORDINATOR_ADDRESS,
  JAX_NUM_PROCESSES and JAX_PROCESS_ID.
  """
  if os.environ.get('D2V_DISTRIBUTED') == '1':
    count, index = os.environ.get('JAX_NUM_PROCESSES'), os.environ.get('JAX_PROCESS_ID')
    jax.distributed.initialize(num_processes=int(count) if count else None, process_id=int(index) if index else None)
  if jax.default_backend() == 'cpu':
    keep_freed_memory()
