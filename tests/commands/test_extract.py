"""`extract`: the model's own features of the user's files, under their names."""

import jax
import numpy as np
import pytest
from PIL import Image

import d2v_jax
import d2v_jax.extract
from d2v_jax.checkpoints import manager
from d2v_jax.config import default_config
from d2v_jax.data import audio
from d2v_jax.data.images import eval_image
from d2v_jax.errors import InputError, RunError
from d2v_jax.extract import extract
from d2v_jax.methods.data2vec2 import Data2vec2
from d2v_jax.model import Model
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


# --- speech


@pytest.fixture(scope='module')
def speech_weights(tmp_path_factory):
  """Weights of a narrow model with the front end of the released ones: frames of 25 ms, 20 ms apart."""
  folder = tmp_path_factory.mktemp('weights') / 'speech'
  config = tiny.speech_config()
  config.data.bucket_seconds = (0.5, 1.0)
  config.model.conv_layers = tuple((8, kernel, stride) for _, kernel, stride in default_config('audio').model.conv_layers)
  manager.save_weights(folder, tiny.random_params(Data2vec2(config), 0), None, config)
  return folder


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
  root = tmp_path_factory.mktemp('recordings')
  tiny.write_tone(root / 'b.wav', 0.6, 300)
  tiny.write_tone(root / 'a' / 'deep' / 'stereo.flac', 0.9, 500, 44_100, channels=2)
  tiny.write_tone(root / 'a' / 'one_frame.wav', 0.025, 400)
  tiny.write_tone(root / 'a' / 'short.wav', 0.0249, 400)
  tiny.write_tone(root / 'long.wav', 2.7, 700, 8_000)
  (root / 'text.wav').write_text('no sound')
  (root / 'notes.txt').write_text('no audio')
  return root


@pytest.fixture
def fast(monkeypatch):
  """Compiles models without optimising them."""
  monkeypatch.setattr(Model, '_run', tiny.fast_jit(Model._run.__wrapped__, static_argnums=0))


def own_features(weights, waves):
  """What the model by itself makes of clips: features [frames, width] of each."""
  model, lengths = d2v_jax.load(weights), [len(wave) for wave in waves]
  found = np.asarray(model.features(np.stack([np.pad(wave, (0, max(lengths) - len(wave))) for wave in waves]), lengths))
  return [rows[: (length - 400) // 320 + 1] for rows, length in zip(found, lengths)]


def test_features_of_recordings(speech_weights, recordings, tmp_path, caplog, fast):
  extract(str(speech_weights), str(recordings), str(tmp_path / 'out.npz'))
  extract(str(speech_weights), str(recordings), str(tmp_path / 'mean.npz'), 'mean')
  for name in ('a/short.wav', 'text.wav'):
    assert str(recordings / name) in caplog.text
  kept = ['a/deep/stereo.flac', 'a/one_frame.wav', 'b.wav', 'long.wav']
  features = own_features(speech_weights, [audio.decode(str(recordings / name)) for name in kept])
  with np.load(tmp_path / 'out.npz', allow_pickle=False) as found:
    assert set(found.files) == {'files', 'features', 'times', 'starts'}
    assert found['files'].tolist() == kept
    assert found['starts'].tolist() == np.cumsum([0, 44, 1, 29, 134]).tolist()
    assert found['features'].dtype == np.float32 and found['times'].dtype == np.float64
    np.testing.assert_allclose(found['features'], np.concatenate(features), atol=2e-5)
    # Frames of 25 ms, 20 ms apart.
    times = [0.0125 + 0.02 * np.arange(len(rows)) for rows in features]
    np.testing.assert_allclose(found['times'], np.concatenate(times), rtol=1e-12)
  with np.load(tmp_path / 'mean.npz', allow_pickle=False) as found:
    assert set(found.files) == {'files', 'features'} and found['files'].tolist() == kept
    np.testing.assert_allclose(found['features'], [rows.mean(0) for rows in features], atol=2e-5)
    assert np.ptp(found['features'], axis=0).min() > 1e-3  # the files are told apart


def test_long_recordings_are_encoded_in_parts(speech_weights, recordings, tmp_path, monkeypatch, fast):
  """Three of 0.9 s; the times go on from the beginning of the file."""
  monkeypatch.setattr(d2v_jax.extract, '_PART_SECONDS', 1.0)
  extract(str(speech_weights), str(recordings / 'long.wav'), str(tmp_path / 'out.npz'))
  ends = ((0, 7_200), (7_200, 14_400), (14_400, 21_600))
  features = own_features(speech_weights, [audio.decode(str(recordings / 'long.wav'), *part) for part in ends])
  with np.load(tmp_path / 'out.npz') as found:
    assert found['files'].tolist() == ['long.wav'] and found['starts'].tolist() == [0, 3 * 44]
    np.testing.assert_allclose(found['features'], np.concatenate(features), atol=2e-5)
    times = [start + 0.0125 + 0.02 * np.arange(44) for start in (0.0, 0.9, 1.8)]
    np.testing.assert_allclose(found['times'], np.concatenate(times), rtol=1e-12)


def test_files_of_the_other_kind(weights, speech_weights, folder, recordings, tmp_path):
  (tmp_path / 'text.wav').write_text('no sound')
  for model, source, said in (
    (speech_weights, folder, r'--input: .* holds no audio'),
    (weights, recordings, r'holds no images'),
    (speech_weights, tmp_path, r'--input: none of 1 clips can be used: unreadable.*text\.wav'),
  ):
    with pytest.raises(InputError, match=said):
      extract(str(model), str(source), str(tmp_path / 'out.npz'))
  assert not (tmp_path / 'out.npz').exists()
