"""Finding things in the directory a user named, and saying so in one line when they are not there."""

import os
from pathlib import Path

from d2v_jax.errors import InputError

# What the two parts are called on disk, best first. `val` comes before `test` because a published test part often has
# no labels (ImageNet's, for one).
SPLIT_NAMES = {'train': ('train', 'training'), 'test': ('val', 'valid', 'validation', 'test', 'testing')}


def directory(kind: str, place: str) -> Path:
  """Returns the existing directory that `kind:place` names; `~` is expanded. Raises InputError."""
  path = Path(place).expanduser()
  if not path.exists():
    raise InputError(f'config.data.source: {kind}:{place}: {path.absolute()} does not exist')
  if not path.is_dir():
    raise InputError(f'config.data.source: {kind}:{place}: {path.absolute()} is not a directory')
  return path


def no_test_part(found: str) -> InputError:
  """The error for a data set without a test part, where an evaluation asks for one."""
  return InputError(
    f'config.data.source: {found} has no test part to evaluate on; set config.data.holdout=0.1 to hold out a tenth of the'
    ' training part, or config.eval_every=0 for no evaluation'
  )


def walk(root: Path, recurse: bool = True):
  """Yields the files below `root`, relative to it and as bytes: names need not be valid text. Hidden ones are left out.

  Links are followed, but no directory is entered twice.
  """
  pending, seen = [b''], {os.path.realpath(os.fsencode(root))}
  while pending:
    below = pending.pop()
    with os.scandir(os.path.join(os.fsencode(root), below)) as entries:
      for entry in entries:
        if entry.name.startswith(b'.'):
          continue
        path = os.path.join(below, entry.name)
        if entry.is_dir():
          real = os.path.realpath(entry.path)
          if recurse and real not in seen:
            seen.add(real)
            pending.append(path)
        else:
          yield path
