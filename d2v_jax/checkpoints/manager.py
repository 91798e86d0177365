"""The one door to Orbax: saving and restoring train states, and weights alone.

A checkpoint is a directory named after its step with the items `params`, `teacher`, `optimizer` (its state and the step) and
`meta` (JSON: the config, what else the weights mean nothing without, as a tokenizer, the name, shape and dtype of every
array, and a fingerprint of all bits). Orbax writes it under a temporary name and renames it when it is complete, so what has
a step's name is whole unless something damaged it later; the fingerprint tells that.
"""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from d2v_jax.errors import InputError, RunError
from d2v_jax.train.state import TrainState

# Complete checkpoints that are kept besides the permanent ones: the newest may be damaged by what ended the run.
KEEP_LATEST = 2


class CheckpointManager:
  """The checkpoints of one run, in `workdir/checkpoints`. All processes call every method."""

  def __init__(
    self, workdir: str | os.PathLike, config: ConfigDict, keep_every: int = 0, assets: dict[str, object] | None = None
  ):
    """Opens the directory; leftovers of interrupted saves are removed.

    Args:
      workdir: of the run.
      config: of the run, saved with every checkpoint.
      keep_every: steps that are kept for good.
      assets: what else is saved with every checkpoint: name -> JSON value.
    """
    self.directory = _absolute(workdir) / 'checkpoints'
    self._config, self._assets = config, assets or {}
    self._manager = _orbax_manager(self.directory, KEEP_LATEST, keep_every or None)

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, wait: bool = False) -> None:
    """Saves in the background; waits for an earlier save first, and for this one too with `wait`.

    Raises:
      RunError: this save or an earlier one failed (disk full, ...). Complete checkpoints are untouched by it.
    """
    step = int(state.step)
    try:
      if step not in self.steps():
        self._manager.save(step, args=_save_args(_items(state), self._config, self._assets))
      if wait:
        self._manager.wait_until_finished()
    except Exception as error:
      raise RunError(self._save_failure(error)) from error

  def wait(self) -> None:
    """Returns when everything is on disk; raises RunError when it could not be written."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise RunError(self._save_failure(error)) from error

  def restore_latest(self, target: TrainState) -> TrainState | None:
    """Restores the newest checkpoint that is whole; damaged ones are reported and put aside under another name.

    Args:
      target: a state of jax.ShapeDtypeStruct with shardings: what is expected, and where it goes.

    Returns:
      The state, or None when there is no checkpoint.

    Raises:
      InputError: the arrays are others than expected, or every checkpoint is damaged.
    """
    damaged = []
    for step in reversed(self.steps()):
      try:
        state = self._restore(step, target)
      except InputError:
        raise
      except Exception as error:
        logging.warning(
          'Checkpoint %s is damaged (%s); trying the one before it', self.directory / str(step), _first_line(error)
        )
        damaged.append(step)
        continue
      for bad in damaged:
        self._put_aside(bad)
      return state
    if damaged:
      raise InputError(
        f'{self.directory}: all checkpoints ({damaged}) are damaged; restore a copy, or remove them to start anew'
      )
    return None

  def close(self) -> None:
    """Waits and closes."""
    self.wait()
    self._manager.close()

  def _restore(self, step, target):
    meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta']
    items = _items(target)
    _compare_arrays(self.directory / str(step), meta['arrays'], _describe(items))
    restored = self._manager.restore(step, args=_restore_args(items))
    restored = {name: restored[name] for name in items}
    _check_fingerprint(meta, restored)
    return TrainState(
      step=restored['optimizer']['step'],
      params=restored['params'],
      teacher=restored.get('teacher', {}),
      opt_state=restored['optimizer']['state'],
    )

  def _put_aside(self, step):
    if jax.process_index() == 0:
      aside = self.directory / f'damaged-{step}'
      shutil.rmtree(aside, ignore_errors=True)  # of an earlier time: the step was trained and damaged again
      os.replace(self.directory / str(step), aside)
    multihost_utils.sync_global_devices('put_aside')
    self._manager.reload()

  def _save_failure(self, error):
    complete = self.steps()
    newest = f'the newest complete one is step {complete[-1]}' if complete else 'there is no complete one'
    problem = f'{self.directory}: cannot save a checkpoint ({_first_line(error)})'
    return f'{problem}; {newest}. Make room or fix the path, then run again'


def save_weights(
  directory: str | os.PathLike, params: dict, teacher: dict | None, config: ConfigDict, assets: dict | None = None
) -> None:
  """Writes weights without optimiser state to an empty or new `directory`, as step 0 of a checkpoint directory.

  Raises:
    InputError: the directory holds something already.
    RunError: it cannot be written.
  """
  directory = _absolute(directory)
  if directory.exists() and any(directory.iterdir()):
    raise InputError(f'{directory}: is not empty; give a new folder for the converted weights')
  try:
    with _orbax_manager(directory, 1, None) as manager:
      items = {'params': params} | ({'teacher': teacher} if teacher else {})
      manager.save(0, args=_save_args(jax.tree.map(jnp.asarray, items), config, assets or {}))
      manager.wait_until_finished()
  except Exception as error:
    raise RunError(f'{directory}: cannot write the weights ({_first_line(error)})') from error


def load_weights(path: str | os.PathLike) -> tuple[dict, dict | None, ConfigDict]:
  """Reads student parameters, teacher parameters (None if the file has none) and config of a checkpoint of ours, as NumPy.

  `path` is a workdir, its `checkpoints` folder, one step in it, or a folder of converted weights.

  Raises:
    InputError: there is no checkpoint, or it is damaged.
  """
  step_directory, meta = _find_meta(path)
  try:
    shapes = _undescribe(meta['arrays'])
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
      items = {
        name: checkpointer.restore(step_directory / name, args=ocp.args.StandardRestore(shapes[name]))
        for name in ('params', 'teacher')
        if name in shapes
      }
    _check_fingerprint(meta, items)
  except Exception as error:
    raise InputError(f'{step_directory}: damaged checkpoint ({_first_line(error)}); use another step or a copy') from error
  items = jax.tree.map(np.asarray, items)
  return items['params'], items.get('teacher'), ConfigDict(meta['config'])


def load_meta(path: str | os.PathLike) -> tuple[ConfigDict, dict[str, object]]:
  """Reads the config and the assets of a checkpoint of ours, without its arrays; raises as `load_weights`."""
  _, meta = _find_meta(path)
  return ConfigDict(meta['config']), meta.get('assets', {})


def _find_meta(path):
  """The newest step directory at a path, and its meta."""
  step_directory = find_checkpoint(path)
  if step_directory is None:
    raise InputError(f'{path}: is no checkpoint of ours: expected a workdir, a checkpoints folder or one step of it')
  try:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
      return step_directory, checkpointer.restore(step_directory / 'meta')
  except Exception as error:
    raise InputError(f'{step_directory}: damaged checkpoint ({_first_line(error)}); use another step or a copy') from error


def find_checkpoint(path: str | os.PathLike) -> Path | None:
  """The newest step directory at, or one or two levels below, `path`; None when there is none."""
  path = _absolute(path)
  for candidate in (path, path / 'checkpoints'):
    if (candidate / 'meta').is_dir() and (candidate / 'params').is_dir():
      return candidate
    if candidate.is_dir():
      steps = sorted((int(entry.name) for entry in candidate.iterdir() if entry.name.isdigit()), reverse=True)
      if steps:
        return candidate / str(steps[0])
  return None


def _absolute(path):
  return Path(os.path.abspath(path))


def _orbax_manager(directory, keep_latest, keep_every):
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep_latest,
    keep_period=keep_every,
    create=True,
    cleanup_tmp_directories=True,
    enable_async_checkpointing=True,
  )
  return ocp.CheckpointManager(directory, options=options)


def _items(state):
  return {
    'params': state.params,
    'optimizer': {'state': state.opt_state, 'step': state.step},
    **({'teacher': state.teacher} if state.teacher else {}),
  }


def _save_args(items, config, assets):
  meta = {
    'config': json.loads(config.to_json_best_effort()),
    'assets': assets,
    'arrays': _describe(items),
    'fingerprint': {name: int(value) for name, value in _fingerprints(items).items()},
  }
  arguments = {name: ocp.args.StandardSave(item) for name, item in items.items()}
  return ocp.args.Composite(meta=ocp.args.JsonSave(meta), **arguments)


def _restore_args(items):
  return ocp.args.Composite(**{name: ocp.args.StandardRestore(item) for name, item in items.items()})


def _describe(items) -> dict[str, list]:
  leaves = jax.tree_util.tree_flatten_with_path(items)[0]
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  return {name(path): [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves}


def _undescribe(arrays) -> dict:
  """The nested dicts of array shapes that `_describe` flattened (for `params` and `teacher`, which are nested dicts)."""
  tree = {}
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  for name, (shape, dtype) in arrays.items():
    *parents, leaf = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=device)
  return tree


def _compare_arrays(path, found, expected):
  """Orbax casts dtypes silently and fills in what it misses: names, shapes and dtypes are compared before."""
  for name in sorted(found.keys() | expected.keys()):
    if found.get(name) != expected.get(name):
      show = lambda entry: f'{entry[1]}{entry[0]}' if entry else 'nothing'
      raise InputError(
        f'{path}: {name} is {show(found.get(name))} in the checkpoint, {show(expected.get(name))} in this config; '
        'use the config the run was started with, or another --workdir'
      )


@jax.jit
def _fingerprints(items):
  """Per item a 32-bit sum over all bits, which does not depend on how arrays are spread over devices."""

  def of(leaf):
    bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    return jnp.sum(bits, dtype=jnp.uint32)

  def combine(item):
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(item):
      total = total * jnp.uint32(31) + of(leaf)
    return total

  return {name: combine(item) for name, item in items.items()}


def _check_fingerprint(meta, items):
  for name, value in _fingerprints(items).items():
    if int(value) != meta['fingerprint'][name]:
      raise ValueError(f'the bits of `{name}` are not those that were saved')


def _first_line(error):
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
