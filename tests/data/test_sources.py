"""What users have on disk: read right, and refused in one line when it is wrong."""

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2v_jax.config import default_config
from d2v_jax.data.images import eval_image
from d2v_jax.data.sources import open_source
from d2v_jax.errors import InputError

IMAGES = Path(os.environ.get('D2V_DATA_DIR', Path(__file__).parents[3] / 'shared' / 'data')) / 'images'


def config_of(source, **data):
  config = default_config()
  config.data.source = str(source)
  config.data.update(data)
  return config


def save_image(path, value=0, mode='RGB'):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, (8, 8), value).save(path)


def message_of(config, split='train'):
  with pytest.raises(InputError) as error:
    open_source(config, split)
  assert '\n' not in str(error.value)
  return str(error.value)


# The source string.


@pytest.mark.parametrize('source', ['', 'folder', 'folder:', 'floder:data', ':data', 'sample:faces'])
def test_malformed_source_is_refused(source):
  message = message_of(config_of(source))
  assert 'config.data.source' in message
  if source == 'floder:data':
    assert "did you mean 'folder'" in message and 'idx' in message


@pytest.mark.parametrize('kind', ['folder', 'cifar', 'idx', 'arrayrecord'])
def test_missing_and_empty_places_are_named(kind, tmp_path):
  assert 'does not exist' in message_of(config_of(f'{kind}:{tmp_path}/none'))
  assert str(tmp_path) in message_of(config_of(f'{kind}:{tmp_path}'))
  (tmp_path / 'file').write_bytes(b'')
  assert 'not a directory' in message_of(config_of(f'{kind}:{tmp_path}/file'))


# folder


def test_folder_with_splits(tmp_path):
  save_image(tmp_path / 'train' / 'dog' / 'b.JPEG', 1)
  save_image(tmp_path / 'train' / 'cat' / 'deep' / 'a.png', 2)
  save_image(tmp_path / 'train' / 'cat' / '.hidden' / 'a.png')
  (tmp_path / 'train' / 'cat' / 'notes.txt').write_text('x')
  save_image(tmp_path / 'elsewhere' / 'c.webp', 3)
  (tmp_path / 'train' / 'dog' / 'linked.webp').symlink_to(tmp_path / 'elsewhere' / 'c.webp')
  (tmp_path / 'train' / 'cat' / 'loop').symlink_to(tmp_path / 'train' / 'cat', target_is_directory=True)
  save_image(tmp_path / 'val' / 'dog' / 'd.png', 4)
  save_image(tmp_path / 'test' / 'x.png', 5)
  config = config_of(f'folder:{tmp_path}')
  train, test = open_source(config, 'train'), pickle.loads(pickle.dumps(open_source(config, 'test')))
  assert train.classes == test.classes == ('cat', 'dog')
  names = [train.name(i) for i in range(len(train))]
  assert {os.path.relpath(name, tmp_path / 'train') for name in names} >= {'cat/deep/a.png', 'dog/b.JPEG', 'dog/linked.webp'}
  for index, name in enumerate(names):
    example = train.read(index)
    assert example['label'] == ('dog' in name) and example['image'] == Path(name).read_bytes()
  assert len(test) == 1 and test.read(0)['label'] == 1 and test.name(0).endswith('val/dog/d.png')


def test_folder_of_classes_without_splits(tmp_path):
  for name in ('a', 'b'):
    for number in range(10):
      save_image(tmp_path / name / f'{number}.png')
  assert len(open_source(config_of(f'folder:{tmp_path}'), 'train')) == 20
  assert 'config.data.holdout' in message_of(config_of(f'folder:{tmp_path}'), 'test')
  config = config_of(f'folder:{tmp_path}', holdout=0.25)
  train, test = open_source(config, 'train'), open_source(config, 'test')
  train_names, test_names = ({source.name(i) for i in range(len(source))} for source in (train, test))
  assert len(train_names) == 15 and len(test_names) == 5 and not train_names & test_names
  config.seed = 2
  assert test_names == {open_source(config, 'test').name(i) for i in range(5)}, 'the held-out part depends on the seed'
  assert pickle.loads(pickle.dumps(test)).read(0) == test.read(0) and test.classes == ('a', 'b')
  config.data.holdout = 1.5
  assert 'holdout' in message_of(config)


def test_flat_folder_has_no_labels(tmp_path):
  save_image(tmp_path / 'b.gif', 0, 'L')
  save_image(tmp_path / 'a.bmp')
  source = open_source(config_of(f'folder:{tmp_path}'), 'train')
  assert source.classes == () and source.read(1)['label'] == -1 and source.name(0).endswith('a.bmp')


def test_folder_mistakes_are_named(tmp_path):
  (tmp_path / 'empty' / 'cat').mkdir(parents=True)
  assert 'no images' in message_of(config_of(f'folder:{tmp_path}/empty'))
  save_image(tmp_path / 'new' / 'train' / 'cat' / 'a.png')
  save_image(tmp_path / 'new' / 'val' / 'cow' / 'a.png')
  assert "'cow'" in message_of(config_of(f'folder:{tmp_path}/new'), 'test')
  save_image(tmp_path / 'alone' / 'val' / 'cow' / 'a.png')
  assert 'no train/' in message_of(config_of(f'folder:{tmp_path}/alone'))


# cifar


def write_cifar(folder, names, train_files, test_file, meta, labels_key, names_key, protocol=2):
  folder.mkdir(parents=True)
  rng = np.random.default_rng(0)
  images, labels = {}, {}
  for file in [*train_files, test_file]:
    images[file], labels[file] = rng.integers(0, 256, (4, 3072), np.uint8), rng.integers(len(names), size=4).tolist()
    batch = {b'data': images[file], labels_key: labels[file], b'batch_label': b'a batch'}
    (folder / file).write_bytes(pickle.dumps(batch, protocol))
  (folder / meta).write_bytes(pickle.dumps({names_key: [name.encode() for name in names]}, 4))
  return images, labels


def test_cifar10(tmp_path):
  files = [f'data_batch_{i}' for i in range(1, 6)]
  folder, names = tmp_path / 'cifar-10-batches-py', ('plane', 'bird')
  # Protocol 4 writes bytes as bytes; the published files are protocol 2 from Python 2 (see the test on real data).
  images, labels = write_cifar(folder, names, files, 'test_batch', 'batches.meta', b'labels', b'label_names', 4)
  for place in (tmp_path, folder):
    train, test = (open_source(config_of(f'cifar:{place}'), split) for split in ('train', 'test'))
    assert len(train) == 20 and len(test) == 4 and train.classes == names
    pixels = train.read(6)['image']  # third channel, row 5, column 7 of the second batch's third image
    assert pixels.shape == (32, 32, 3) and pixels[5, 7, 2] == images['data_batch_2'][2, 2 * 1024 + 5 * 32 + 7]
    assert [test.read(i)['label'] for i in range(4)] == labels['test_batch']
  (folder / 'data_batch_3').write_bytes((folder / 'data_batch_3').read_bytes()[:500])
  assert 'data_batch_3' in message_of(config_of(f'cifar:{folder}'))


def test_cifar100_uses_fine_labels(tmp_path):
  write_cifar(tmp_path / 'c', ('a', 'b', 'c'), ['train'], 'test', 'meta', b'fine_labels', b'fine_label_names', 4)
  source = open_source(config_of(f'cifar:{tmp_path}/c'), 'test')
  assert len(source) == 4 and source.classes == ('a', 'b', 'c')


class _TouchesFile:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.system, (f'touch {self.path}',)


def test_cifar_pickle_with_anything_else_is_refused_by_name(tmp_path):
  files = [f'data_batch_{i}' for i in range(1, 6)]
  write_cifar(tmp_path / 'c', ('a',), files, 'test_batch', 'batches.meta', b'labels', b'label_names', 4)
  (tmp_path / 'c' / 'data_batch_1').write_bytes(pickle.dumps({b'data': _TouchesFile(tmp_path / 'touched')}))
  message = message_of(config_of(f'cifar:{tmp_path}/c'))
  assert 'system' in message and 'data_batch_1' in message
  assert not (tmp_path / 'touched').exists()


# idx


def write_idx(path, array, magic=None):
  header = bytes((0, 0, 8, array.ndim)) if magic is None else magic
  content = header + struct.pack(f'>{array.ndim}I', *array.shape) + array.tobytes()
  path.write_bytes(gzip.compress(content) if path.suffix == '.gz' else content)


@pytest.mark.parametrize('suffix', ['', '.gz'])
def test_idx(tmp_path, suffix):
  images, labels = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3), np.array([0, 3, 1, 2, 9], np.uint8)
  for prefix, count in (('train', 5), ('t10k', 2)):
    write_idx(tmp_path / f'{prefix}-images-idx3-ubyte{suffix}', images[:count])
    write_idx(tmp_path / f'{prefix}-labels-idx1-ubyte{suffix}', labels[:count])
  train, test = (open_source(config_of(f'idx:{tmp_path}'), split) for split in ('train', 'test'))
  assert len(train) == 5 and len(test) == 2 and train.classes == tuple('0123456789')
  np.testing.assert_array_equal(train.read(4)['image'], images[4])
  assert train.read(4)['label'] == 9


def test_idx_mistakes_are_named(tmp_path):
  images, labels = tmp_path / 'train-images-idx3-ubyte', tmp_path / 'train-labels-idx1-ubyte'
  write_idx(images, np.zeros((5, 4, 4), np.uint8))
  config = config_of(f'idx:{tmp_path}')
  assert labels.name in message_of(config)
  write_idx(labels, np.zeros(4, np.uint8))
  assert '5 images' in message_of(config) and '4 labels' in message_of(config)
  write_idx(labels, np.zeros(5, np.uint8))
  write_idx(images, np.zeros((5, 4, 4), np.uint8), magic=b'\x89PNG')
  assert '89504e47, not 00000803' in message_of(config)
  write_idx(images, np.zeros((5, 4, 4), np.uint8))
  images.write_bytes(images.read_bytes()[:-1])
  assert '79 bytes' in message_of(config)
  images.unlink()
  (tmp_path / f'{images.name}.gz').write_bytes(gzip.compress(bytes(1000))[:-12])
  assert 'cannot be read' in message_of(config)


# sample


def test_sample_shapes():
  config = config_of('sample:shapes')
  train, test = open_source(config, 'train'), open_source(config, 'test')
  assert len(train.classes) == 8
  labels = np.array([train.read(i)['label'] for i in range(len(train))])
  assert np.bincount(labels).min() > len(train) / 8 * 0.9
  images = [np.stack([source.read(i)['image'] for i in range(200)]) for source in (train, test)]
  assert images[0].shape == (200, 32, 32) and images[0].dtype == np.uint8
  assert not (images[0][:, None] == images[1][None]).all((-1, -2)).any(), 'train and test share an image'
  config.seed = 2
  fresh_test, same_train = open_source(config, 'test'), open_source(config, 'train')
  assert not np.array_equal(fresh_test.read(0)['image'], test.read(0)['image'])
  np.testing.assert_array_equal(same_train.read(7)['image'], train.read(7)['image'])
  # The figure is bright on dark: filled figures cover more than the thin bar does.
  bright = {name: np.mean([np.mean(train.read(i)['image'] > 140) for i in np.flatnonzero(labels == label)[:200]])
            for label, name in enumerate(train.classes)}  # fmt: skip
  assert bright['disc'] > bright['crescent'] > 0.02 and bright['disc'] > bright['bar'] > 0.02


# Real files, where they are.


@pytest.mark.skipif(not IMAGES.is_dir(), reason=f'the optional data sets are not in {IMAGES}')
@pytest.mark.parametrize(
  ('source', 'train', 'test', 'classes', 'mean'),
  [
    ('folder:{}/cifar10-imagefolder-small', 1000, 200, 10, 120),
    ('cifar:{}/cifar10-python-small', 2000, 400, 10, 120),
    ('idx:{}/fashion-mnist', 60_000, 10_000, 10, 73),
    ('folder:{}/flowers5-128', 3591, 716, 5, 110),
  ],
)
def test_real_files(source, train, test, classes, mean):
  config = config_of(source.format(IMAGES))
  for split, count in (('train', train), ('test', test)):
    opened = open_source(config, split)
    assert len(opened) == count and len(opened.classes) == classes
    examples = [opened.read(i) for i in np.linspace(0, count - 1, 120, dtype=int)]
    assert len({example['label'] for example in examples}) == classes
    assert abs(np.mean([eval_image(example['image'], 32).mean() for example in examples]) - mean) < 25
