"""The `tfds` source: prepared TensorFlow Datasets, read without TensorFlow."""

import fnmatch
import json
import os
import re
from pathlib import Path

from d2v_jax.data.audio import SAMPLE_RATE
from d2v_jax.data.audio_sources import open_recordings
from d2v_jax.data.places import SPLIT_NAMES, no_test_part
from d2v_jax.data.records import AUDIO_KEYS, RecordAudio, RecordFiles, RecordSource, TFRecords
from d2v_jax.errors import InputError


def open_tfds(place: str, split: str, data_dir: str, modality: str = 'image'):
  """Opens NAME[/CONFIG][:VERSION][:SPLIT] from `data_dir` (empty: the TFDS default).

  SPLIT is in the TFDS syntax (`train[:90%]`) and says what to train on; the test part is `validation` or `test`, the first
  that exists. Where a data set of speech has no split of those names (LibriSpeech), all that begin with `train_` are for
  training, and with `dev_`, or else `test_`, for the test. Array_record, TFRecord and parquet files are read.

  Returns a `RecordSource` of images, or an `AudioSource`.
  """
  found = tfds_files(place, split, data_dir, modality)
  if found is None:
    raise no_test_part(f'tfds:{place}')
  files, feature = found
  return open_recordings(RecordAudio(files, *feature)) if modality == 'audio' else RecordSource(files, *feature)


def tfds_files(place: str, split: str, data_dir: str, modality: str) -> tuple[RecordFiles, object] | None:
  """The records of a part and what tells about their features (see `_images`, `_audio`, `_text`); None: no test part."""
  match = re.fullmatch(r'([^:]+?)(:[\d*]+\.[\d*]+\.[\d*]+)?(?::([A-Za-z].*))?', place)
  if match is None:
    raise InputError(f'config.data.source: tfds:{place} is not tfds:NAME[/CONFIG][:VERSION][:SPLIT]')
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    raise InputError(
      'config.data.source: tfds needs the package tensorflow-datasets; pip install tensorflow-datasets'
    ) from None
  wanted = match[3]
  describe = {'image': _images, 'audio': _audio, 'text': _text}[modality]
  splits, file_format, feature = describe(tfds, place, match[1], (match[2] or '')[1:], data_dir)
  if split == 'test':
    wanted = _split_of(splits, split, modality)
    if wanted is None:
      return None
  try:
    chosen = splits[wanted or _split_of(splits, split, modality) or 'train']
    files = chosen.file_instructions
  except Exception as error:
    raise InputError(f'config.data.source: tfds:{place}: {_first_line(error)}') from None
  shards = [(str(file.filename), file.skip, file.take) for file in files]
  if missing := [file for file, _, _ in shards if not os.path.exists(file)]:
    raise InputError(f'config.data.source: tfds:{place}: {len(missing)} of {len(shards)} shards are missing: {missing[0]}')
  if file_format == 'array_record':
    import grain

    records = grain.sources.ArrayRecordDataSource(files)
  elif file_format == 'tfrecord':
    records = TFRecords(shards)
  elif file_format == 'parquet':
    records = ParquetRecords(shards)
  else:
    raise InputError(
      f'config.data.source: tfds:{place} is stored as {file_format}; array_record, tfrecord, parquet can be read:'
      f' run "tfds build {match[1]} --file_format=array_record"'
    )
  return RecordFiles(records, shards), feature


def _split_of(splits, split: str, modality: str) -> str | None:
  """The split of a data set that is its train or test part, in the TFDS syntax; None where it has none."""
  exact = [name for name in SPLIT_NAMES[split] if name in splits]
  if exact or modality != 'audio':
    return exact[0] if exact else None
  for prefix in ('train_',) if split == 'train' else ('dev_', 'test_'):
    if parts := sorted(name for name in splits if name.startswith(prefix)):
      return '+'.join(parts)
  return None


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


def _images(tfds, place: str, name: str, version: str, data_dir: str):
  """Returns (splits, file format, (image key, label key or '', class names)) of a prepared data set."""
  info = _info(tfds, place, name, version, data_dir)
  features = info.features
  images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
  labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
  if not images:
    raise InputError(f'config.data.source: tfds:{place} has no image feature; it has {", ".join(features)}')
  image_key = 'image' if 'image' in images else images[0]
  label_key = 'label' if 'label' in labels else (labels or [''])[0]
  classes = tuple(features[label_key].names) if label_key else ()
  return info.splits, info.file_format.name.lower(), (image_key, label_key, classes)


def _text(tfds, place: str, name: str, version: str, data_dir: str):
  """Returns (splits, file format, names of the features) of a prepared data set."""
  info = _info(tfds, place, name, version, data_dir)
  return info.splits, info.file_format.name.lower(), list(info.features)


def _info(tfds, place: str, name: str, version: str, data_dir: str):
  """What TFDS knows about a prepared data set. Raises InputError."""
  try:
    info = tfds.builder(f'{name}:{version}' if version else name, data_dir=data_dir or None, try_gcs=False).info
    splits = info.splits
  except Exception as error:
    raise InputError(
      f'config.data.source: tfds:{place}: {_first_line(error)}; set config.data.tfds_dir'
      f' (now {data_dir or "the TFDS default"!r}) to where "tfds build {name}" has prepared it'
    ) from None
  if not splits:
    raise _not_prepared(place, name, info.data_dir)
  return info


def _audio(tfds, place: str, name: str, version: str, data_dir: str):
  """Returns (splits, file format, (audio key, samples per second)) of a prepared data set.

  From its two JSON files: TFDS itself opens data sets that have an audio feature only where TensorFlow is installed.
  """
  root = Path(data_dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser() / name
  prepared = {path.parent.name: path.parent for path in root.glob('*/dataset_info.json')}
  known = [found for found in prepared if fnmatch.fnmatchcase(found, version or '*')]
  if not known:
    configs = sorted({path.parent.parent.name for path in root.glob('*/*/dataset_info.json')})
    hint = f'; it has {", ".join(prepared)}' if prepared else ''
    hint += f'; it needs a CONFIG: {", ".join(configs)}' if configs else ''
    raise _not_prepared(place, name, str(root) + hint)
  folder = prepared[max(known, key=lambda found: [int(number) for number in re.findall(r'\d+', found)])]
  info = json.loads((folder / 'dataset_info.json').read_text())
  template = tfds.core.ShardedFileTemplate(
    data_dir=folder, dataset_name=info['name'], filetype_suffix=info.get('fileFormat', 'tfrecord')
  )
  splits = tfds.core.SplitDict(
    [
      tfds.core.SplitInfo(
        name=split['name'],
        shard_lengths=[int(length) for length in split['shardLengths']],
        num_bytes=int(split.get('numBytes', 0)),
        filename_template=template.replace(split=split['name'], template=split.get('filepathTemplate')),
      )
      for split in info['splits']
    ]
  )
  features = json.loads((folder / 'features.json').read_text())['featuresDict']['features']
  audio = {key: feature['audio'] for key, feature in features.items() if 'audio' in feature}
  if not audio:
    raise InputError(f'config.data.source: tfds:{place} has no audio feature; it has {", ".join(features)}')
  key = next((key for key in AUDIO_KEYS if key in audio), next(iter(audio)))
  if len(audio[key].get('shape', {}).get('dimensions', ())) > 1:
    raise InputError(f'config.data.source: tfds:{place}: {key} has several channels; only one can be read')
  return splits, template.filetype_suffix, (key, int(audio[key].get('sampleRate', 0)) or SAMPLE_RATE)


def _not_prepared(place: str, name: str, where) -> InputError:
  return InputError(
    f'config.data.source: tfds:{place} is not prepared in {where}; run "tfds build {name}" in an environment that'
    ' has TensorFlow, or set config.data.tfds_dir to where it lies'
  )


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip('.')
