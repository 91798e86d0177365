"""Sources that fit in memory as one array of pixels: `cifar` (python-version batches), `idx` (MNIST's format), `sample`."""

import gzip
import math
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np

from d2v_jax.data import shapes
from d2v_jax.data.places import directory
from d2v_jax.errors import InputError


class ArraySource:
  """Images uint8 [N, H, W] or [N, H, W, 3] and labels int [N] in memory."""

  def __init__(self, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], origin: str):
    self._images, self._labels, self._origin = images, labels, origin
    self.classes = classes

  def __len__(self) -> int:
    return len(self._images)

  def read(self, index: int) -> dict:
    return {'image': self._images[index], 'label': int(self._labels[index])}

  def name(self, index: int) -> str:
    return f'{self._origin}[{index}]'


def open_sample(place: str, split: str, seed: int) -> ArraySource:
  """Data that is generated on the spot; the test part depends on the seed. See `shapes`."""
  if place != 'shapes':
    raise InputError(f'config.data.source: sample:{place} is unknown; the samples of images are: shapes')
  images, labels = shapes.shapes(split, 0 if split == 'train' else seed)
  return ArraySource(images, labels, shapes.CLASSES, f'sample:shapes/{split}')


def open_cifar(place: str, split: str) -> ArraySource:
  """Opens CIFAR-10 or CIFAR-100 (fine labels) in the python version: PLACE holds the batches, or their directory."""
  root = directory('cifar', place)
  layouts = (
    ('cifar-10-batches-py', [f'data_batch_{i}' for i in range(1, 6)], 'test_batch', 'batches.meta', 'labels', 'label_names'),
    ('cifar-100-python', ['train'], 'test', 'meta', 'fine_labels', 'fine_label_names'),
  )
  for folder, train_files, test_file, meta_file, label_key, names_key in layouts:
    for base in (root, root / folder):
      if (base / train_files[0]).is_file() and (base / meta_file).is_file():
        files = train_files if split == 'train' else [test_file]
        parts = [_cifar_batch(base / name, label_key) for name in files]
        names = _unpickle(base / meta_file).get(names_key.encode())
        if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
          raise InputError(f'config.data.source: {base / meta_file} has no list of names under {names_key!r}')
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
        if labels.max() >= len(names):
          raise InputError(f'config.data.source: {base}: label {labels.max()}, but {meta_file} names {len(names)} classes')
        return ArraySource(images, labels, tuple(name.decode() for name in names), str(base / split))
  raise InputError(
    f'config.data.source: cifar:{place}: {root.absolute()} holds neither data_batch_1 and batches.meta (CIFAR-10) nor train'
    ' and meta (CIFAR-100); unpack the python version there'
  )


def _cifar_batch(path: Path, label_key: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns (images uint8 [N, 32, 32, 3], labels int32 [N]); a batch stores channel, row, column."""
  batch = _unpickle(path)
  data, labels = batch.get(b'data'), batch.get(label_key.encode())
  if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
    raise InputError(f'config.data.source: {path}: b"data" is not a uint8 array [N, 3072]')
  if not isinstance(labels, list) or len(labels) != len(data) or not all(isinstance(i, int) and i >= 0 for i in labels):
    raise InputError(f'config.data.source: {path}: {label_key!r} is not a list of {len(data)} labels')
  return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy(), np.array(labels, np.int32)


def _unpickle(path: Path) -> dict:
  try:
    with open(path, 'rb') as file:
      content = _ArrayUnpickler(file, encoding='bytes').load()
  except OSError as error:
    raise InputError(f'config.data.source: {path}: {error.strerror}') from None
  except Exception as error:  # a damaged pickle can raise nearly anything
    raise InputError(f'config.data.source: {path} is not a readable CIFAR batch: {error}') from None
  if not isinstance(content, dict):
    raise InputError(f'config.data.source: {path} is not a CIFAR batch: a dict is expected, not {type(content).__name__}')
  return content


class _ArrayUnpickler(pickle.Unpickler):
  """Numpy arrays and plain containers only: a pickle that names anything else is refused before anything runs."""

  def find_class(self, module, name):
    if (module, name) not in _ALLOWED_IN_PICKLES:
      raise pickle.UnpicklingError(f'it names {module}.{name}, which is refused')
    return _ALLOWED_IN_PICKLES[module, name]


_ALLOWED_IN_PICKLES = {
  ('numpy.core.multiarray', '_reconstruct'): np._core.multiarray._reconstruct,
  ('numpy._core.multiarray', '_reconstruct'): np._core.multiarray._reconstruct,
  ('numpy', 'ndarray'): np.ndarray,
  ('numpy', 'dtype'): np.dtype,
}


def open_idx(place: str, split: str) -> ArraySource:
  """Opens PLACE/{train,t10k}-{images-idx3,labels-idx1}-ubyte, each perhaps with .gz."""
  root = directory('idx', place)
  prefix = 'train' if split == 'train' else 't10k'
  images_path = _idx_file(root, f'{prefix}-images-idx3-ubyte')
  images = _read_idx(images_path, 3)
  labels_path = _idx_file(root, f'{prefix}-labels-idx1-ubyte')
  labels = _read_idx(labels_path, 1)
  if len(images) != len(labels):
    raise InputError(f'config.data.source: {images_path} has {len(images)} images, {labels_path.name} {len(labels)} labels')
  if not len(images):
    raise InputError(f'config.data.source: {images_path} holds no images')
  return ArraySource(images, labels, tuple(map(str, range(labels.max() + 1))), str(images_path))


def _idx_file(root: Path, name: str) -> Path:
  for candidate in (root / name, root / f'{name}.gz'):
    if candidate.is_file():
      return candidate
  raise InputError(f'config.data.source: {root.absolute()} lacks {name} (or {name}.gz)')


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
  """Reads a big-endian idx file of unsigned bytes with `dimensions` dimensions."""
  try:
    with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as file:
      content = file.read()
  except (OSError, EOFError, zlib.error) as error:
    raise InputError(f'config.data.source: {path} cannot be read: {error}') from None
  expected, found = bytes((0, 0, 8, dimensions)), content[:4]
  if found != expected:
    raise InputError(
      f'config.data.source: {path} begins with {found.hex() or "nothing"}, not {expected.hex()} (idx, unsigned bytes,'
      f' {dimensions} dimensions)'
    )
  header = 4 + 4 * dimensions
  if len(content) < header:
    raise InputError(f'config.data.source: {path} ends within its header')
  shape = struct.unpack(f'>{dimensions}I', content[4:header])
  if len(content) - header != math.prod(shape):
    sizes = ' x '.join(map(str, shape))
    raise InputError(f'config.data.source: {path} has {len(content) - header} bytes of data, its header says {sizes}')
  return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
