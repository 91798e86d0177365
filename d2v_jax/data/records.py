"""Record files: `tf.train.Example`s in ArrayRecord shards (sources `arrayrecord`, `tfds`) and TFRecord shards (`tfds`).

An example has the encoded image under `image` or `image/encoded`, and perhaps an integer under `label` or
`image/class/label`. Everything is read without TensorFlow: examples by a few lines that know the protocol-buffer wire
format, TFRecord files by an index of where each record starts (records are length-prefixed, so finding them takes one
small read each).
"""

import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from d2v_jax.data.places import SPLIT_NAMES, directory, no_test_part
from d2v_jax.errors import InputError

IMAGE_KEYS = ('image', 'image/encoded')
LABEL_KEYS = ('label', 'image/class/label')


class RecordSource:
  """Serialized examples by index, from ArrayRecord or TFRecord shards.

  Args:
    records: a sequence of serialized `tf.train.Example`s with random access.
    shards: (file name, first record of the file that is used, how many are used), in order.
    image_key, label_key: features of an example; '' for a data set without labels.
    classes: names in label order.
  """

  def __init__(self, records, shards: list[tuple[str, int, int]], image_key: str, label_key: str, classes=()):
    self._records, self._image_key, self._label_key = records, image_key, label_key
    self._shards, self._ends = shards, np.cumsum([count for _, _, count in shards])
    self.classes = classes

  def __len__(self) -> int:
    return len(self._records)

  def read(self, index: int) -> dict:
    example = parse_example(self._records[index])
    image, label = example.get(self._image_key), example.get(self._label_key)
    if not image or not isinstance(image[0], bytes):
      raise ValueError(f'the record has no bytes under {self._image_key!r}; it has {sorted(example)}')
    return {'image': image[0], 'label': label[0] if label else -1}

  def name(self, index: int) -> str:
    shard = int(np.searchsorted(self._ends, index, side='right'))
    file, first, count = self._shards[shard]
    return f'{file}:{first + int(index) - int(self._ends[shard]) + count}'


def open_array_records(place: str, split: str) -> RecordSource:
  """Opens PLACE/*train*.array_record* (or *val*, *validation*, *test*): shards of `tf.train.Example`s."""
  root = directory('arrayrecord', place)
  files = sorted(str(path) for path in root.iterdir() if '.array_record' in path.name or path.suffix == '.arrayrecord')
  if not files:
    raise InputError(f'config.data.source: arrayrecord:{place}: {root.absolute()} holds no *.array_record* files')
  parts = {part: _of_split(files, part) for part in ('train', 'test')}
  if not parts[split] and split == 'test':
    raise no_test_part(f'arrayrecord:{place}')
  if not parts['train'] and not parts['test']:  # no split in the names: everything is for training
    parts['train'] = files
  if not parts[split]:
    raise InputError(f'config.data.source: arrayrecord:{place} has shards of a test part but none with "train" in the name')
  import grain  # here: it takes a second to import, and most sources do without

  shards = []
  for file in parts[split]:
    try:
      shards.append((file, 0, len(grain.sources.ArrayRecordDataSource([file]))))
    except Exception as error:
      raise InputError(f'config.data.source: {file} is not a readable ArrayRecord file: {error}') from None
  records = grain.sources.ArrayRecordDataSource(parts[split])
  if not len(records):
    raise InputError(
      f'config.data.source: arrayrecord:{place}: the {len(shards)} shards of the {split} part hold no records'
    )
  try:
    first = parse_example(records[0])
  except ValueError as error:
    raise InputError(f'config.data.source: {shards[0][0]}: the first record is {error}') from None
  image_key = next((key for key in IMAGE_KEYS if key in first), None)
  if image_key is None:
    raise InputError(
      f'config.data.source: {shards[0][0]}: an example has an encoded image under one of {", ".join(IMAGE_KEYS)}; the first'
      f' has {", ".join(sorted(first)) or "nothing"}'
    )
  label_key = next((key for key in LABEL_KEYS if key in first), '')
  return RecordSource(records, shards, image_key, label_key)


def _of_split(files: list[str], split: str) -> list[str]:
  """The files whose name has the split's name as a word: of its best name that any file has."""
  for name in SPLIT_NAMES[split]:
    if chosen := [file for file in files if name in re.split(r'[^a-z]+', Path(file).name.lower())]:
      return chosen
  return []


class TFRecords:
  """Random access to TFRecord shards: each record's place and length, found once by walking the files.

  Args:
    shards: (file, first record used, how many are used).
  """

  def __init__(self, shards: list[tuple[str, int, int]]):
    self._files = [file for file, _, _ in shards]
    with ThreadPoolExecutor(16) as pool:
      spans = list(pool.map(lambda shard: _record_spans(shard[0])[shard[1] : shard[1] + shard[2]], shards))
    for (file, first, count), found in zip(shards, spans):
      if len(found) != count:
        raise InputError(f'config.data.source: {file} has {first + len(found)} records, {first + count} are expected')
    self._spans = np.concatenate(spans)
    self._shard = np.repeat(np.arange(len(shards), dtype=np.int32), [len(found) for found in spans])

  def __len__(self) -> int:
    return len(self._spans)

  def __getitem__(self, index: int) -> bytes:
    start, length = self._spans[index]
    with open(self._files[self._shard[index]], 'rb', buffering=0) as file:
      return os.pread(file.fileno(), int(length), int(start))


def _record_spans(path: str) -> np.ndarray:
  """Returns (start, length) of every record's data, int64 [N, 2]. A record: length (8), check (4), data, check (4)."""
  spans, place = [], 0
  try:
    with open(path, 'rb', buffering=0) as file:
      size = os.fstat(file.fileno()).st_size
      while place < size:
        header = os.pread(file.fileno(), 8, place)
        length = int.from_bytes(header, 'little')
        if len(header) < 8 or place + 16 + length > size:
          raise InputError(f'config.data.source: {path} is not a whole TFRecord file: record {len(spans)} runs past its end')
        spans.append((place + 12, length))
        place += 16 + length
  except OSError as error:
    raise InputError(f'config.data.source: {path}: {error.strerror}') from None
  return np.array(spans, np.int64).reshape(-1, 2)


def parse_example(record: bytes) -> dict[str, list]:
  """Parses a serialized `tf.train.Example`: feature name -> list of bytes, floats or ints. Raises ValueError."""
  example = {}
  try:
    for number, features in _fields(memoryview(record)):
      if number != 1:
        continue
      for _, entry in _fields(features):  # a map's entries: key = 1, value = 2
        pair = dict(_fields(entry))
        example[bytes(pair[1]).decode()] = _feature(pair.get(2, b''))
  except (IndexError, KeyError, TypeError, UnicodeDecodeError, struct.error) as error:
    raise ValueError(f'not a tf.train.Example ({error})') from None
  return example


def encode_example(image: bytes, label: int = -1) -> bytes:
  """Serializes a `tf.train.Example` with `image` and, unless negative, `label`: what the `arrayrecord` source reads."""
  features = _entry('image', _field(1, _field(1, image)))
  if label >= 0:
    features += _entry('label', _field(3, _field(1, _varint(label))))
  return _field(1, features)


def _feature(feature) -> list:
  for kind, values in _fields(feature):
    if kind == 1:  # bytes_list
      return [bytes(value) for _, value in _fields(values)]
    if kind == 2:  # float_list, packed or not
      raw = b''.join(bytes(value) for _, value in _fields(values))
      return list(struct.unpack(f'<{len(raw) // 4}f', raw))
    if kind == 3:  # int64_list, packed or not
      return [number for _, value in _fields(values) for number in ([value] if isinstance(value, int) else _varints(value))]
  return []


def _fields(message):
  """Yields (field number, value) of a protocol-buffer message; a value is an int or a view of bytes."""
  place = 0
  while place < len(message):
    key, place = _read_varint(message, place)
    if key & 7 == 0:
      value, place = _read_varint(message, place)
      yield key >> 3, value - (1 << 64) if value >> 63 else value
      continue
    if key & 7 == 2:
      length, place = _read_varint(message, place)
    elif key & 7 in (1, 5):
      length = 8 if key & 7 == 1 else 4
    else:
      raise ValueError(f'not a tf.train.Example (wire type {key & 7})')
    if place + length > len(message):
      raise ValueError('a truncated tf.train.Example')
    yield key >> 3, message[place : place + length]
    place += length


def _read_varint(message, place: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = message[place]
    value |= (byte & 127) << shift
    place, shift = place + 1, shift + 7
    if byte < 128:
      return value, place


def _varints(message) -> list[int]:
  values, place = [], 0
  while place < len(message):
    value, place = _read_varint(message, place)
    values.append(value - (1 << 64) if value >> 63 else value)
  return values


def _varint(value: int) -> bytes:
  encoded = bytearray()
  while value > 127:
    encoded.append(value & 127 | 128)
    value >>= 7
  return bytes(encoded + bytes([value]))


def _field(number: int, content: bytes) -> bytes:
  return _varint(number << 3 | 2) + _varint(len(content)) + content


def _entry(key: str, value: bytes) -> bytes:
  return _field(1, _field(1, key.encode()) + _field(2, value))
