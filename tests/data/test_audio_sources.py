"""Speech as users have it: found, cut, matched with its transcripts, and left out or refused by name where it is wrong."""

import dataclasses
import io
import json
import os
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from d2v_jax.config import default_config
from d2v_jax.data import audio, audio_sources, letters
from d2v_jax.data.records import encode_features, parse_example
from d2v_jax.data.sources import open_source
from d2v_jax.errors import InputError
from tests.data.test_records import write_array_record, write_tfrecord

SPEECH = Path(os.environ.get('D2V_DATA_DIR', Path(__file__).parents[3] / 'shared' / 'data')) / 'speech'


def config_of(source, task='ctc', **data):
  config = default_config('audio', task)
  config.data.source = str(source)
  config.data.update({'bucket_seconds': (0.5, 1.0, 2.0), **data})
  return config


def opened(source, split='train', **options):
  return open_source(config_of(source, **options), split)


def message_of(source, split='train', **options):
  with pytest.raises(InputError) as error:
    opened(source, split, **options)
  assert '\n' not in str(error.value)
  return str(error.value)


def noise(samples, seed=0):
  return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def write(path, samples=16_000, rate=16_000, text=None, seed=0, **options):
  """Writes noise to `path`, and `text` beside it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  wave = samples if isinstance(samples, np.ndarray) else noise(samples, seed)
  options.setdefault('format', None if path.suffix in ('.wav', '.flac') else 'WAV')
  soundfile.write(path, wave, rate, **options)
  if text is not None:
    path.with_suffix('.txt').write_text(text)


def names(source):
  return [Path(source.name(index)).name for index in range(len(source))]


# Clips


def test_source_of_clips(tmp_path):
  write(tmp_path / 'b.wav', 8_000, text='hello there')
  write(tmp_path / 'deep' / 'a.flac', 22_050, 22_050, text='world\n')
  write(tmp_path / '.hidden' / 'x.wav')
  write(tmp_path / '._b.wav')
  source = opened(f'folder:{tmp_path}')
  assert names(source) == ['b.wav', 'a.flac'] and source.classes == () and source.groups is None
  assert source.texts == ['hello there', 'world'] and list(source.has_text) == [True, True] and source.dropped == {}
  assert source.lengths.dtype == np.int64 and list(source.lengths) == [8_000, 16_000]
  for copy in (source, pickle.loads(pickle.dumps(source))):
    for index in range(2):
      example = copy.read(index)
      assert example['audio'].dtype == np.float32 and len(example['audio']) == copy.lengths[index]
      assert (example['text'], example['label']) == (copy.texts[index], -1)
  np.testing.assert_allclose(source.read(0)['audio'], noise(8_000), atol=1e-4)
  turned = source.take(np.array([1, 0, 1]))
  assert names(turned) == ['a.flac', 'b.wav', 'a.flac'] and turned.texts == ['world', 'hello there', 'world']
  assert list(turned.lengths) == [16_000, 8_000, 16_000] and list(turned.has_text) == [True] * 3


def test_long_recordings_are_read_in_parts(tmp_path):
  wave = noise(40 * 60 * 8_000 + 7)
  write(tmp_path / 'long.wav', wave, 8_000, subtype='FLOAT')
  write(tmp_path / 'short.wav', 60 * 16_000)
  start = time.perf_counter()
  source = opened(f'folder:{tmp_path}', task='pretrain', split_seconds=60.0)
  first = source.read(0)['audio']
  assert time.perf_counter() - start < 2
  assert len(source) == 42 and names(source)[1] == 'long.wav@58.54-117.07' and names(source)[-1] == 'short.wav'
  assert source.lengths.max() <= 60 * 16_000 and source.lengths[:41].min() > 58 * 16_000
  assert len(first) == source.lengths[0]
  # The parts are all of it, in order.
  np.testing.assert_array_equal(source.starts[1:41], source.stops[:40])
  assert source.starts[0] == 0 and source.stops[40] == len(wave)
  expected = audio.conform(wave[source.starts[5] : source.stops[5]], 8_000)
  np.testing.assert_allclose(source.read(5)['audio'], expected, atol=1e-6)
  # Parts of one recording are held out together.
  parts = {split: opened(f'folder:{tmp_path}', split, task='pretrain', holdout=0.5) for split in ('train', 'test')}
  assert sorted(len(part) for part in parts.values()) == [1, 41]


def test_clips_with_transcript_stay_whole(tmp_path):
  write(tmp_path / 'a.wav', 48_000, text='one')
  write(tmp_path / 'b.wav', 48_000)
  source = audio_sources.split_long(audio_sources.open_folder(str(tmp_path), 'train'), 1.0)
  assert names(source) == ['a.wav', 'b.wav@0.00-1.00', 'b.wav@1.00-2.00', 'b.wav@2.00-3.00']
  assert list(source.lengths) == [48_000, 16_000, 16_000, 16_000] and list(source.has_text) == [True, False, False, False]


def write_bad_clips(root):
  write(root / 'good.wav', text="It's fine")
  write(root / 'good8.wav', 8_000, 8_000, text='eight bits', subtype='PCM_U8')
  write(root / 'good24.wav', text='twenty four', subtype='PCM_24')
  write(root / 'stereo.wav', np.stack([noise(16_000)] * 2, 1), text='stereo', subtype='FLOAT')
  write(root / 'misnamed.flac', text='misnamed', format='WAV')
  (root / 'text.flac').write_text('THIS IS NO SOUND')
  write(root / 'none.wav', 0, text='nothing')
  write(root / 'click.wav', 399, text='a')
  write(root / 'long.wav', 32_001, text='long')
  write(root / 'mute.wav')
  write(root / 'mute2.wav')
  write(root / 'blank.wav', text=' \n')
  write(root / 'digits.wav', text='twenty 4')
  write(root / 'latin.wav')
  (root / 'latin.txt').write_bytes('naïve'.encode('latin-1'))


def test_what_cannot_be_used_is_left_out(tmp_path, caplog):
  write_bad_clips(tmp_path)
  source = opened(f'folder:{tmp_path}')
  assert names(source) == ['good.wav', 'good24.wav', 'good8.wav', 'misnamed.flac', 'stereo.wav']
  expected = {
    'unreadable': 1, 'too_short': 2, 'too_long': 1, 'no_transcript': 2, 'empty_transcript': 1, 'bad_transcript': 2,
  }  # fmt: skip
  assert source.dropped == expected and source.texts[0] == "It's fine"
  for index in range(len(source)):
    assert len(source.read(index)['audio']) == 16_000 and len(letters.encode(source.texts[index]))
  warnings = [record.getMessage() for record in caplog.records if 'left out' in record.getMessage()]
  assert len(warnings) == len(expected)
  for part in ('unreadable: 1 of 14 clips; the first: ' + str(tmp_path / 'text.flac') + ': not audio',
               'too_short: 2 of 14 clips; the first: ' + str(tmp_path / 'click.wav') + ': 0.025 s (399 samples',
               'mute.wav: no transcript', "digits.wav: characters that are not in the vocabulary: '4'"):  # fmt: skip
    assert any(part in warning for warning in warnings), part


def test_pretraining_needs_no_transcripts(tmp_path):
  write_bad_clips(tmp_path)
  source = opened(f'folder:{tmp_path}', task='pretrain', bucket_seconds=(1.5, 2.0))
  assert names(source) == ['long.wav'] and source.dropped == {'unreadable': 1, 'too_short': 12}
  assert len(opened(f'folder:{tmp_path}', task='pretrain', bucket_seconds=(1.0, 2.0))) == 11
  message = message_of(f'folder:{tmp_path}', task='pretrain', bucket_seconds=(3.0,))
  assert 'config.data.source' in message and 'unreadable: 1 of 14' in message and 'too_short: 13 of 14' in message


def test_samples_that_are_not_finite_are_found_when_read(tmp_path):
  wave = noise(16_000)
  wave[5] = np.nan
  write(tmp_path / 'nan.wav', wave, text='nan', subtype='FLOAT')
  with pytest.raises(ValueError, match='not finite'):
    opened(f'folder:{tmp_path}').read(0)


# librispeech


def write_librispeech(root, subset, speakers, transcribe=True):
  texts = {}
  for speaker in speakers:
    for chapter in (10, 11):
      folder = root / subset / str(speaker) / str(chapter)
      for number in range(2):
        name = f'{speaker}-{chapter}-{number:04d}'
        write(folder / f'{name}.flac', 10_000 + number, seed=number)
        texts[name] = f'WORD {"ABC"[number]}'
      if transcribe:
        lines = ''.join(f'{name} {text}\n' for name, text in texts.items() if name.startswith(f'{speaker}-{chapter}-'))
        (folder / f'{speaker}-{chapter}.trans.txt').write_text(lines)
  return texts


def test_librispeech(tmp_path):
  root = tmp_path / 'LibriSpeech'
  texts = write_librispeech(root, 'train-clean-100', (19, 26)) | write_librispeech(root, 'train-other-500', (7,))
  write_librispeech(root, 'dev-clean', (30,))
  write_librispeech(root, 'dev-other', (31,))
  write_librispeech(root, 'test-clean', (32,))
  (root / 'SPEAKERS.TXT').write_text('')
  for place in (root, tmp_path):
    train, test = opened(f'librispeech:{place}'), opened(f'librispeech:{place}', 'test')
    assert len(train) == 12 and len(test) == 8
    assert {name.removesuffix('.flac'): text for name, text in zip(names(train), train.texts)} == texts
    assert list(np.unique(train.groups)) == [7, 19, 26] and list(np.unique(test.groups)) == [30, 31]
    assert (train.lengths == [len(train.read(i)['audio']) for i in range(12)]).all()
  assert len(opened(f'librispeech:{root}/train-clean-100')) == 8
  assert len(opened(f'librispeech:{root}/train-clean-100/19')) == 4
  assert len(opened(f'librispeech:{root}/train-clean-100/19/10')) == 2
  assert 'config.data.holdout' in message_of(f'librispeech:{root}/train-clean-100', 'test')


def test_librispeech_without_some_transcripts(tmp_path):
  write_librispeech(tmp_path, 'train-a', (1, 2))
  (tmp_path / 'train-a/1/10/1-10.trans.txt').unlink()
  (tmp_path / 'train-a/1/11/1-11.trans.txt').write_text('1-11-0001 ONLY ONE\n1-11-0000\n')
  (tmp_path / 'train-a/2/10/2-10.trans.txt').write_text('2-10-0001 ONLY ONE\n')
  source = opened(f'librispeech:{tmp_path}')
  assert len(source) == 4 and source.dropped == {'no_transcript': 3, 'empty_transcript': 1}
  assert len(opened(f'librispeech:{tmp_path}', task='pretrain')) == 8


def test_librispeech_holds_out_whole_speakers(tmp_path):
  write_librispeech(tmp_path, 'test-other', range(1, 11))
  message = message_of(f'librispeech:{tmp_path}')
  assert 'no train-*' in message and f'librispeech:{tmp_path / "test-other"}' in message
  place = f'librispeech:{tmp_path}/test-other'
  train, test = (opened(place, split, holdout=0.2) for split in ('train', 'test'))
  assert len(train) == 32 and len(test) == 8 and len(np.unique(test.groups)) == 2
  assert not set(train.groups) & set(test.groups)
  assert len(opened(place, 'test', holdout=0.01)) == 4  # one speaker at least
  one = f'librispeech:{tmp_path}/test-other/3'
  assert [len(opened(one, split, holdout=0.25)) for split in ('train', 'test')] == [3, 1]
  assert 'leaves none to train on' in message_of(place, holdout=0.96)


def test_librispeech_mistakes_are_named(tmp_path):
  assert 'does not exist' in message_of(f'librispeech:{tmp_path}/none')
  assert 'holds no SPEAKER-CHAPTER-NUMBER.flac' in message_of(f'librispeech:{tmp_path}')
  write(tmp_path / 'train-x' / 'hello.flac')
  assert 'hello.flac is not named SPEAKER-CHAPTER-NUMBER.flac' in message_of(f'librispeech:{tmp_path}')
  assert 'no test part' in message_of(f'librispeech:{tmp_path}', 'test')


# manifest


@pytest.fixture
def manifests(tmp_path):
  """train.tsv of four files of 8 kHz, in a directory that is given relative to it."""
  for number in range(4):
    write(tmp_path / 'audio' / 'a b' / f'{number}.wav', 8_000 + number, 8_000, seed=number)
  lines = ['audio', *(f'a b/{number}.wav\t{8_000 + number}' for number in range(4))]
  (tmp_path / 'train.tsv').write_text('\n'.join(lines) + '\n')
  return tmp_path


def test_manifest(manifests):
  (manifests / 'train.wrd').write_text('ONE\nTWO\n\nFOUR FIVE\n')
  source = opened(f'manifest:{manifests}')
  assert names(source) == ['0.wav', '1.wav', '3.wav'] and source.texts == ['ONE', 'TWO', 'FOUR FIVE']
  assert list(source.lengths) == [16_000, 16_002, 16_006] and source.dropped == {'empty_transcript': 1}
  assert [len(source.read(i)['audio']) for i in range(3)] == list(source.lengths)
  assert 'no test part' in message_of(f'manifest:{manifests}', 'test')
  (manifests / 'train.wrd').unlink()
  (manifests / 'train.ltr').write_text('O N E |\r\nT W O |\r\nF O U R | F I V E |\r\nS I X |')
  (manifests / 'train.tsv').rename(manifests / 'dev.tsv')
  (manifests / 'train.ltr').rename(manifests / 'dev.ltr')
  assert opened(f'manifest:{manifests}', 'test').texts == ['ONE', 'TWO', 'FOUR FIVE', 'SIX']
  assert 'holds no train.tsv' in message_of(f'manifest:{manifests}')
  assert len(opened(f'manifest:{manifests}/dev.tsv')) == 4
  assert 'no test part' in message_of(f'manifest:{manifests}/dev.tsv', 'test')


def test_manifest_of_parts(manifests):
  (manifests / 'train.tsv').write_text('audio\na b/1.wav\t8001\t0.25\t0.75\na b/1.wav\t8001\t0.5\t1.0\na b/2.wav\t8002\n')
  source = opened(f'manifest:{manifests}', task='pretrain')
  assert names(source) == ['1.wav@0.25-0.75', '1.wav@0.50-1.00', '2.wav'] and list(source.lengths) == [8_000, 8_000, 16_004]
  np.testing.assert_allclose(source.read(0)['audio'][4_200:7_800], source.read(1)['audio'][200:3_800], atol=0.01)
  (manifests / 'train.tsv').write_text('audio\na b/1.wav\t8001\t0.25\t1.1\n')
  assert 'train.tsv:2: END is 1.1 s, the file has 8001 frames at 8000 Hz' in message_of(f'manifest:{manifests}')


def test_manifest_that_does_not_fit_its_files(manifests):
  path = manifests / 'train.tsv'
  path.write_text(path.read_text().replace('8002', '8200'))
  write(manifests / 'audio' / 'a b' / '3.wav', 8_003, 16_000)
  source = opened(f'manifest:{manifests}', task='pretrain')
  with pytest.raises(ValueError, match=r'has 8002 frames at 8000 Hz.* says 8200 at 8000 Hz'):
    source.read(2)
  with pytest.raises(ValueError, match=r'has 8003 frames at 16000 Hz.* says 8003 at 8000 Hz'):
    source.read(3)


def test_manifest_mistakes_are_named(manifests):
  path = manifests / 'train.tsv'
  good = path.read_text()
  assert 'does not exist' in message_of(f'manifest:{manifests}/none.tsv')
  (manifests / 'train.wrd').write_text('ONE\nTWO\n')
  assert 'train.wrd has 2 lines, train.tsv lists 4 files' in message_of(f'manifest:{path}')
  (manifests / 'train.wrd').unlink()
  for line, number in (('0.wav 8000', 2), ('0.wav\tmany', 3), ('0.wav\t8000\t0.1', 4), ('', 4), ('0.wav\t8\t2\t1', 5)):
    lines = good.splitlines()
    lines.insert(number - 1, line)
    path.write_text('\n'.join(lines))
    assert f'train.tsv:{number}: not PATH TAB FRAMES' in message_of(f'manifest:{path}')
  path.write_text(good + 'gone/1.wav\t5\ngone/2.wav\t5\n')
  message = message_of(f'manifest:{path}')
  assert '2 of 6 files do not exist' in message and str(manifests / 'audio/gone/1.wav') in message
  path.write_text('audio\n')
  assert 'lists no files' in message_of(f'manifest:{path}')
  path.write_text('a.wav\t5\n')
  assert 'train.tsv:1: the first line is the directory' in message_of(f'manifest:{path}')


# folder


def test_folder_with_splits(tmp_path):
  write(tmp_path / 'train' / 'a.wav', text='a')
  write(tmp_path / 'train' / 'dog' / 'b.wav', text='b')
  write(tmp_path / 'val' / 'c.wav', text='c')
  (tmp_path / 'train' / 'loop').symlink_to(tmp_path / 'train', target_is_directory=True)
  place = f'folder:{tmp_path}'
  assert names(opened(place)) == ['a.wav', 'b.wav'] and names(opened(place, 'test')) == ['c.wav']
  assert [len(opened(place, split, holdout=0.5)) for split in ('train', 'test')] == [1, 1]
  assert 'no test part' in message_of(f'{place}/train', 'test')
  (tmp_path / 'empty').mkdir()
  assert 'holds no audio' in message_of(f'{place}/empty')
  (tmp_path / 'train').rename(tmp_path / 'other')
  assert 'no train/' in message_of(place)


def test_folder_in_the_layout_of_ljspeech(tmp_path):
  for name in ('LJ1', 'LJ2', 'LJ3', 'LJ4'):
    write(tmp_path / 'wavs' / f'{name}.wav', 22_050, 22_050)
  (tmp_path / 'metadata.csv').write_text('LJ1|In 2 words|In two words\nLJ2|"Quoted," he said|\nLJ3||\n')
  for place in (tmp_path, tmp_path / 'wavs'):
    source = opened(f'folder:{place}')
    assert source.texts == ['In two words', '"Quoted," he said']
    assert source.dropped == {'empty_transcript': 1, 'no_transcript': 1}
  (tmp_path / 'metadata.csv').write_text('LJ1|one|one\nfile_name,text\n')
  assert 'metadata.csv:2: not id|text|normalised text' in message_of(f'folder:{tmp_path}')


def test_open_files(tmp_path):
  write(tmp_path / 'b' / 'a.flac', text='ignored')
  write(tmp_path / 'c.odd')
  source = audio_sources.open_files(tmp_path)
  assert names(source) == ['a.flac'] and source.texts == ['']
  assert len(audio_sources.open_files(tmp_path / 'c.odd').read(0)['audio']) == 16_000
  with pytest.raises(InputError, match='does not exist'):
    audio_sources.open_files(tmp_path / 'none')


# Records


def flac(samples, seed=0):
  content = io.BytesIO()
  soundfile.write(content, noise(samples, seed), 16_000, format='FLAC')
  return content.getvalue()


def pcm(samples, seed=0):
  return np.rint(noise(samples, seed) * 32_768).astype(np.int64)


def test_packed_integers():
  numbers = np.array([0, 1, -1, 127, 128, -32_768, 32_767, 2**63 - 1, -(2**63), 300])
  parsed = parse_example(encode_features({'speech': numbers, 'text': 'ça', 'x': [0.5, 2.0]}))
  assert parsed == {'speech': numbers.tolist(), 'text': ['ça'.encode()], 'x': [0.5, 2.0]}
  samples = pcm(16_000 * 20)
  record = encode_features({'speech': samples})
  start = time.perf_counter()
  parsed = parse_example(record)
  assert time.perf_counter() - start < 0.5  # 20 s of speech; a loop over its bytes takes longer
  assert parsed['speech'] == samples.tolist()


@pytest.mark.parametrize('kind', ['samples', 'floats', 'encoded'])
def test_array_records(tmp_path, kind):
  make = {
    'samples': lambda number: {'speech': pcm(16_000 + number, number)},
    'floats': lambda number: {'audio': noise(16_000 + number, number)},
    'encoded': lambda number: {'audio': flac(16_000 + number, number)},
  }[kind]
  records = [
    encode_features(make(number) | {'text': 'ABCDEF'[number], 'speaker_id': [100 + number // 2]}) for number in range(6)
  ]
  damaged = encode_features({'audio' if kind == 'encoded' else 'other': b'no sound', 'text': 'X', 'speaker_id': [3]})
  write_array_record(tmp_path / 'x-train.array_record-00000-of-00001', [*records[:3], damaged, *records[3:]])
  write_array_record(tmp_path / 'x-test.array_record', records[:1])
  source = pickle.loads(pickle.dumps(opened(f'arrayrecord:{tmp_path}')))
  assert source.texts == list('ABCDEF') and source.dropped == {'unreadable': 1}
  assert list(np.unique(source.groups, return_inverse=True)[1]) == [0, 0, 1, 1, 2, 2]
  for index in range(6):
    example = source.read(index)
    assert source.lengths[index] == 16_000 + index == len(example['audio']) and example['audio'].dtype == np.float32
    np.testing.assert_allclose(example['audio'], noise(16_000 + index, index), atol=1e-4)
  assert source.name(3) == f'{tmp_path}/x-train.array_record-00000-of-00001:4'
  assert len(opened(f'arrayrecord:{tmp_path}', 'test')) == 1
  parts = audio_sources.split_long(dataclasses.replace(source, has_text=np.zeros(len(source), bool)), 0.6)
  np.testing.assert_array_equal(parts.read(1)['audio'], source.read(0)['audio'][8_000:])
  write_array_record(tmp_path / 'x-train.array_record-00000-of-00001', [encode_features({'image': b'x'})])
  assert 'audio under one of audio, audio/encoded, speech; the first has image' in message_of(f'arrayrecord:{tmp_path}')


@pytest.mark.parametrize('file_format', ['array_record', 'tfrecord'])
def test_tfds(tmp_path, file_format):
  """A prepared data set with the features and the split names of TFDS's `librispeech`."""
  pytest.importorskip('tensorflow_datasets')
  folder = tmp_path / 'tiny' / '1.0.0'
  folder.mkdir(parents=True)
  package = 'tensorflow_datasets.core.features'
  # 16 kHz is what TFDS's LibriSpeech has; another rate shows that it is looked at.
  speech = {'shape': {'dimensions': ['-1']}, 'dtype': 'int64', 'sampleRate': '8000', 'encoding': 'none'}
  features = {
    'speech': {'pythonClassName': f'{package}.audio_feature.Audio', 'audio': speech},
    'text': {'pythonClassName': f'{package}.text_feature.Text', 'text': {}},
    'speaker_id': {'pythonClassName': f'{package}.tensor_feature.Tensor', 'tensor': {'shape': {}, 'dtype': 'int64'}},
  }
  (folder / 'features.json').write_text(
    json.dumps({'pythonClassName': f'{package}.features_dict.FeaturesDict', 'featuresDict': {'features': features}})
  )
  splits = []
  for name, count in {'train_clean100': 3, 'train_other500': 2, 'dev_clean': 1, 'test_clean': 4}.items():
    records = [
      encode_features({'speech': pcm(8_000 + i, i), 'text': f'{name[:3]} {"ABCD"[i]}', 'speaker_id': [i], 'id': 'x'})
      for i in range(count)
    ]
    {'array_record': write_array_record, 'tfrecord': write_tfrecord}[file_format](
      folder / f'tiny-{name}.{file_format}-00000-of-00001', records
    )
    template = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
    splits.append({'name': name, 'shardLengths': [str(count)], 'numBytes': '1', 'filepathTemplate': template})
  info = {'name': 'tiny', 'version': '1.0.0', 'fileFormat': file_format, 'splits': splits}
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  options = {'tfds_dir': str(tmp_path)}
  train, test = (pickle.loads(pickle.dumps(opened('tfds:tiny', split, **options))) for split in ('train', 'test'))
  assert train.texts == ['tra A', 'tra B', 'tra C', 'tra A', 'tra B'] and test.texts == ['dev A']
  assert list(train.groups) == [0, 1, 2, 0, 1] and list(train.lengths) == [16_000, 16_002, 16_004, 16_000, 16_002]
  assert len(train.read(4)['audio']) == 16_002
  for place, count in (('tiny:test_clean[:50%]', 2), ('tiny:1.0.0:test_clean', 4), ('tiny:1.*.*', 5)):
    assert len(opened(f'tfds:{place}', **options)) == count
  assert 'tensorflow' not in sys.modules
  for place, expected in (('none', '"tfds build none"'), ('tiny:2.0.0', 'it has 1.0.0'), ('tiny:trainn', 'trainn')):
    assert expected in message_of(f'tfds:{place}', **options)


# Real files, where they are.


@pytest.mark.skipif(not SPEECH.is_dir(), reason=f'the optional data sets are not in {SPEECH}')
@pytest.mark.parametrize(
  ('source', 'task', 'split', 'clips', 'minutes'),
  [
    ('librispeech:{}/LibriSpeech', 'pretrain', 'train', 73, 15.3),
    ('librispeech:{}/LibriSpeech', 'ctc', 'test', 80, 10.6),
    ('librispeech:{}/LibriSpeech/test-other', 'ctc', 'train', 80, 10.6),
    ('folder:{}/LJSpeech-1.1-sample', 'ctc', 'train', 32, 3.7),
    ('folder:{}/fsdd', 'pretrain', 'train', 1500, 11),
    ('folder:{}/librivox-austen', 'pretrain', 'train', 5, 0.4),
  ],
)
def test_real_files(source, task, split, clips, minutes):
  found = opened(source.format(SPEECH), split, task=task, bucket_seconds=(0.1, 35.0))
  assert len(found) == clips and abs(found.lengths.sum() / 16_000 / 60 - minutes) < 0.1 + 0.05 * minutes
  for index in np.linspace(0, clips - 1, 40).astype(int):
    wave = found.read(index)['audio']
    assert len(wave) == found.lengths[index] and 1e-3 < np.std(wave) < 0.5
  if task == 'ctc':
    assert found.has_text.all() and 8 < found.lengths.sum() / sum(map(len, found.texts)) / 100 < 16  # 14 letters a second


@pytest.mark.skipif(not SPEECH.is_dir(), reason=f'the optional data sets are not in {SPEECH}')
def test_real_digits_by_a_manifest(tmp_path):
  words = ('ZERO', 'ONE', 'TWO', 'THREE', 'FOUR', 'FIVE', 'SIX', 'SEVEN', 'EIGHT', 'NINE')
  root = SPEECH / 'fsdd' / 'recordings'
  for part, takes in (('train', range(5, 25)), ('valid', range(5))):
    files = sorted(path for path in root.glob('*.wav') if int(path.stem.split('_')[2]) in takes)
    lines = [str(root), *(f'{path.name}\t{soundfile.info(path).frames}' for path in files)]
    (tmp_path / f'{part}.tsv').write_text('\n'.join(lines) + '\n')
    (tmp_path / f'{part}.wrd').write_text('\n'.join(words[int(path.name[0])] for path in files) + '\n')
  train, test = (opened(f'manifest:{tmp_path}', split, bucket_seconds=(1.0, 2.5)) for split in ('train', 'test'))
  assert len(train) == 1200 and len(test) == 300 and set(test.texts) == set(words)
  assert all(len(train.read(i)['audio']) == train.lengths[i] for i in range(0, 1200, 30))
