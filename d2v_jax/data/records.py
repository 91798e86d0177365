"""Record files: `tf.train.Example`s in ArrayRecord shards (sources `arrayrecord`, `tfds`) and TFRecord shards (`tfds`).

An example of images has the encoded image under `image` or `image/encoded`, and perhaps an integer under `label` or
`image/class/label`; one of speech has samples or an encoded file under `audio`, `audio/encoded` or `speech`, and perhaps
`text` and `speaker_id`. Everything is read without TensorFlow: examples by a few lines that know the protocol-buffer wire
format, TFRecord files by an index of where each record starts (records are length-prefixed, so finding them takes one
small read each).
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from d2v_jax.data import audio
from d2v_jax.data.audio_sources import in_threads, open_recordings
from d2v_jax.data.places import SPLIT_NAMES, directory, no_test_part
from d2v_jax.errors import InputError

IMAGE_KEYS = ('image', 'image/encoded')
LABEL_KEYS = ('label', 'image/class/label')
AUDIO_KEYS = ('audio', 'audio/encoded', 'speech')
TEXT_KEYS = ('text', 'transcript')
SPEAKER_KEYS = ('speaker_id', 'speaker')


class RecordFiles:
  """Serialized examples by index, from ArrayRecord, TFRecord or parquet shards.

  Args:
    records: a sequence of serialized `tf.train.Example`s with random access.
    shards: (file name, first record of the file that is used, how many are used), in order.
  """

  def __init__(self, records, shards: list[tuple[str, int, int]]):
    self._records = records
    self.shards, self._ends = shards, np.cumsum([count for _, _, count in shards])

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> bytes:
    return self._records[index]

  def name(self, index: int) -> str:
    shard = int(np.searchsorted(self._ends, index, side='right'))
    file, first, count = self.shards[shard]
    return f'{file}:{first + int(index) - int(self._ends[shard]) + count}'


class RecordSource:
  """Images by index, from records.

  Args:
    files: `RecordFiles`.
    image_key, label_key: features of an example; '' for a data set without labels.
    classes: names in label order.
  """

  def __init__(self, files: RecordFiles, image_key: str, label_key: str, classes=()):
    self._files, self._image_key, self._label_key = files, image_key, label_key
    self.name, self.classes = files.name, classes

  def __len__(self) -> int:
    return len(self._files)

  def read(self, index: int) -> dict:
    example = parse_example(self._files[index])
    image, label = example.get(self._image_key), example.get(self._label_key)
    if not image or not isinstance(image[0], bytes):
      raise ValueError(f'the record has no bytes under {self._image_key!r}; it has {sorted(example)}')
    return {'image': image[0], 'label': label[0] if label else -1}


class RecordAudio:
  """Recordings in records, for an `AudioSource`: finding their lengths takes one pass over the records.

  Args:
    files: `RecordFiles`.
    key: feature with an encoded file (bytes), 16-bit samples (integers) or samples in [-1, 1] (floats).
    rate: of samples, in Hz.

  Attributes:
    frames, rates, unreadable: as `AudioSource` wants them.
    texts: list of str, None where a record has no text.
    speakers: one number or name each, or None where not all records have one.
  """

  def __init__(self, files: RecordFiles, key: str, rate: int = audio.SAMPLE_RATE):
    self._files, self._key, self._rate = files, key, rate
    self.name = files.name
    probed = in_threads(self._probe, range(len(files)), 'finding the lengths of recordings')
    self.frames = np.array([frames for frames, *_ in probed], np.int64)
    self.rates = np.array([rate for _, rate, *_ in probed], np.int64)
    self.unreadable = {item: reason for item, (_, _, reason, _, _) in enumerate(probed) if reason}
    self.texts = [text for *_, text, _ in probed]
    speakers = [speaker for *_, speaker in probed]
    self.speakers = None if None in speakers else speakers

  def decode(self, item: int, start: int, stop: int) -> np.ndarray:
    values = self._feature(parse_features(self._files[item])).values()
    if isinstance(values, list):
      return audio.decode(values[0], start, stop)
    scale = 1 / 32768 if values.dtype == np.int64 else 1
    return audio.conform(values[start:stop].astype(np.float32) * np.float32(scale), self._rate)

  def _feature(self, features):
    feature = features.get(self._key)
    if not feature:
      raise ValueError(f'the record has nothing under {self._key!r}; it has {sorted(features)}')
    return feature

  def _probe(self, item: int) -> tuple:
    """(frames, rate, reason why it cannot be read or '', text, speaker)."""
    text = speaker = None
    try:
      features = parse_features(self._files[item])
      text = _first(features, TEXT_KEYS)
      text = text.decode(errors='replace') if isinstance(text, bytes) else None
      speaker = _first(features, SPEAKER_KEYS)
      feature = self._feature(features)
      found = audio.info(feature.values()[0]) if feature.is_bytes else (len(feature), self._rate)
      return *found, '', text, speaker
    except ValueError as error:
      return 0, 0, str(error), text, speaker


def _first(features, keys):
  """The first value of the first of these features that an example has; None without."""
  return next((features[key].values()[0] for key in keys if features.get(key)), None)


def open_array_records(place: str, split: str, modality: str = 'image'):
  """Opens PLACE/*train*.array_record* (or *val*, *validation*, *test*): shards of `tf.train.Example`s.

  Returns a `RecordSource` of images, or an `AudioSource`.
  """
  found = array_record_files(place, split)
  if found is None:
    raise no_test_part(f'arrayrecord:{place}')
  files, first = found
  keys, what = (IMAGE_KEYS, 'an encoded image') if modality == 'image' else (AUDIO_KEYS, 'audio')
  data_key = next((key for key in keys if key in first), None)
  if data_key is None:
    raise InputError(
      f'config.data.source: {files.shards[0][0]}: an example has {what} under one of {", ".join(keys)}; the first'
      f' has {", ".join(sorted(first)) or "nothing"}'
    )
  if modality == 'audio':
    return open_recordings(RecordAudio(files, data_key))
  return RecordSource(files, data_key, next((key for key in LABEL_KEYS if key in first), ''))


def array_record_files(place: str, split: str) -> tuple[RecordFiles, dict] | None:
  """The shards of a part, whatever their examples are of, and the first example; None where there is no test part."""
  root = directory('arrayrecord', place)
  files = sorted(str(path) for path in root.iterdir() if '.array_record' in path.name or path.suffix == '.arrayrecord')
  if not files:
    raise InputError(f'config.data.source: arrayrecord:{place}: {root.absolute()} holds no *.array_record* files')
  parts = {part: _of_split(files, part) for part in ('train', 'test')}
  if not parts[split] and split == 'test':
    return None
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
  return RecordFiles(records, shards), first


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
  return {
    key: list(feature.values() if feature.is_bytes else feature.values().tolist())
    for key, feature in parse_features(record).items()
  }


def parse_features(record: bytes) -> dict[str, 'Feature']:
  """Parses a serialized `tf.train.Example` without looking at its numbers yet. Raises ValueError."""
  features = {}
  try:
    for number, entries in _fields(memoryview(record)):
      if number != 1:
        continue
      for _, entry in _fields(entries):  # a map's entries: key = 1, value = 2
        pair = dict(_fields(entry))
        features[bytes(pair[1]).decode()] = Feature(pair.get(2, b''))
  except (KeyError, TypeError, UnicodeDecodeError) as error:
    raise ValueError(f'not a tf.train.Example ({error})') from None
  return features


class Feature:
  """A `tf.train.Feature`: its length is the number of its values, which are decoded when asked for."""

  def __init__(self, message):
    self._kind, self._parts = 1, []
    for kind, values in _fields(message):  # bytes_list = 1, float_list = 2, int64_list = 3, the numbers packed or not
      self._kind, self._parts = kind, [value for _, value in _fields(values)]
    self.is_bytes = self._kind == 1

  def __len__(self) -> int:
    if self.is_bytes:
      return len(self._parts)
    if self._kind == 2:
      return sum(len(part) // 4 for part in self._parts)
    return sum(1 if isinstance(part, int) else _count_varints(part) for part in self._parts)

  def values(self) -> list[bytes] | np.ndarray:
    """list of bytes, or float32 or int64 [n]. Raises ValueError."""
    if self.is_bytes:
      return [bytes(part) for part in self._parts]
    if self._kind == 2:
      return np.frombuffer(b''.join(self._parts), '<f4')
    numbers = [np.array([part]) if isinstance(part, int) else _varints(part) for part in self._parts]
    return np.concatenate([np.empty(0, np.int64), *numbers])


def encode_example(image: bytes, label: int = -1) -> bytes:
  """Serializes a `tf.train.Example` with `image` and, unless negative, `label`: what the `arrayrecord` source reads."""
  return encode_features({'image': image} | ({'label': [label]} if label >= 0 else {}))


def encode_features(features: dict) -> bytes:
  """Serializes a `tf.train.Example`: values are bytes, text, or arrays or lists of integers or floats."""
  encoded = b''
  for key, value in features.items():
    if isinstance(value, str):
      value = value.encode()
    if isinstance(value, bytes):
      feature = _field(1, _field(1, value))
    elif np.issubdtype(np.asarray(value).dtype, np.floating):
      feature = _field(2, _field(1, np.asarray(value, '<f4').tobytes()))
    else:
      feature = _field(3, _field(1, b''.join(_varint(int(number) & (1 << 64) - 1) for number in value)))
    encoded += _entry(key, feature)
  return _field(1, encoded)


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
    if place >= len(message):
      raise ValueError('a truncated tf.train.Example')
    byte = message[place]
    value |= (byte & 127) << shift
    place, shift = place + 1, shift + 7
    if byte < 128:
      return value, place


def _varints(message) -> np.ndarray:
  """Decodes packed integers, int64 [n]: seven bits a byte, lowest first; the last byte of each is below 128."""
  raw = np.frombuffer(message, np.uint8)
  last = np.flatnonzero(raw < 128)
  if not len(last) or last[-1] != len(raw) - 1:
    raise ValueError('a truncated tf.train.Example')
  first = np.concatenate([[0], last[:-1] + 1])
  sizes = last - first + 1
  if sizes.max() > 10:
    raise ValueError('not a tf.train.Example (an integer of more than 64 bits)')
  values = (raw[first] & 127).astype(np.uint64)
  for place in range(1, sizes.max()):
    longer = np.flatnonzero(sizes > place)
    values[longer] |= (raw[first[longer] + place] & 127).astype(np.uint64) << np.uint64(7 * place)
  return values.view(np.int64)


def _count_varints(message) -> int:
  return int(np.count_nonzero(np.frombuffer(message, np.uint8) < 128))


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
