"""`python -m d2v_jax.extract --checkpoint=PATH --input=FILE_OR_DIR --output=FILE.npz`: features of the user's own files.

The file holds `files` (names below the input) and
  of images: `features` (float32 [files, patches, width], row by row) and `grid` (rows and columns of patches);
  of speech: `features` (float32 [frames, width], all files one after the other), `times` (float64 [frames]: seconds from the
    beginning of the file to the middle of each frame) and `starts` (int64 [files + 1]: those of file i are
    features[starts[i] : starts[i + 1]]);
  of text, where every line that is not blank is a text of its own: `files` (of each text), `lines` (int64 [texts]: where in
    the file, from 1), `texts` (the lines themselves), `features` (float32 [tokens, width], all texts one after the other,
    without <s> and </s>), `offsets` (int64 [tokens, 2]: the characters [start, end) of its text that a token stands for) and
    `starts` (int64 [texts + 1], as of speech).
With `--pool=mean` `features` is the mean of each file or text, [files or texts, width]; there are no `times`, `offsets` and
`starts`. Recordings longer than 30 s are encoded in equal parts, lines with more tokens than the model takes (max_positions
- 2, for <s> and </s>) in parts of that many. Unreadable images and recordings are named and left out; text must be UTF-8.
"""

import os
from pathlib import Path

import numpy as np
from absl import flags, logging

from d2v_jax import cli
from d2v_jax.errors import InputError, RunError

_BATCH = 64  # images
_PART_SECONDS = 30.0  # of speech that is encoded at once
_BATCH_TOKENS = 8192
_LENGTH_STEP = 64  # tokens; few lengths are compiled
_MOST_TEXT = 8e9  # bytes


def extract(checkpoint: str, source: str, output: str, pool: str = 'none', tokenizer: str = '') -> None:
  """Writes the features of one file, or of all below a directory, to an `.npz` file; see the module's docstring.

  Args:
    checkpoint: a workdir or checkpoint folder of ours, or a .pt file of the reference.
    source: the file or directory.
    output: the .npz file.
    pool: 'none' or 'mean'.
    tokenizer: where that of a model of text is read from; '' for that of the checkpoint.

  Raises:
    InputError: the checkpoint, the tokenizer or the input cannot be read.
    RunError: the output cannot be written.
  """
  from d2v_jax.model import load

  if not Path(source).exists():
    raise InputError(f'--input: {source} does not exist; give a file or a folder of them')
  if not Path(output).absolute().parent.is_dir():
    raise InputError(f'--output: the folder of {output} does not exist; create it, or give another place')
  model = load(checkpoint)
  _set_tokenizer(model, checkpoint, tokenizer)
  of_modality = {'image': _of_images, 'audio': _of_speech, 'text': _of_text}[model.config.modality]
  try:
    files, found = of_modality(model, Path(source), pool == 'mean')
  except InputError as error:  # the loader names the field that a training would have them from
    raise InputError(f'--input: {str(error).removeprefix("config.data.source: ")}') from error
  base = source if Path(source).is_dir() else Path(source).parent
  _save(Path(output), files=np.array([os.path.relpath(file, base) for file in files]), **found)
  logging.info('%d files: features %s in %s', len(set(files)), list(found['features'].shape), output)


def _set_tokenizer(model, checkpoint, place):
  from d2v_jax.checkpoints.weights import read_tokenizer

  if model.config.modality != 'text':
    if place:
      raise InputError(f'--tokenizer: {checkpoint} is a model of {model.config.modality}, which has none; leave it out')
    return
  own = model.tokenizer
  if place:
    try:
      model.tokenizer = read_tokenizer(place)
    except InputError as error:
      raise InputError(f'--tokenizer: {error}') from error
  if model.tokenizer is None:
    raise InputError(f'--tokenizer: missing; {checkpoint} has none, give the one it was trained with')
  if own is not None and own.fingerprint != model.tokenizer.fingerprint:
    raise InputError(f'--tokenizer: {place} is another tokenizer than that of {checkpoint}; leave it out')


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


def _of_text(model, source, mean):
  from d2v_jax.data.tokenizer import framed
  from d2v_jax.report.progress import reported

  files, lines, texts = _lines_of(source)
  ids, offsets = [], []
  for text, file, line in zip(reported(texts, len(texts), 'lines tokenized'), files, lines):
    try:
      found = model.tokenizer.encode_framed(text)
    except ValueError as error:
      raise InputError(f'{file}:{line}: {error}') from None
    ids.append(found[0][1:-1])
    offsets.append(found[1][1:-1])
  room = model.config.model.max_positions - 2
  parts = [framed(own[start : start + room]) for own in ids for start in range(0, len(own), room)]
  starts = np.cumsum([0, *map(len, ids)])
  places = np.cumsum([0, *(len(part) - 2 for part in parts)])  # where parts start in all tokens
  found = {'lines': np.array(lines), 'texts': np.array(texts)}
  if not mean:
    features = np.empty((starts[-1], model.config.model.embed_dim), np.float32)
    for part, vectors in _features_of(model, parts):
      features[places[part] : places[part + 1]] = vectors
    return files, found | {'features': features, 'offsets': np.concatenate(offsets), 'starts': starts}
  sums = np.empty((len(parts), model.config.model.embed_dim), np.float32)
  for part, vectors in _features_of(model, parts):
    sums[part] = vectors.sum(0)
  counts = np.diff(starts).astype(np.float32)[:, None]
  return files, found | {'features': np.add.reduceat(sums, np.searchsorted(places, starts[:-1])) / counts}


def _lines_of(source):
  """Files, numbers in them and texts of all lines that are not blank."""
  from d2v_jax.data.text_corpora import read_lines

  found = list(read_lines(source))
  if not found:
    raise InputError(f'{source} holds no text: all lines are blank')
  files, lines, texts = zip(*found)
  longest = max(range(len(texts)), key=lambda number: len(texts[number]))
  size = np.dtype('U1').itemsize * len(texts) * len(texts[longest])
  if size > _MOST_TEXT:
    raise InputError(
      f'{files[longest]}:{lines[longest]}: has {len(texts[longest]):,} characters; with room for as many in each of'
      f' {len(texts):,} lines, `texts` would take {size / 1e9:.1f} GB, {_MOST_TEXT / 1e9:.0f} GB are allowed; break long'
      ' lines up, or give fewer at once'
    )
  return files, lines, texts


def _features_of(model, parts):
  """Yields (number, features [tokens, width] without <s> and </s>) of all parts, those of about the same length together."""
  from d2v_jax.data.tokenizer import padded
  from d2v_jax.report.progress import reported

  lengths = np.array([len(part) for part in parts])
  lengths = np.minimum(-(-lengths // _LENGTH_STEP) * _LENGTH_STEP, model.config.model.max_positions)  # with padding
  batches = []
  for length in np.unique(lengths):
    members = np.flatnonzero(lengths == length)
    rows = min(max(_BATCH_TOKENS // length, 1), len(members))
    # The last batch is made as large as the others by some members that come again.
    batches += [members[min(start, len(members) - rows) :][:rows] for start in range(0, len(members), rows)]
  for members in reported(batches, len(batches), 'batches of features'):
    features = np.asarray(model.features(*padded([parts[part] for part in members], lengths[members[0]])))
    for part, vectors in zip(members, features):
      yield part, vectors[1 : len(parts[part]) - 1]


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
    values.tokenizer,
  )


if __name__ == '__main__':
  flags.DEFINE_string('checkpoint', None, 'Weights: a workdir or checkpoint folder of ours, or a .pt file of the reference.')
  flags.DEFINE_string('input', None, 'A file, or a folder whose images, recordings or *.txt files are read.')
  flags.DEFINE_string('output', None, 'The .npz file to write.')
  flags.DEFINE_enum('pool', 'none', ['none', 'mean'], 'none: of every patch, frame or token; mean: of each file or line.')
  flags.DEFINE_string('tokenizer', '', 'Of text, where the checkpoint has none: folder or file of a tokenizer, or our run.')
  cli.run(main)
