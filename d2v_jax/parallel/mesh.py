"""Devices as a mesh, and where each array lives on it: one program for one device and for many."""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from d2v_jax.errors import InputError

# Arrays with fewer elements are not worth splitting.
SMALLEST_SPLIT = 2**14


def build(config, devices=None) -> Mesh:
  """A mesh with the axes `data` and `fsdp` of config.mesh; -1 takes all devices that remain.

  Raises:
    InputError: the axes do not multiply to the number of devices, or the batch does not divide.
  """
  devices = jax.devices() if devices is None else devices
  sizes = dict(config.mesh)
  if any(size != -1 and size < 1 for size in sizes.values()):
    raise InputError(f'config.mesh: found {sizes}; each axis is 1 or more, or -1 for all devices that remain')
  fixed = math.prod(size for size in sizes.values() if size != -1)
  sizes = {name: len(devices) // fixed if size == -1 else size for name, size in sizes.items()}
  if math.prod(sizes.values()) != len(devices):
    raise InputError(
      f'config.mesh: {dict(config.mesh)} does not multiply to the {len(devices)} devices there are; '
      'set one axis to -1 and the other to a divisor'
    )
  parts = config.accumulate_steps * len(devices)
  # Batches of speech have different sizes, all multiples of this field.
  name = 'data.rows_multiple' if 'rows_multiple' in config.data else 'batch_size'
  if (rows := config.data.get('rows_multiple', config.batch_size)) % parts:
    raise InputError(
      f'config.{name}: {rows} is not divisible by {len(devices)} devices x {config.accumulate_steps} '
      f'accumulated micro-batches; use a multiple of {parts}'
    )
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over all devices."""
  return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, shapes):
  """Shardings for a state of `shapes`: large arrays split over `fsdp` along their last axis that divides, the rest whole."""
  size = mesh.shape['fsdp']

  def sharding(leaf):
    spec = [None] * leaf.ndim
    if size > 1 and leaf.size >= SMALLEST_SPLIT:
      axis = next((axis for axis in reversed(range(leaf.ndim)) if leaf.shape[axis] % size == 0), None)
      if axis is not None:
        spec[axis] = 'fsdp'
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(sharding, shapes)


def global_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """This process's rows of a batch as one global array per entry, split over all devices."""
  sharding = batch_sharding(mesh)
  return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
