"""Speech that is wrong: one line and exit code 2, or left out, named and counted, and the run goes on."""

import numpy as np
import pytest
import soundfile

from d2v_jax.checkpoints import manager
from d2v_jax.errors import InputError
from d2v_jax.methods.data2vec2 import Data2vec2
from d2v_jax.train.loop import train_and_evaluate
from d2v_jax.train.workdir import open_workdir
from tests.train import tiny, tiny_speech

LONG = 40 * 60  # seconds


def clip(path, seconds=0.6, text=None, **options):
  """Writes a clip, and its transcript beside it."""
  tiny.write_tone(path, seconds, **options)
  if text is not None:
    path.with_suffix('.txt').write_text(text)


def long_recording(path):
  soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, LONG * 8_000), 8_000, subtype='PCM_U8')


def clip_with_nan(path, seconds):
  wave = np.full(round(seconds * 16_000), 0.1)
  wave[100] = np.nan
  soundfile.write(path, wave, 16_000, subtype='FLOAT')


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
  """What untidy folders hold: eight clips that can be used, a recording of 40 minutes, and five files that cannot."""
  root = tmp_path_factory.mktemp('recordings')
  clip(root / 'a' / 'plain.wav')
  clip(root / 'a' / '8_bit.wav', 0.7, subtype='PCM_U8')
  clip(root / 'a' / '24_bit.wav', 0.8, subtype='PCM_24')
  clip(root / 'a' / 'float.wav', 0.9, subtype='FLOAT')
  clip(root / 'b' / 'stereo.wav', 0.6, channels=2)
  clip(root / 'b' / 'slow.flac', 0.7, rate=11_025)
  clip(root / 'b' / 'misnamed.flac', 0.8, format='WAV')
  clip(root / 'b' / 'misnamed.mp3', 0.9, format='OGG')
  long_recording(root / 'long.wav')
  (root / 'text.flac').write_text('no sound')
  (root / 'nothing.wav').touch()
  clip(root / 'no_samples.wav', 0)
  clip(root / 'short.wav', 0.4)
  clip_with_nan(root / 'nan.wav', 0.6)
  return root


def trained(done, workdir):
  """The counts of a run that went through, and what it warned of."""
  assert done.returncode == 0, done.stderr
  result = tiny.json.loads((workdir / 'result.json').read_text())
  assert result['steps'] == 6 and np.isfinite(result['train/loss']) and result['train/skipped_updates'] == 0
  counts = {name.removeprefix('data/'): value for name, value in result.items() if name.startswith('data/')}
  return counts, [line for line in done.stderr.splitlines() if line.startswith('W')]


def one_line_with(lines, *parts):
  found = [line for line in lines if str(parts[0]) in line]
  assert len(found) == 1, lines
  for part in parts:
    assert str(part) in found[0]


def says(text, *parts):
  for part in parts:
    assert str(part) in text, f'{part!r} is not in: {text}'


def test_pretraining_on_an_untidy_folder(recordings, tmp_path):
  done = tiny.run('main', *tiny.speech_arguments('pretrain', f'folder:{recordings}', tmp_path / 'run'))
  counts, warnings = trained(done, tmp_path / 'run')
  assert counts == {'unreadable': 1, 'dropped/unreadable': 2, 'dropped/too_short': 2}
  assert '1 recordings longer than 60 s are read as 40 clips' in done.stderr
  one_line_with(warnings, recordings / 'nan.wav', 'unreadable, skipped', 'not finite')
  one_line_with(warnings, recordings / 'nothing.wav', 'unreadable: 2 of 53 clips', 'empty file')
  one_line_with(warnings, recordings / 'no_samples.wav', 'too_short: 2 of 53 clips', '0 samples', '0.5 s are needed')


def test_fine_tuning_on_untidy_transcripts(tmp_path):
  root = tmp_path / 'clips'
  for number, text in enumerate(('Low', "it's high?", 'TONE', 'naïve -- yes')):
    clip(root / f'good{number}.wav', 0.35 + 0.15 * number, text=text)
  clip(root / 'none.wav')
  clip(root / 'blank.wav', text=' \n')
  clip(root / 'digits.wav', text='twenty 4')
  clip(root / 'cyrillic.wav', text='да')
  clip(root / 'latin.wav')
  (root / 'latin.txt').write_bytes('naïve'.encode('latin-1'))
  clip(root / 'no_samples.wav', 0, text='nothing')
  long_recording(root / 'long.wav')
  (root / 'long.txt').write_text('forty minutes')
  clip_with_nan(root / 'nan.wav', 0.4)
  (root / 'nan.txt').write_text('no')
  done = tiny.run('main', *tiny.speech_arguments('ctc', f'folder:{root}', tmp_path / 'run', '--config.eval_every=0'))
  counts, warnings = trained(done, tmp_path / 'run')
  dropped = {'too_short': 1, 'too_long': 1, 'no_transcript': 1, 'empty_transcript': 1, 'bad_transcript': 3}
  assert counts == {'unreadable': 1} | {f'dropped/{reason}': count for reason, count in dropped.items()}
  one_line_with(warnings, 'too_long', root / 'long.wav', '2400.000 s', '1 s are allowed')
  one_line_with(warnings, 'no_transcript', root / 'none.wav')
  one_line_with(warnings, 'empty_transcript', root / 'blank.wav')
  one_line_with(warnings, 'bad_transcript', root / 'cyrillic.wav', 'not in the vocabulary', 'Д')
  one_line_with(warnings, root / 'nan.wav', 'unreadable, skipped', 'not finite')


def test_a_manifest_with_a_wrong_frame_count(tmp_path):
  """Such a clip is unreadable; with more of them than are allowed the run stops."""
  lines = [str(tmp_path / 'clips')]
  for number in range(5):
    clip(tmp_path / 'clips' / f'{number}.wav', 0.6 + 0.5 * (number > 2))
    frames = soundfile.info(tmp_path / 'clips' / f'{number}.wav').frames
    lines.append(f'{number}.wav\t{frames + 1 if number == 1 else frames}')
  (tmp_path / 'train.tsv').write_text('\n'.join(lines) + '\n')
  arguments = tiny.speech_arguments('pretrain', f'manifest:{tmp_path}', tmp_path / 'run', '--config.data.max_unreadable=0')
  text = tiny.message(tiny.run('main', *arguments), 2)
  says(text, 'config.data.source: 1 examples could not be read', 'config.data.max_unreadable=0 are allowed')
  says(text, tmp_path / 'clips' / '1.wav', 'has 9600 frames at 16000 Hz', 'manifest', 'says 9601 at 16000 Hz')


# --- refused before anything is trained


def refusal(task, source, workdir, **fields):
  """The one line that `main` ends with, with exit code 2; nothing is left of a run that could not begin."""
  config = tiny_speech.get_config(task)
  config.data.source = str(source)
  config.update_from_flattened_dict(fields)
  with pytest.raises(InputError) as caught:
    train_and_evaluate(config, workdir)
  assert '\n' not in str(caught.value) and not workdir.exists()
  return str(caught.value)


@pytest.fixture
def clips(tmp_path):
  """Two clips with transcripts for training, two for the test."""
  for part in ('train', 'val'):
    clip(tmp_path / 'clips' / part / '0.wav', 0.6, text='low')
    clip(tmp_path / 'clips' / part / '1.wav', 0.7, text='high')
  return tmp_path / 'clips'


def test_a_folder_without_audio(tmp_path):
  (tmp_path / 'images').mkdir()
  (tmp_path / 'images' / 'a.png').touch()
  done = tiny.run('main', *tiny.speech_arguments('pretrain', f'folder:{tmp_path / "images"}', tmp_path / 'run'))
  says(tiny.message(done, 2), f'config.data.source: {tmp_path / "images"} holds no audio', '.wav', '.flac')
  assert not (tmp_path / 'run').exists()


def test_nothing_that_can_be_used(tmp_path):
  root = tmp_path / 'bad'
  root.mkdir()
  for name in ('a.wav', 'b.flac'):
    (root / name).write_text('no sound')
  text = refusal('pretrain', f'folder:{root}', tmp_path / 'run')
  says(text, 'config.data.source: none of 2 clips', 'unreadable: 2 of 2', root / 'a.wav', 'format not recognised')
  for name, seconds in (('a.wav', 0.4), ('b.flac', 0.1)):
    clip(root / name, seconds)
  text = refusal('pretrain', f'folder:{root}', tmp_path / 'run')
  says(text, 'config.data.source: none of 2 clips', 'too_short: 2 of 2', root / 'a.wav', '0.400 s', '0.5 s are needed')
  text = refusal('ctc', f'folder:{root}', tmp_path / 'run', eval_every=0)
  says(text, 'config.data.source: none of 2 clips', 'no_transcript: 2 of 2', root / 'a.wav')


def test_no_part_to_evaluate_on(clips, tmp_path):
  text = refusal('ctc', f'folder:{clips / "train"}', tmp_path / 'run')
  says(text, 'config.data.source: ', 'no test part', 'config.data.holdout=0.1', 'config.eval_every=0')


def test_an_evaluation_of_pretrained_features_without_labels(clips, tmp_path):
  text = refusal('pretrain', f'folder:{clips}', tmp_path / 'run', eval_every=3)
  says(text, 'config.eval_every: speech has no labels', 'config.eval_every=0', 'configs/finetune/ctc')


@pytest.mark.parametrize(
  ('fields', 'parts'),
  [
    ({'data.bucket_seconds': (1.0, 0.5)}, ('config.data.bucket_seconds', '(1.0, 0.5)', 'ascending')),
    ({'data.rows_multiple': 2}, ('config.data.rows_multiple: 2 is not divisible by 4 devices', 'multiple of 4')),
    ({'data.source': 'cifar:x'}, ('config.data.source', "'cifar:x'", 'manifest', 'folder', 'on audio')),
  ],
)
def test_fields_that_cannot_work(clips, tmp_path, fields, parts):
  says(refusal('pretrain', f'folder:{clips}', tmp_path / 'run', **fields), *parts)


def test_buckets_that_the_devices_cannot_share(clips, tmp_path):
  """As commands: a field that is a tuple, and a number of devices."""
  arguments = tiny.speech_arguments('ctc', f'folder:{clips}', tmp_path / 'run')
  text = tiny.message(tiny.run('main', *arguments, '--config.data.bucket_seconds=(1.0, 0.5)'), 2)
  says(text, 'config.data.bucket_seconds: found (1.0, 0.5)', 'ascending')
  text = tiny.message(tiny.run('main', *arguments, devices=3), 2)
  says(text, 'config.data.rows_multiple: 4 is not divisible by 3 devices', 'use a multiple of 3')


def test_language_models_that_cannot_be_read(clips, tmp_path):
  missing, damaged = tmp_path / 'missing.arpa', tmp_path / 'damaged.arpa'
  damaged.write_text('\\data\\\nngram 1=2\n\n\\1-grams:\n-1.0\tLOW\n')
  fields = lambda path: {'eval.language_model': str(path), 'eval.beam_width': 5}
  text = refusal('ctc', f'folder:{clips}', tmp_path / 'run', **fields(missing))
  says(text, missing, 'No such file', 'ARPA')
  text = refusal('ctc', f'folder:{clips}', tmp_path / 'run', **fields(missing) | {'eval.beam_width': 0})
  says(text, 'config.eval.language_model', 'config.eval.beam_width=50')
  text = refusal('ctc', f'folder:{clips}', tmp_path / 'run', **fields(damaged))
  says(text, f'{damaged} line 5', '\\end\\', 'complete language model')


def test_weights_of_images(clips, tmp_path):
  config = tiny.get_config()
  manager.save_weights(tmp_path / 'images', tiny.random_params(Data2vec2(config), 0), None, config)
  text = refusal('ctc', f'folder:{clips}', tmp_path / 'run', init_from=str(tmp_path / 'images'))
  says(text, f'{tmp_path / "images"}: is a model of image, config.modality is audio')


def test_the_workdir_of_the_pretraining(clips, tmp_path):
  config = tiny_speech.get_config()
  config.data.source = f'folder:{clips}'
  open_workdir(tmp_path / 'run', config)
  config = tiny_speech.get_config('ctc')
  config.data.source = f'folder:{clips}'
  with pytest.raises(InputError) as caught:
    train_and_evaluate(config, tmp_path / 'run')
  says(str(caught.value), f'--workdir: {tmp_path / "run"} holds a run with config.task=pretrain, now ctc', 'a new --workdir')
