"""`config.data.source`, a string KIND:PLACE, to a source: what the user has on disk, by index.

A source of images has
  `len(source)`          the number of examples;
  `source.read(index)`   {'image': encoded bytes or uint8 [H, W], [H, W, 1] or [H, W, 3], 'label': int, -1 for none};
  `source.name(index)`   the file, or file and record, for messages;
  `source.classes`       names in label order, () without labels.
A source of speech is an `AudioSource`: the same, with 'audio' and 'text' in place of 'image', and `lengths`, `texts` and
`groups` of all clips. Text is read as 'tokens' int32 [n], from a corpus (`TextBlocks`) or a table (`SentenceTable`); both
have a `tokenizer`. Sources can be pickled (worker processes get a copy) and hold no open files until something is read.
"""

import difflib

import numpy as np
from absl import logging

from d2v_jax.checkpoints import weights
from d2v_jax.data import (
  audio_sources,
  image_arrays,
  image_folder,
  letters,
  prepared,
  records,
  sentences,
  spoken_sentences,
  tfds_source,
)
from d2v_jax.data.audio import SAMPLE_RATE, receptive_field
from d2v_jax.data.order import permute
from d2v_jax.errors import InputError

# The fixed key of the held-out part: the same examples whatever the seed of the run.
_HOLDOUT_KEY = (20240229,)


def open_source(config, split: str):
  """Opens `config.data.source`.

  Long recordings of speech become several clips, and clips that the task cannot use are left out, see `audio_sources`.

  Args:
    config: the whole config; `data`, `modality`, `task` and `seed` are read.
    split: 'train' or 'test'. With `config.data.holdout` > 0 the test part is that fraction of the training part, always
      the same examples, and 'train' is the rest. Of speech with known speakers it is that fraction of the speakers; of
      recordings that were cut into clips, of the recordings.

  Raises:
    InputError: the source string, the place or what lies there is wrong.
  """
  holdout = config.data.holdout
  if not 0 <= holdout < 1:
    raise InputError(f'config.data.holdout: {holdout} is not in [0, 1)')
  source = _open(config, 'train' if holdout else split)
  if config.modality == 'audio':
    source = _usable_speech(config, source, 'train' if holdout else split)
  if not holdout:
    return source
  held_out = _held_out(source, holdout)
  return _take(source, np.flatnonzero(held_out if split == 'test' else ~held_out))


def _held_out(source, fraction: float) -> np.ndarray:
  """Which examples the held-out part has, bool [N]: those of a fraction of the groups, where there are several."""
  groups = getattr(source, 'groups', None)
  names, what = np.unique(np.arange(len(source)) if groups is None else groups), 'speakers or recordings'
  if groups is None or len(names) == 1:
    groups = names = np.arange(len(source))
    what = 'examples'
  count = max(round(len(names) * fraction), 1)
  if count == len(names):
    raise InputError(f'config.data.holdout: {fraction} of {len(names)} {what} leaves none to train on')
  shuffled = permute(np.arange(len(names)), len(names), _HOLDOUT_KEY)
  held_out = np.isin(groups, names[shuffled[:count]])
  logging.info(
    'config.data.holdout: %d of %d %s are held out, %d of %d examples', count, len(names), what, held_out.sum(), len(source)
  )
  return held_out


def _usable_speech(config, source, split):
  """Cuts long recordings and leaves out what the task cannot use; in a test nothing is too long."""
  sizes = [round(seconds * SAMPLE_RATE) for seconds in config.data.bucket_seconds]
  if config.data.split_seconds:
    source = audio_sources.split_long(source, config.data.split_seconds)
  if config.task == 'ctc':
    shortest, longest = receptive_field(config.model.conv_layers)[0], None if split == 'test' else sizes[-1]
    return audio_sources.usable(source, shortest, longest, letters.encode)
  return audio_sources.usable(source, sizes[0], None, None)


def _take(source, indices: np.ndarray):
  return source.take(indices) if hasattr(source, 'take') else Subset(source, indices)


class Subset:
  """Some examples of a source, in the order given."""

  def __init__(self, source, indices: np.ndarray):
    self._source, self._indices = source, indices
    self.classes = source.classes
    self.tokenizer = getattr(source, 'tokenizer', None)

  def __len__(self) -> int:
    return len(self._indices)

  def read(self, index: int) -> dict:
    return self._source.read(self._indices[index])

  def name(self, index: int) -> str:
    return self._source.name(self._indices[index])


def _open_table(config, place, split):
  del place
  tokenizer = weights.tokenizer_of(config)
  if tokenizer is None:
    raise InputError(
      'config.data.tokenizer: missing; give a tokenizer, or with config.init_from the model to fine-tune and its tokenizer'
    )
  return sentences.open_table(config, split, tokenizer)


def _open(config, split: str):
  kinds = _TABLES if config.task == 'sentence' else _KINDS[config.modality]
  kind, _, place = config.data.source.partition(':')
  if kind not in kinds:
    nearest = difflib.get_close_matches(kind, kinds, 1)
    hint = f'; did you mean {nearest[0]!r}?' if nearest else ''
    raise InputError(
      f'config.data.source: {config.data.source!r} is not KIND:PLACE with a KIND of {", ".join(kinds)}'
      f' for {config.task} on {config.modality}{hint}'
    )
  if not place:
    raise InputError(f'config.data.source: {config.data.source!r} names no place; write {kind}:{kinds[kind][0]}')
  return kinds[kind][1](config, place, split)


# modality -> kind -> (what the place looks like, opener(config, place, split)).
_KINDS = {
  'image': {
    'folder': ('DIRECTORY', lambda config, place, split: image_folder.open_folder(place, split)),
    'cifar': ('DIRECTORY', lambda config, place, split: image_arrays.open_cifar(place, split)),
    'idx': ('DIRECTORY', lambda config, place, split: image_arrays.open_idx(place, split)),
    'arrayrecord': ('DIRECTORY', lambda config, place, split: records.open_array_records(place, split)),
    'tfds': ('NAME', lambda config, place, split: tfds_source.open_tfds(place, split, config.data.tfds_dir)),
    'sample': ('shapes', lambda config, place, split: image_arrays.open_sample(place, split, config.seed)),
  },
  'audio': {
    'librispeech': ('DIRECTORY', lambda config, place, split: audio_sources.open_librispeech(place, split)),
    'manifest': ('FILE.tsv', lambda config, place, split: audio_sources.open_manifest(place, split)),
    'folder': ('DIRECTORY', lambda config, place, split: audio_sources.open_folder(place, split)),
    'arrayrecord': ('DIRECTORY', lambda config, place, split: records.open_array_records(place, split, 'audio')),
    'tfds': ('NAME', lambda config, place, split: tfds_source.open_tfds(place, split, config.data.tfds_dir, 'audio')),
    'sample': ('sentences', lambda config, place, split: spoken_sentences.open_sample(place, split, config.seed)),
  },
  'text': {
    kind: (example, lambda config, place, split: prepared.open_text(config, split))
    for kind, example in {
      'folder': 'DIRECTORY_OR_FILE',
      'prepared': 'DIRECTORY',
      'arrayrecord': 'DIRECTORY',
      'tfds': 'NAME',
      'sample': 'python',
    }.items()
  },
}
_TABLES = {'tsv': ('FILE_OR_DIRECTORY', _open_table)}
