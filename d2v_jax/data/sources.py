"""`config.data.source`, a string KIND:PLACE, to a source: what the user has on disk, by index.

A source of images has
  `len(source)`          the number of examples;
  `source.read(index)`   {'image': encoded bytes or uint8 [H, W], [H, W, 1] or [H, W, 3], 'label': int, -1 for none};
  `source.name(index)`   the file, or file and record, for messages;
  `source.classes`       names in label order, () without labels.
Sources can be pickled (worker processes get a copy) and hold no open files until something is read.
"""

import difflib

import numpy as np

from d2v_jax.data import image_arrays, image_folder, records, tfds_source
from d2v_jax.data.order import permute
from d2v_jax.errors import InputError

# The fixed key of the held-out part: the same examples whatever the seed of the run.
_HOLDOUT_KEY = (20240229,)


def open_source(config, split: str):
  """Opens `config.data.source`.

  Args:
    config: the whole config; `data`, `modality` and `seed` are read.
    split: 'train' or 'test'. With `config.data.holdout` > 0 the test part is that fraction of the training part, always
      the same examples, and 'train' is the rest.

  Raises:
    InputError: the source string, the place or what lies there is wrong.
  """
  holdout = config.data.holdout
  if not 0 <= holdout < 1:
    raise InputError(f'config.data.holdout: {holdout} is not in [0, 1)')
  if not holdout:
    return _open(config, split)
  source = _open(config, 'train')
  count = max(round(len(source) * holdout), 1)
  if count == len(source):
    raise InputError(f'config.data.holdout: {holdout} of {len(source)} examples leaves none to train on')
  shuffled = permute(np.arange(len(source)), len(source), _HOLDOUT_KEY)
  return Subset(source, np.sort(shuffled[:count] if split == 'test' else shuffled[count:]))


class Subset:
  """Some examples of a source, in the order given."""

  def __init__(self, source, indices: np.ndarray):
    self._source, self._indices = source, indices
    self.classes = source.classes

  def __len__(self) -> int:
    return len(self._indices)

  def read(self, index: int) -> dict:
    return self._source.read(self._indices[index])

  def name(self, index: int) -> str:
    return self._source.name(self._indices[index])


def _open(config, split: str):
  kinds = _KINDS[config.modality]
  kind, _, place = config.data.source.partition(':')
  if kind not in kinds:
    nearest = difflib.get_close_matches(kind, kinds, 1)
    hint = f'; did you mean {nearest[0]!r}?' if nearest else ''
    raise InputError(
      f'config.data.source: {config.data.source!r} is not KIND:PLACE with a KIND of {", ".join(kinds)}'
      f' for {config.modality}{hint}'
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
}
