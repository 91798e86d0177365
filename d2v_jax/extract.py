"""`python -m d2v_jax.extract --checkpoint=PATH --input=FILE_OR_DIR --output=FILE.npz`: features of the user's own files.

The file holds `files` (names below the input), `features` (float32 [files, tokens, width]: patches row by row; with
`--pool=mean` their mean, [files, width]) and `grid` (rows and columns of patches). Unreadable files are named and left out.
"""

import os
from pathlib import Path

import numpy as np
from absl import flags, logging

from d2v_jax import cli
from d2v_jax.errors import InputError, RunError

_BATCH = 64


def extract(checkpoint: str, source: str, output: str, pool: str = 'none') -> None:
  """Writes the features of one image file, or of all below a directory, to an `.npz` file; see the module's docstring.

  Raises:
    InputError: the checkpoint or the input cannot be read.
    RunError: the output cannot be written.
  """
  from d2v_jax.data.image_folder import open_files
  from d2v_jax.data.loader import eval_batches
  from d2v_jax.model import load
  from d2v_jax.report.progress import reported

  if not Path(source).exists():
    raise InputError(f'--input: {source} does not exist; give an image file or a folder of them')
  if not Path(output).absolute().parent.is_dir():
    raise InputError(f'--output: the folder of {output} does not exist; create it, or give another place')
  model = load(checkpoint)
  images = open_files(Path(source))
  model.config.data.max_unreadable = len(images)  # as many as there are: each is named
  features, kept = [], []
  batches = eval_batches(model.config, images, np.arange(len(images)), min(_BATCH, len(images)))
  try:
    for number, batch in enumerate(reported(batches, -(-len(images) // _BATCH), 'batches of features')):
      found = np.asarray(model.features(batch['image']))[batch['valid']]
      features.append(found.mean(1) if pool == 'mean' else found)
      kept.append(number * _BATCH + np.flatnonzero(batch['valid']))
  except InputError as error:  # the loader names the field that a training would have them from
    raise InputError(str(error).replace('config.data.source', '--input')) from error
  kept = np.concatenate(kept)
  files = [os.path.relpath(images.name(index), source if Path(source).is_dir() else Path(source).parent) for index in kept]
  grid = [model.config.data.image_size // model.config.model.patch_size] * 2
  _save(Path(output), files=np.array(files), features=np.concatenate(features), grid=np.array(grid))
  logging.info('%d of %d files: features %s in %s', len(kept), len(images), list(features[0].shape[1:]), output)


def _save(path, **arrays):
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    with open(temporary, 'wb') as file:
      np.savez(file, **arrays)
    os.replace(temporary, path)
  except OSError as error:
    raise RunError(f'--output: cannot write {path} ({error.strerror}); make room or give another place') from error
  finally:
    temporary.unlink(missing_ok=True)


def main() -> None:
  """The command; see the module's docstring."""
  values = flags.FLAGS
  extract(
    cli.required(values['checkpoint'], 'a checkpoint folder or a .pt file'),
    cli.required(values['input'], 'an image file or a folder of them'),
    cli.required(values['output'], 'the .npz file to write'),
    values.pool,
  )


if __name__ == '__main__':
  flags.DEFINE_string('checkpoint', None, 'Weights: a workdir or checkpoint folder of ours, or a .pt file of the reference.')
  flags.DEFINE_string('input', None, 'An image file, or a folder whose images at any depth are read.')
  flags.DEFINE_string('output', None, 'The .npz file to write.')
  flags.DEFINE_enum('pool', 'none', ['none', 'mean'], 'none: features of every patch; mean: one vector per file.')
  cli.run(main)
