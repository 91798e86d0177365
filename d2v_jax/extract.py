"""`python -m d2v_jax.extract --checkpoint=PATH --input=FILE_OR_DIR --output=FILE.npz`: features of the user's own files.

The file holds `files` (names below the input) and, of images, `features` (float32 [files, patches, width], row by row) and
`grid` (rows and columns of patches); of speech, `features` (float32 [frames, width], all files one after the other), `times`
(float64 [frames]: seconds from the beginning of the file to the middle of each frame) and `starts` (int64 [files + 1]: those
of file i are features[starts[i] : starts[i + 1]]). With `--pool=mean` `features` is the mean of each file, [files, width].
Recordings longer than 30 s are encoded in equal parts. Unreadable files are named and left out.
"""

import os
from pathlib import Path

import numpy as np
from absl import flags, logging

from d2v_jax import cli
from d2v_jax.errors import InputError, RunError

_BATCH = 64  # images
_PART_SECONDS = 30.0  # of speech that is encoded at once


def extract(checkpoint: str, source: str, output: str, pool: str = 'none') -> None:
  """Writes the features of one file, or of all below a directory, to an `.npz` file; see the module's docstring.

  Raises:
    InputError: the checkpoint or the input cannot be read.
    RunError: the output cannot be written.
  """
  from d2v_jax.model import load

  if not Path(source).exists():
    raise InputError(f'--input: {source} does not exist; give a file or a folder of them')
  if not Path(output).absolute().parent.is_dir():
    raise InputError(f'--output: the folder of {output} does not exist; create it, or give another place')
  model = load(checkpoint)
  try:
    files, found = {'image': _of_images, 'audio': _of_speech}[model.config.modality](model, Path(source), pool == 'mean')
  except InputError as error:  # the loader names the field that a training would have them from
    raise InputError(str(error).replace('config.data.source', '--input')) from error
  base = source if Path(source).is_dir() else Path(source).parent
  _save(Path(output), files=np.array([os.path.relpath(file, base) for file in files]), **found)
  logging.info('%d files: features %s in %s', len(files), list(found['features'].shape), output)


def _of_images(model, source, mean):
  from d2v_jax.data.image_folder import open_files
  from d2v_jax.data.loader import eval_batches
  from d2v_jax.report.progress import reported

  images = open_files(source)
  model.config.data.max_unreadable = len(images)  # as many as there are: each is named
  features, kept = [], []
  batches = eval_batches(model.config, images, np.arange(len(images)), min(_BATCH, len(images)))
  for batch in reported(batches, -(-len(images) // _BATCH), 'batches of features'):
    found = np.asarray(model.features(batch['image']))[batch['valid']]
    features.append(found.mean(1) if mean else found)
    kept.extend(batch['index'][batch['valid']])
  grid = [model.config.data.image_size // model.config.model.patch_size] * 2
  return [images.name(index) for index in kept], {'features': np.concatenate(features), 'grid': np.array(grid)}


def _of_speech(model, source, mean):
  from d2v_jax.data.audio import SAMPLE_RATE, receptive_field
  from d2v_jax.data.audio_sources import open_files, split_long, usable
  from d2v_jax.report.progress import reported

  field, _ = receptive_field(model.config.model.conv_layers)
  parts = usable(split_long(open_files(source), _PART_SECONDS), field, None, None)
  by_file = {}  # recording -> features and times of its parts
  for index in reported(range(len(parts)), len(parts), 'clips'):
    try:
      wave = parts.read(index)['audio']
    except ValueError as error:
      logging.warning('unreadable, skipped: %s: %s', parts.name(index), error)
      continue
    # Padded to whole seconds, so that few lengths are compiled; the features do not depend on it.
    padded = np.pad(wave, (0, -len(wave) % SAMPLE_RATE))[None]
    frames = int(model.num_tokens([len(wave)])[0])
    item = int(parts.items[index])
    start = parts.starts[index] / parts.recordings.rates[item]
    found = np.asarray(model.features(padded, [len(wave)]))[0, :frames]
    by_file.setdefault(item, []).append((found, start + model.frame_times(frames)))
  if not by_file:
    raise InputError('config.data.source: none of the files could be read')
  files = [parts.recordings.name(item) for item in by_file]
  features = [np.concatenate([rows for rows, _ in found]) for found in by_file.values()]
  times = [np.concatenate([seconds for _, seconds in found]) for found in by_file.values()]
  if mean:
    return files, {'features': np.stack([rows.mean(0) for rows in features])}
  starts = np.cumsum([0, *map(len, features)])
  return files, {'features': np.concatenate(features), 'times': np.concatenate(times), 'starts': starts}


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
    cli.required(values['input'], 'a file or a folder of them'),
    cli.required(values['output'], 'the .npz file to write'),
    values.pool,
  )


if __name__ == '__main__':
  flags.DEFINE_string('checkpoint', None, 'Weights: a workdir or checkpoint folder of ours, or a .pt file of the reference.')
  flags.DEFINE_string('input', None, 'A file, or a folder whose images or recordings at any depth are read.')
  flags.DEFINE_string('output', None, 'The .npz file to write.')
  flags.DEFINE_enum('pool', 'none', ['none', 'mean'], 'none: features of every patch or frame; mean: one vector per file.')
  cli.run(main)
