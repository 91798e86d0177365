"""The `folder` source: a tree of image files, one directory per class, or flat without labels."""

import os
from pathlib import Path

import numpy as np
from absl import logging

from d2v_jax.data.places import SPLIT_NAMES, directory, no_test_part, walk
from d2v_jax.errors import InputError

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')


class FolderSource:
  """Image files under a root. Paths are kept as one fixed-width array: a million of them go to a worker in no time."""

  def __init__(self, root: Path, files: list[bytes], labels: list[int], classes: tuple[str, ...]):
    self._root = os.fsencode(root)
    self._files = np.array(files)
    self._labels = np.array(labels, np.int32)
    self.classes = classes

  def __len__(self) -> int:
    return len(self._files)

  def read(self, index: int) -> dict:
    with open(self._path(index), 'rb') as file:
      return {'image': file.read(), 'label': int(self._labels[index])}

  def name(self, index: int) -> str:
    return os.fsdecode(self._path(index))

  def _path(self, index: int) -> bytes:
    return os.path.join(self._root, self._files[index])


def open_folder(place: str, split: str) -> FolderSource:
  """Opens PLACE/{train,val,test}/CLASS/**/FILE, PLACE/CLASS/**/FILE (all for training) or PLACE/FILE (no labels).

  Classes are numbered in the order of their sorted names in the training part. Symbolic links are followed, hidden
  directories and files that are not images are ignored.
  """
  place_root = directory('folder', place)
  train_root = _part(place_root, 'train')
  test_root = _part(place_root, 'test')
  if train_root is None and test_root is None:
    if split == 'test':
      raise no_test_part(f'folder:{place}')
    return _scan(place_root)
  if split == 'train':
    if train_root is None:
      raise InputError(
        f'config.data.source: folder:{place} has {test_root.name}/ but no train/ beside it; put the training images there'
      )
    return _scan(train_root)
  if test_root is None:
    raise no_test_part(f'folder:{place}')
  return _scan(test_root, _class_names(train_root) if train_root else None)


def open_files(path: Path) -> FolderSource:
  """Opens one image file, or all of them below a directory at any depth, sorted, without labels. Raises InputError."""
  if path.is_file():
    return FolderSource(path.parent, [os.fsencode(path.name)], [-1], ())
  files = sorted(_images(directory('folder', str(path)), recurse=True))
  if not files:
    raise InputError(f'{path.absolute()} holds no images ({", ".join(EXTENSIONS)})')
  return FolderSource(path, files, [-1] * len(files), ())


def _part(root: Path, split: str) -> Path | None:
  return next((root / name for name in SPLIT_NAMES[split] if (root / name).is_dir()), None)


def _class_names(root: Path) -> tuple[str, ...]:
  return tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith('.')))


def _scan(root: Path, classes: tuple[str, ...] | None = None) -> FolderSource:
  """Lists the images under `root`; `classes` are those of the training part, where this is the test part."""
  own_classes = _class_names(root)
  files, labels = [], []
  if not own_classes:
    files = sorted(_images(root, recurse=False))
    if not files:
      raise InputError(
        f'config.data.source: {root.absolute()} holds no images ({", ".join(EXTENSIONS)}), neither directly nor in one'
        ' directory per class'
      )
    return FolderSource(root, files, [-1] * len(files), ())
  if classes and (unknown := sorted(set(own_classes) - set(classes))):
    raise InputError(
      f'config.data.source: {root.absolute()} has the class {unknown[0]!r}, which the training part lacks'
      f' (it has {len(classes)}: {", ".join(classes[:5])}{", ..." if len(classes) > 5 else ""})'
    )
  classes = classes or own_classes
  for label, name in enumerate(classes):
    members = sorted(_images(root / name, recurse=True)) if name in own_classes else []
    if not members:
      logging.warning('%s: no images of class %s', root, name)
    files += [os.path.join(os.fsencode(name), member) for member in members]
    labels += [label] * len(members)
  if not files:
    raise InputError(f'config.data.source: {root.absolute()} has {len(classes)} directories but no images in them')
  if loose := sum(1 for _ in _images(root, recurse=False)):
    logging.warning('%s: %d images beside the class directories are not used', root, loose)
  return FolderSource(root, files, labels, classes)


def _images(root: Path, recurse: bool):
  """Yields paths of images relative to `root`, as bytes."""
  for path in walk(root, recurse):
    if os.fsdecode(os.path.splitext(path)[1]).lower() in EXTENSIONS:
      yield path
