"""The folder of a run: writable, of this config and no other."""

import contextlib
import errno
import json
import os
from pathlib import Path

import jax

from d2v_jax import config as configs
from d2v_jax.errors import InputError
from d2v_jax.report.writers import write_atomically

# Fields that may change when a run resumes: they change no number of the training. (The tokenizer is compared with that of
# the checkpoint, see `weights.with_assets`.)
FREE_FIELDS = ('log_every', 'eval_every', 'checkpoint_every', 'checkpoint_keep_every', 'pictures', 'remat')
FREE_SECTIONS = ('mesh', 'eval', 'health', 'data.workers', 'data.prefetch', 'data.max_unreadable', 'data.tfds_dir')
FREE_SECTIONS += ('data.tokenizer', 'data.cache')


def open_workdir(path: str | os.PathLike, config) -> Path:
  """Creates the folder, compares config.json in it with `config` where there is one, and writes it.

  Raises:
    InputError: the folder cannot be written, or belongs to a run with another config.
  """
  path = make_folder(path)
  _compare(path / 'config.json', config)
  if jax.process_index() == 0:
    text = json.dumps(configs.to_dict(config), indent=2) + '\n'
    with _naming_workdir(path):
      write_atomically(path / 'config.json', text.encode())
  return path


def make_folder(path: str | os.PathLike) -> Path:
  """Creates the folder where it is missing; raises InputError when it cannot be written."""
  path = Path(path)
  with _naming_workdir(path):
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
  return path


@contextlib.contextmanager
def _naming_workdir(path):
  try:
    yield
  except OSError as error:
    raise InputError(f'--workdir: cannot write {path} ({error.strerror}); give a folder that you may write') from error


def _compare(file, config):
  if not file.exists():
    return
  try:
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
      raise ValueError
  except ValueError:
    raise InputError(f'{file}: is not the JSON of a config; restore it, or give a new --workdir') from None
  found = configs.differences(found, configs.to_dict(config))
  for name, (old, new) in sorted(found.items(), key=lambda item: item[0] not in ('config.task', 'config.modality')):
    field = name.removeprefix('config.')
    if field not in FREE_FIELDS and not field.startswith(FREE_SECTIONS):
      raise InputError(
        f'--workdir: {file.parent} holds a run with {name}={old}, now {new}; use that value or a new --workdir'
      )
