"""Weights of any format that can be read, by path: `config.init_from` and `d2v_jax.load` come here."""

from pathlib import Path

import jax
from absl import logging

from d2v_jax.checkpoints import fairseq, manager
from d2v_jax.errors import InputError
from d2v_jax.methods.teacher import copy


def read(path) -> tuple[dict, dict | None, object]:
  """Reads (student parameters, teacher parameters or None, config) from a checkpoint of ours or a fairseq `.pt` file.

  Raises:
    InputError: there is nothing at the path, or nothing that can be read.
  """
  path = Path(path)
  if not path.exists():
    raise InputError(f'{path}: does not exist; give a checkpoint folder of ours or a .pt file')
  if path.is_file():
    found = fairseq.import_checkpoint(path)
    return found.params, found.teacher, found.config
  return manager.load_weights(path)


def matching(path, params: dict, teacher: dict) -> tuple[dict, dict]:
  """Reads weights to train or evaluate: (params, teacher) with the names and shapes of those given.

  A file without teacher gives a teacher that copies the student.

  Raises:
    InputError: an array is missing, too many or of another shape.
  """
  found, found_teacher, _ = read(path)
  _check(path, found, params)
  if found_teacher is None:
    logging.info("%s has no teacher; the student's weights are taken", path)
    found_teacher = {name: found[name] for name in teacher}
  _check(path, found_teacher, teacher)
  return copy(found), copy(found_teacher)


def _check(path, found, expected):
  shapes = lambda tree: {
    jax.tree_util.keystr(key, simple=True, separator='/'): leaf.shape for key, leaf in jax.tree.leaves_with_path(tree)
  }
  found, expected = shapes(found), shapes(expected)
  for name in sorted(found.keys() | expected.keys()):
    if found.get(name) != expected.get(name):
      raise InputError(
        f'{path}: {name} is {found.get(name, "missing")} there, {expected.get(name, "not used")} in this config; '
        'use the model settings of the checkpoint'
      )
