"""The `tfds` source: prepared TensorFlow Datasets, read without TensorFlow."""

import os
import re

from d2v_jax.data.places import SPLIT_NAMES, no_test_part
from d2v_jax.data.records import RecordSource, TFRecords
from d2v_jax.errors import InputError


def open_tfds(place: str, split: str, data_dir: str) -> RecordSource:
  """Opens NAME[/CONFIG][:VERSION][:SPLIT] from `data_dir` (empty: the TFDS default).

  SPLIT is in the TFDS syntax (`train[:90%]`) and says what to train on; the test part is `validation` or `test`, the first
  that exists. Array_record, TFRecord and parquet files are read.
  """
  match = re.fullmatch(r'([^:]+?)(:[\d*]+\.[\d*]+\.[\d*]+)?(?::([A-Za-z].*))?', place)
  if match is None:
    raise InputError(f'config.data.source: tfds:{place} is not tfds:NAME[/CONFIG][:VERSION][:SPLIT]')
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    raise InputError(
      'config.data.source: tfds needs the package tensorflow-datasets; pip install tensorflow-datasets'
    ) from None
  name, wanted = match[1] + (match[2] or ''), match[3]
  try:
    info = tfds.builder(name, data_dir=data_dir or None, try_gcs=False).info
    splits = info.splits
  except Exception as error:
    raise InputError(
      f'config.data.source: tfds:{place}: {_first_line(error)}; set config.data.tfds_dir'
      f' (now {data_dir or "the TFDS default"!r}) to where "tfds build {name}" has prepared it'
    ) from None
  if not splits:
    raise InputError(
      f'config.data.source: tfds:{place} is not prepared in {info.data_dir}; run "tfds build {name}" in an environment that'
      ' has TensorFlow, or set config.data.tfds_dir to where it lies'
    )
  if split == 'test':
    wanted = next((known for known in SPLIT_NAMES['test'] if known in splits), None)
    if wanted is None:
      raise no_test_part(f'tfds:{place}')
  try:
    chosen = splits[wanted or 'train']
    files = chosen.file_instructions
  except Exception as error:
    raise InputError(f'config.data.source: tfds:{place}: {_first_line(error)}') from None
  image_key, label_key, classes = _features(info.features, tfds, place)
  shards = [(str(file.filename), file.skip, file.take) for file in files]
  if missing := [file for file, _, _ in shards if not os.path.exists(file)]:
    raise InputError(f'config.data.source: tfds:{place}: {len(missing)} of {len(shards)} shards are missing: {missing[0]}')
  file_format = info.file_format.name
  if file_format == 'ARRAY_RECORD':
    import grain

    records = grain.sources.ArrayRecordDataSource(files)
  elif file_format == 'TFRECORD':
    records = TFRecords(shards)
  elif file_format == 'PARQUET':
    records = ParquetRecords(shards)
  else:
    raise InputError(
      f'config.data.source: tfds:{place} is stored as {file_format.lower()}; array_record, tfrecord, parquet can be read:'
      f' run "tfds build {name} --file_format=array_record"'
    )
  return RecordSource(records, shards, image_key, label_key, classes)


class ParquetRecords:
  """The first column of parquet shards, where TFDS keeps serialized examples; read whole, as the format wants it."""

  def __init__(self, shards: list[tuple[str, int, int]]):
    try:
      import pyarrow.parquet
    except ImportError:
      raise InputError('config.data.source: parquet files need a package; pip install pyarrow') from None
    tables = [pyarrow.parquet.read_table(file).column(0).slice(first, count) for file, first, count in shards]
    self._records = pyarrow.chunked_array([chunk for table in tables for chunk in table.chunks])

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> bytes:
    return self._records[int(index)].as_py()


def _features(features, tfds, place: str) -> tuple[str, str, tuple[str, ...]]:
  """Returns (image key, label key or '', class names)."""
  images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
  labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
  if not images:
    raise InputError(f'config.data.source: tfds:{place} has no image feature; it has {", ".join(features)}')
  image_key = 'image' if 'image' in images else images[0]
  label_key = 'label' if 'label' in labels else (labels or [''])[0]
  return image_key, label_key, tuple(features[label_key].names) if label_key else ()


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip('.')
