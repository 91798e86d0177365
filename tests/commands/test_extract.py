"""`extract`: the model's own features of the user's files, under their names."""

import jax
import numpy as np
import pytest
from PIL import Image

import d2v_jax
from d2v_jax.checkpoints import manager
from d2v_jax.data.images import eval_image
from d2v_jax.errors import InputError, RunError
from d2v_jax.extract import extract
from d2v_jax.methods.data2vec2 import Data2vec2
from tests.train import tiny


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  folder = tmp_path_factory.mktemp('weights') / 'checkpoint'
  config = tiny.get_config()
  manager.save_weights(folder, tiny.random_params(Data2vec2(config), 0), None, config)
  return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Seventy images, more than one batch, of several sizes and depths of folder."""
  root = tmp_path_factory.mktemp('files')
  rng = np.random.default_rng(0)
  for number in range(70):
    path = root / ('', 'b', 'a/deep')[number % 3] / f'{number:02d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (16 + number % 5, 16 + number % 7, 3), np.uint8)).save(path)
  (root / 'notes.txt').write_text('no image')
  return root


def expected_features(weights, folder, names):
  images = np.stack([eval_image((folder / name).read_bytes(), 16) for name in names])
  return np.asarray(d2v_jax.load(weights).features(images))


def test_features_are_the_models_in_the_order_of_the_names(weights, folder, tmp_path):
  extract(str(weights), str(folder), str(tmp_path / 'out.npz'))
  with np.load(tmp_path / 'out.npz', allow_pickle=False) as found:
    assert set(found.files) == {'files', 'features', 'grid'}
    names = found['files'].tolist()
    assert names == sorted(str(path.relative_to(folder)) for path in folder.rglob('*.png'))
    assert found['features'].shape == (70, 16, 16) and found['features'].dtype == np.float32
    assert found['grid'].tolist() == [4, 4]
    np.testing.assert_allclose(found['features'], expected_features(weights, folder, names), atol=1e-5)
    assert np.ptp(found['features'], axis=0).min() > 1e-3  # the files are told apart


def test_pooled_features_and_the_command(weights, folder, tmp_path):
  """With two unreadable files, one in each batch: they are named and left out."""
  copied = tmp_path / 'files'
  for path in folder.rglob('*.png'):
    target = copied / path.relative_to(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b'damaged' if path.name in ('01.png', '68.png') else path.read_bytes())
  arguments = (f'--checkpoint={weights}', f'--input={copied}', f'--output={tmp_path / "out.npz"}', '--pool=mean')
  done = tiny.run('extract', *arguments)
  assert done.returncode == 0, done.stderr
  for name in ('01.png', '68.png'):
    assert sum(name in line for line in done.stderr.splitlines()) == 1
  with np.load(tmp_path / 'out.npz') as found:
    names = found['files'].tolist()
    assert len(names) == 68 and not {'01.png', '68.png'} & {name.rpartition('/')[2] for name in names}
    np.testing.assert_allclose(found['features'], expected_features(weights, copied, names).mean(1), atol=1e-5)


def test_one_file(weights, folder, tmp_path):
  extract(str(weights), str(folder / 'b' / '01.png'), str(tmp_path / 'out.npz'))
  with np.load(tmp_path / 'out.npz') as found:
    assert found['files'].tolist() == ['01.png']
    np.testing.assert_allclose(found['features'], expected_features(weights, folder / 'b', ['01.png']), atol=1e-5)


def test_no_readable_file_is_an_error_and_leaves_no_output(weights, tmp_path):
  (tmp_path / 'bad.png').write_bytes(b'damaged')
  with pytest.raises(InputError, match=r'--input: all unreadable.*bad\.png'):
    extract(str(weights), str(tmp_path), str(tmp_path / 'out.npz'))
  assert not list(tmp_path.glob('*out*'))


def test_output_that_cannot_be_written(weights, folder, tmp_path):
  (tmp_path / 'taken.npz').mkdir()
  with pytest.raises(RunError, match=r'--output: cannot write .*taken\.npz'):
    extract(str(weights), str(folder / 'b' / '01.png'), str(tmp_path / 'taken.npz'))
  assert [path.name for path in tmp_path.iterdir()] == ['taken.npz']


def test_teacherless_float32_features_whatever_the_run_used(folder, tmp_path):
  config = tiny.get_config()
  params = tiny.random_params(Data2vec2(config), 0)
  features = {}
  for dtype in ('bfloat16', 'float32'):
    config.dtype = dtype
    manager.save_weights(tmp_path / dtype, params, None, config)
    features[dtype] = d2v_jax.load(tmp_path / dtype).features(np.zeros((1, 16, 16, 3), np.uint8))
  jax.tree.map(np.testing.assert_array_equal, features['bfloat16'], features['float32'])
