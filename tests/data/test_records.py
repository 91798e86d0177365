"""ArrayRecord, TFRecord and TFDS without TensorFlow: record parsing against files laid out as the real ones are."""

import json
import pickle
import struct
import sys

import pytest

from d2v_jax.config import default_config
from d2v_jax.data.records import TFRecords, encode_example, parse_example
from d2v_jax.data.sources import open_source
from d2v_jax.errors import InputError


def write_array_record(path, records):
  from array_record.python.array_record_module import ArrayRecordWriter

  writer = ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    writer.write(record)
  writer.close()


def write_tfrecord(path, records):
  # The two checksums of a record are not looked at: decoding the image finds damage.
  path.write_bytes(b''.join(struct.pack('<QI', len(record), 0) + record + bytes(4) for record in records))


def write_parquet(path, records):
  import pyarrow.parquet

  pyarrow.parquet.write_table(pyarrow.table({'data': pyarrow.array(records, pyarrow.binary())}), path)


def config_of(source, tfds_dir=''):
  config = default_config()
  config.data.source, config.data.tfds_dir = source, str(tfds_dir)
  return config


def records_of(start, stop):
  """Records whose image is its number as text and whose label is that number modulo three."""
  return [encode_example(f'image {i}'.encode(), i % 3) for i in range(start, stop)]


def check(source, start, stop):
  assert len(source) == stop - start
  for index in range(len(source)):
    assert source.read(index) == {'image': f'image {start + index}'.encode(), 'label': (start + index) % 3}


def test_parse_example_as_tensorflow_writes_it():
  # Features in TensorFlow's bytes: packed ints with a negative one, packed floats, several bytes values, an empty feature.
  def field(number, content):
    return bytes([number << 3 | 2, len(content)]) + content

  def entry(key, feature):
    return field(1, field(1, key) + field(2, feature))

  negative = b'\xfe' + b'\xff' * 8 + b'\x01'
  features = (
    entry(b'ints', field(3, field(1, b'\x96\x01' + negative)))
    + entry(b'floats', field(2, field(1, struct.pack('<2f', 0.5, -2))))
    + entry(b'bytes', field(1, field(1, b'one') + field(1, b'')))
    + entry(b'empty', b'')
    + entry(b'single', field(3, b'\x08\x07'))  # not packed
  )
  expected = {'ints': [150, -2], 'floats': [0.5, -2.0], 'bytes': [b'one', b''], 'empty': [], 'single': [7]}
  assert parse_example(field(1, features)) == expected
  assert parse_example(encode_example(b'x' * 300, 1000)) == {'image': [b'x' * 300], 'label': [1000]}
  assert parse_example(encode_example(b'x')) == {'image': [b'x']}


def test_damaged_example_raises_value_error():
  record = encode_example(b'an image', 3)
  for damaged in (record[:-2], record[:1], b'\xff' * 20, b'not a record', b'\x0a\x02\x0a\x50'):
    with pytest.raises(ValueError, match='Example'):
      parse_example(damaged)


def test_tfrecords_random_access(tmp_path):
  records = [bytes([i]) * i for i in range(40)]
  write_tfrecord(tmp_path / 'a', records[:15])
  write_tfrecord(tmp_path / 'b', records[15:])
  opened = pickle.loads(pickle.dumps(TFRecords([(str(tmp_path / 'a'), 5, 10), (str(tmp_path / 'b'), 0, 20)])))
  assert [opened[i] for i in reversed(range(len(opened)))] == records[5:35][::-1]
  with pytest.raises(InputError, match='40 are expected'):
    TFRecords([(str(tmp_path / 'b'), 0, 40)])
  (tmp_path / 'b').write_bytes((tmp_path / 'b').read_bytes()[:-1])
  with pytest.raises(InputError, match='not a whole TFRecord file'):
    TFRecords([(str(tmp_path / 'b'), 0, 25)])


def test_array_records(tmp_path):
  write_array_record(tmp_path / 'x-train.array_record-00000-of-00002', records_of(0, 7))
  write_array_record(tmp_path / 'x-train.array_record-00001-of-00002', records_of(7, 12))
  config = config_of(f'arrayrecord:{tmp_path}')
  with pytest.raises(InputError, match='no test part'):
    open_source(config, 'test')
  write_array_record(tmp_path / 'x-test.array_record-00000-of-00001', [encode_example(b'published without labels')])
  write_array_record(tmp_path / 'x-validation.array_record-00000-of-00001', records_of(50, 53))
  train, test = pickle.loads(pickle.dumps(open_source(config, 'train'))), open_source(config, 'test')
  check(train, 0, 12)
  check(test, 50, 53)
  assert train.name(8) == f'{tmp_path}/x-train.array_record-00001-of-00002:1'


def test_array_records_without_splits_are_for_training(tmp_path):
  write_array_record(tmp_path / 'shard-0.array_record', [encode_example(b'x')])
  source = open_source(config_of(f'arrayrecord:{tmp_path}'), 'train')
  assert source.read(0) == {'image': b'x', 'label': -1}


def test_array_record_mistakes_are_named(tmp_path):
  config = config_of(f'arrayrecord:{tmp_path}')
  path = tmp_path / 'train.array_record'
  path.write_bytes(b'garbage' * 100)
  with pytest.raises(InputError, match=r'train\.array_record is not a readable'):
    open_source(config, 'train')
  write_array_record(path, [])
  with pytest.raises(InputError, match='hold no records'):
    open_source(config, 'train')
  write_array_record(path, [b'another kind of record'])
  with pytest.raises(InputError, match=r'the first record is not a tf\.train\.Example'):
    open_source(config, 'train')
  from d2v_jax.data import records

  write_array_record(path, [records._field(1, records._entry('pixels', records._field(1, records._field(1, b'x'))))])
  with pytest.raises(InputError, match='the first has pixels'):
    open_source(config, 'train')


WRITERS = {'array_record': write_array_record, 'tfrecord': write_tfrecord, 'parquet': write_parquet}


@pytest.fixture(params=WRITERS)
def tfds_dir(request, tmp_path):
  """A prepared TFDS data set `tiny`: 20 training records in two shards, 5 for validation, with TFDS's own metadata."""
  pytest.importorskip('tensorflow_datasets')
  folder = tmp_path / 'tiny' / '1.0.0'
  folder.mkdir(parents=True)
  package = 'tensorflow_datasets.core.features'
  features = {
    'image': {
      'pythonClassName': f'{package}.image_feature.Image',
      'image': {'dtype': 'uint8', 'shape': {'dimensions': ['-1', '-1', '3']}},
    },
    'label': {'pythonClassName': f'{package}.class_label_feature.ClassLabel', 'classLabel': {'numClasses': '3'}},
  }
  (folder / 'features.json').write_text(
    json.dumps({'pythonClassName': f'{package}.features_dict.FeaturesDict', 'featuresDict': {'features': features}})
  )
  (folder / 'label.labels.txt').write_text('cat\ndog\neel\n')
  splits, shards = [], {'train': [(0, 12), (12, 20)], 'validation': [(50, 55)]}
  for name, ranges in shards.items():
    for number, (start, stop) in enumerate(ranges):
      path = folder / f'tiny-{name}.{request.param}-{number:05d}-of-{len(ranges):05d}'
      WRITERS[request.param](path, records_of(start, stop))
    lengths = [str(stop - start) for start, stop in ranges]
    template = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
    splits.append({'name': name, 'shardLengths': lengths, 'numBytes': '1', 'filepathTemplate': template})
  info = {'name': 'tiny', 'version': '1.0.0', 'fileFormat': request.param, 'splits': splits}
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  return tmp_path


def test_tfds(tfds_dir):
  for place, split, start, stop in (
    ('tiny', 'train', 0, 20),
    ('tiny:1.0.0', 'test', 50, 55),
    ('tiny:train[25%:75%]', 'train', 5, 15),
    ('tiny:1.*.*:train[:3]', 'train', 0, 3),
  ):
    source = pickle.loads(pickle.dumps(open_source(config_of(f'tfds:{place}', tfds_dir), split)))
    check(source, start, stop)
    assert source.classes == ('cat', 'dog', 'eel')
  assert 'tiny-train' in open_source(config_of('tfds:tiny:train[13:]', tfds_dir), 'train').name(2)
  assert open_source(config_of('tfds:tiny:train[13:]', tfds_dir), 'train').name(2).endswith('-00001-of-00002:3')
  assert 'tensorflow' not in sys.modules


def test_tfds_mistakes_are_named(tfds_dir):
  for place, expected in (('nothing', 'config.data.tfds_dir'), ('tiny:trainn', 'trainn'), ('tiny:2.0.0', 'tiny')):
    with pytest.raises(InputError, match=expected):
      open_source(config_of(f'tfds:{place}', tfds_dir), 'train')
  (shard,) = tfds_dir.glob('tiny/1.0.0/tiny-train.*-00001-of-00002')
  shard.unlink()
  with pytest.raises(InputError, match=f'1 of 2 shards are missing: {shard}'):
    open_source(config_of('tfds:tiny', tfds_dir), 'train')


def test_record_without_label_or_image(tmp_path):
  write_array_record(tmp_path / 'train.array_record', [encode_example(b'x', 1), encode_example(b'y'), b''])
  source = open_source(config_of(f'arrayrecord:{tmp_path}'), 'train')
  assert source.read(1)['label'] == -1
  with pytest.raises(ValueError, match="no bytes under 'image'"):
    source.read(2)
