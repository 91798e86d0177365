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
from d2v_jax.data.tokenizer import framed, padded, train_tokenizer
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


# --- text

LINES = {  # file -> what it holds, and its lines that are not blank, by their numbers
  'b.txt': (b'\xef\xbb\xbfthe river\r\n \t\r\n  the old dog  \r\n', {1: 'the river', 3: '  the old dog  '}),
  'a/deep/many.TXT': (
    ''.join(f'{"the rain " * (number % 4)}{number}\n' for number in range(1, 24)).encode(),
    {number: f'{"the rain " * (number % 4)}{number}' for number in range(1, 24)},
  ),
  'a/long.txt': ('\n\n' + 'É 👍🏽 漢字 the sea. ' * 4, {3: 'É 👍🏽 漢字 the sea. ' * 4}),
  'empty.txt': (b'', {}),
  'notes.md': (b'not read', {}),
}


@pytest.fixture(scope='module')
def text_model(tmp_path_factory):
  """(checkpoint, the same without tokenizer, folder with the tokenizer): of at most 32 tokens."""
  root = tmp_path_factory.mktemp('weights')
  config = tiny.text_config()
  params = tiny.random_params(Data2vec2(config), 0)
  tokenizer = train_tokenizer(['the river the rain the sea the old dog'] * 2, 300)
  manager.save_weights(root / 'text', params, None, config, {'tokenizer': tokenizer.to_text()})
  manager.save_weights(root / 'bare', params, None, config)
  for folder, saved in (('tokenizer', tokenizer), ('other', train_tokenizer(['a cat'] * 2, 300))):
    (root / folder).mkdir()
    (root / folder / 'tokenizer.json').write_text(saved.to_text())
  (root / 'smaller.json').write_text(train_tokenizer(['a'], 299).to_text())
  return root


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  root = tmp_path_factory.mktemp('texts')
  for name, (content, _) in LINES.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
  return root


def of_texts(text_model):
  """For each file and line number: the line, its features and its offsets, by the model itself."""
  model = d2v_jax.load(text_model / 'text')
  long = LINES['a/long.txt'][1][3]
  long_ids, long_offsets = model.tokenizer.encode_with_offsets(long.strip())
  assert 60 < len(long_ids) < 90  # the model takes 30 at once, and <s> and </s>
  lines = [(name, *line) for name in sorted(LINES) for line in LINES[name][1].items()]
  encoded = [model.tokenizer.encode_framed(line) for _, _, line in lines if line != long]
  parts = [framed(long_ids[start : start + 30]) for start in (0, 30, 60)]
  features = np.asarray(model.features(*padded([ids for ids, _ in encoded] + parts)))
  features = [rows[1 : len(ids) - 1] for rows, ids in zip(features, [ids for ids, _ in encoded] + parts)]
  offsets = [offsets[1:-1] for _, offsets in encoded]
  place = [line for _, _, line in lines].index(long)
  features.insert(place, np.concatenate(features[-3:]))
  offsets.insert(place, long_offsets)
  return [(*line, *found) for line, *found in zip(lines, features[:-3], offsets, strict=True)]


def test_features_of_texts(text_model, texts, tmp_path, monkeypatch, fast):
  monkeypatch.setattr(d2v_jax.extract, '_BATCH_TOKENS', 64)  # several batches, of several lengths
  monkeypatch.setattr(d2v_jax.extract, '_LENGTH_STEP', 8)
  extract(str(text_model / 'text'), str(texts), str(tmp_path / 'out.npz'))
  extract(str(text_model / 'text'), str(texts), str(tmp_path / 'mean.npz'), 'mean')
  names, numbers, lines, features, offsets = zip(*of_texts(text_model), strict=True)
  assert len(lines) == 26
  with np.load(tmp_path / 'out.npz', allow_pickle=False) as found, np.load(tmp_path / 'mean.npz') as mean:
    assert set(found.files) == {'files', 'lines', 'texts', 'features', 'offsets', 'starts'}
    assert set(mean.files) == {'files', 'lines', 'texts', 'features'}
    for arrays in (found, mean):
      assert (arrays['files'].tolist(), arrays['lines'].tolist()) == (list(names), list(numbers))
      assert arrays['texts'].tolist() == list(lines)
    assert found['lines'].dtype == found['starts'].dtype == found['offsets'].dtype == np.int64
    assert found['features'].dtype == mean['features'].dtype == np.float32
    assert found['starts'].tolist() == np.cumsum([0, *map(len, features)]).tolist()
    np.testing.assert_allclose(found['features'], np.concatenate(features), atol=1e-4)
    np.testing.assert_array_equal(found['offsets'], np.concatenate(offsets))
    np.testing.assert_allclose(mean['features'], [rows.mean(0) for rows in features], atol=1e-4)
    assert np.ptp(found['features'], axis=0).min() > 1e-3  # the texts are told apart
    # Offsets point into the line as it is.
    dog = names.index('b.txt') + 1
    words = [found['texts'][dog][start:end] for start, end in found['offsets'][slice(*found['starts'][dog : dog + 2])]]
    assert ''.join(words) == 'the old dog' and words[:2] == ['the', ' old']


def test_the_command_on_one_text_file_with_a_tokenizer(text_model, tmp_path):
  path = tmp_path / 'book'  # of any name
  path.write_text('\nthe river\nthe 👍\n')
  arguments = (f'--input={path}', f'--output={tmp_path / "out.npz"}')
  options = (f'--checkpoint={text_model / "bare"}', f'--tokenizer={text_model / "tokenizer"}')
  done = tiny.run('extract', *options, *arguments)
  assert done.returncode == 0, done.stderr
  assert '1 files: features [8, 16]' in done.stderr
  model = d2v_jax.load(text_model / 'text')
  with np.load(tmp_path / 'out.npz', allow_pickle=False) as found:
    assert (found['files'].tolist(), found['lines'].tolist()) == (['book'] * 2, [2, 3])
    assert found['texts'].tolist() == ['the river', 'the 👍'] and found['starts'].tolist() == [0, 2, 8]
    assert found['offsets'].tolist() == [[0, 3], [3, 9], [0, 3], [3, 4], *[[4, 5]] * 4]
    features = np.asarray(model.features(['the river', 'the 👍']))
    np.testing.assert_allclose(found['features'], np.concatenate([features[0, 1:3], features[1, 1:7]]), atol=1e-4)
  path.write_bytes(b'fine\ncaf\xe9 noir')
  said = tiny.message(tiny.run('extract', *options, *arguments), 2)
  assert said.startswith(f'--input: {path}: byte 0xe9 at offset 8 is not UTF-8') and 'iconv -f LATIN1' in said


@pytest.mark.parametrize(
  ('content', 'said'),
  [
    (None, r'--input: .* holds no \*\.txt files at any depth'),
    (b'a\0b', r'--input: .*x\.txt: byte 0 at offset 1 '),
    (b'ok\n\xe9', r'--input: .*x\.txt: byte 0xe9 at offset 3 is not UTF-8'),
    (b' \n\t\r\n\n', r'--input: .* holds no text: all lines are blank'),
    (b'', r'--input: .* holds no text'),
    (b'a\nthe sea and more', r'--input: .*x\.txt:2: has 16 characters; .* 2 lines, .* break long lines up'),
  ],
)
def test_texts_that_cannot_be_read(text_model, tmp_path, content, said, monkeypatch):
  monkeypatch.setattr(d2v_jax.extract, '_MOST_TEXT', 100)
  if content is not None:
    (tmp_path / 'x.txt').write_bytes(content)
  with pytest.raises(InputError, match=said) as error:
    extract(str(text_model / 'text'), str(tmp_path), str(tmp_path / 'out.npz'))
  assert '\n' not in str(error.value) and not (tmp_path / 'out.npz').exists()


def test_tokenizers_that_cannot_be_used(text_model, weights, folder, texts, tmp_path):
  golden = tiny.ROOT / 'tests' / 'golden' / 'd2v2_text' / 'checkpoint.pt'
  for checkpoint, given, said in (
    (text_model / 'bare', '', r'--tokenizer: missing; .*bare has none'),
    (golden, '', r'--tokenizer: missing; .*checkpoint\.pt has none'),
    (golden, text_model / 'tokenizer', r'--tokenizer: the tokenizer has 300 entries, .* model 40'),
    (text_model / 'bare', text_model / 'smaller.json', r'--tokenizer: the tokenizer has 299 entries'),
    (text_model / 'bare', text_model / 'bare', r'--tokenizer: .*bare: is a model of text, without tokenizer; give'),
    (text_model / 'bare', tmp_path / 'nowhere', r'--tokenizer: .*nowhere: cannot be read'),
    (text_model / 'text', text_model / 'other', r'--tokenizer: .*other is another tokenizer than that of .*text; leave it'),
    (weights, text_model / 'tokenizer', r'--tokenizer: .* is a model of image, which has none; leave it out'),
  ):
    source = folder if checkpoint == weights else texts
    with pytest.raises(InputError, match=said) as error:
      extract(str(checkpoint), str(source), str(tmp_path / 'out.npz'), tokenizer=str(given) if given else '')
    assert '\n' not in str(error.value) and 'config.' not in str(error.value)
  assert not (tmp_path / 'out.npz').exists()
