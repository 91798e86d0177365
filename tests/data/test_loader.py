"""The loader: the same global batches for any number of hosts and workers, bad examples named, no hangs, no leftovers."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2v_jax.config import default_config
from d2v_jax.data.audio import standardise
from d2v_jax.data.letters import decode
from d2v_jax.data.loader import TrainLoader, eval_batches
from d2v_jax.data.order import example_indices, plan_batches
from d2v_jax.data.sources import open_source
from d2v_jax.data.tokenizer import PAD
from d2v_jax.errors import InputError, RunError
from tests.train.tiny import speech_config, text_config

NUM_IMAGES = 20


def config_of(place, **data):
  config = default_config()
  config.batch_size = 8
  config.data.update({'source': f'folder:{place}', 'image_size': 16, 'workers': 0, **data})
  return config


@pytest.fixture
def folder(tmp_path):
  """Twenty noise images of two classes; image 00 .. 19 by name, the second half of class b."""
  rng = np.random.default_rng(0)
  for number in range(NUM_IMAGES):
    path = tmp_path / 'train' / 'ab'[number >= 10] / f'{number:02d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
  return tmp_path


def batches_of(config, start_step=0, count=4, share=(0, 1)):
  source = open_source(config, 'train')
  with TrainLoader(config, source, start_step, share) as loader:
    return [next(loader) for _ in range(count)]


def assert_same(batches, expected):
  assert len(batches) == len(expected)
  for batch, other in zip(batches, expected):
    for key in ('image', 'label', 'valid'):
      np.testing.assert_array_equal(batch[key], other[key])


def test_batch_layout_and_order(folder):
  config = config_of(folder, crop_area=(1, 1), crop_aspect=(1, 1), flip=False)
  source = open_source(config, 'train')
  pixels = [np.asarray(Image.open(source.name(i))) for i in range(NUM_IMAGES)]
  for step, batch in enumerate(batches_of(config)):
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
      'image': ((8, 16, 16, 3), np.uint8), 'label': ((8,), np.int32), 'valid': ((8,), bool),
    }  # fmt: skip
    indices = example_indices(config.seed, step, 8, NUM_IMAGES)
    np.testing.assert_array_equal(batch['image'], np.stack([pixels[i] for i in indices]))
    np.testing.assert_array_equal(batch['label'], indices >= 10)
    assert batch['valid'].all()


def test_any_number_of_hosts_and_any_start_give_the_same_batches(folder):
  config = config_of(folder)
  expected = batches_of(config, count=5)
  assert_same(batches_of(config, start_step=3, count=2), expected[3:])
  for hosts in (2, 4):
    parts = [batches_of(config, count=5, share=(host, hosts)) for host in range(hosts)]
    joined = [{key: np.concatenate([batch[key] for batch in hosts]) for key in hosts[0]} for hosts in zip(*parts)]
    assert_same(joined, expected)
  config.seed = 2
  assert not np.array_equal(batches_of(config, count=1)[0]['image'], expected[0]['image'])


def test_any_number_of_workers_gives_the_same_batches(folder):
  (folder / 'train' / 'a' / '03.png').write_bytes(b'damaged')
  expected = batches_of(config_of(folder), start_step=7, count=6)
  for workers in (1, 2):
    config = config_of(folder, workers=workers)
    with TrainLoader(config, open_source(config, 'train'), 7, (0, 1)) as loader:
      assert_same([next(loader) for _ in range(6)], expected)
      assert [Path(name).name for name in loader.unreadable] == ['03.png']  # the report crosses from worker to main
  assert not multiprocessing.active_children()


def test_augmentation_differs_between_rows_and_steps(tmp_path):
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / 'only.png')
  views = np.concatenate([batch['image'] for batch in batches_of(config_of(tmp_path), count=3)])
  assert len(np.unique(views, axis=0)) == 24


def test_unreadable_examples_are_zero_rows_named_once_and_counted(folder, caplog):
  bad = folder / 'train' / 'a' / '03.png'
  bad.write_bytes(bad.read_bytes()[:60])
  (folder / 'train' / 'b' / '15.png').unlink()
  (folder / 'train' / 'b' / '15.png').symlink_to('nowhere')
  config = config_of(folder)
  source = open_source(config, 'train')
  with TrainLoader(config, source, 0, (0, 1)) as loader:
    invalid = 0
    for step in range(10):  # four epochs
      batch = next(loader)
      indices = example_indices(config.seed, step, 8, NUM_IMAGES)
      expected = ~np.isin(indices, (3, 15))
      np.testing.assert_array_equal(batch['valid'], expected)
      assert not batch['image'][~expected].any() and (batch['label'][~expected] == -1).all()
      invalid += (~expected).sum()
    assert invalid == 8
    assert {Path(name).name for name in loader.unreadable} == {'03.png', '15.png'}
    assert loader.unreadable[str(folder / 'train' / 'b' / '15.png')] == 'No such file or directory'
  named = [record.getMessage() for record in caplog.records if 'unreadable' in record.getMessage()]
  assert len(named) == 2 and sum('03.png' in message for message in named) == 1


def test_too_many_unreadable_examples_end_the_run(folder):
  for number in (2, 4, 6):
    (folder / 'train' / 'a' / f'{number:02d}.png').write_bytes(b'x')
  batches_of(config_of(folder, max_unreadable=3), count=5)
  with pytest.raises(
    InputError, match=r'3 examples could not be read, config\.data\.max_unreadable=2 are allowed.*0[246]\.png'
  ):
    batches_of(config_of(folder, max_unreadable=2), count=5)


@pytest.mark.parametrize('share', [(0, 1), (0, 2)])
def test_all_unreadable_ends_the_run(folder, share):
  for path in folder.glob('train/*/*.png'):
    path.write_bytes(b'x')
  with pytest.raises(InputError, match='all unreadable'):
    batches_of(config_of(folder), count=20, share=share)
  config = config_of(folder)
  with pytest.raises(InputError, match='all unreadable'):
    list(eval_batches(config, open_source(config, 'train'), np.arange(NUM_IMAGES), 8))


def test_eval_batches_hold_every_example_once(folder):
  (folder / 'train' / 'a' / '03.png').write_bytes(b'damaged')
  config = config_of(folder)
  source = open_source(config, 'train')
  indices = np.array([19, 3, 0, 7, 12, 12, 1])
  batches = list(eval_batches(config, source, indices, 3))
  assert [batch['image'].shape for batch in batches] == [(3, 16, 16, 3)] * 3
  joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
  np.testing.assert_array_equal(joined['index'], [*indices, -1, -1])
  np.testing.assert_array_equal(joined['valid'], [1, 0, 1, 1, 1, 1, 1, 0, 0])
  np.testing.assert_array_equal(joined['label'], [1, -1, 0, 0, 1, 1, 0, -1, -1])
  for row, index in enumerate(indices):
    if index != 3:
      np.testing.assert_array_equal(joined['image'][row], np.asarray(Image.open(source.name(index))))
  assert not joined['image'][~joined['valid']].any()
  assert list(eval_batches(config, source, [], 3)) == []


# --- speech


class Speech:
  """Noise of known lengths and loudness, with transcripts; some clips cannot be read, some are shorter than they claim."""

  def __init__(self, lengths, unreadable=(), cut=()):
    self.lengths, self.unreadable, self.cut = np.array(lengths), unreadable, cut
    self.texts = [f'{"AB" * (1 + i % 5)} C' for i in range(len(lengths))]

  def __len__(self):
    return len(self.lengths)

  def name(self, index):
    return f'clip {index}'

  def wave(self, index):
    return np.random.default_rng(index).normal(3, 1 + index, self.lengths[index]).astype(np.float32)

  def read(self, index):
    if index in self.unreadable:
      raise ValueError('damaged')
    wave = self.wave(index)
    return {'audio': wave[:100] if index in self.cut else wave, 'text': self.texts[index]}


CLIPS = [400, 500, 799, 1000, 800, 1601, 450, 900, 3000, 1300, 799, 799, 820, 420]


def speech_batches(task, source, count=8, share=(0, 1), start_step=0):
  with TrainLoader(speech_config(task), source, start_step, share) as loader:
    return [next(loader) for _ in range(count)]


def test_pretraining_sees_crops_of_standardised_clips():
  source, config = Speech(CLIPS), speech_config()
  plan, places = plan_batches(config, source), []
  shapes = set()
  for step, batch in enumerate(speech_batches('pretrain', source, 40)):
    indices, bucket = plan.batch(step)
    assert batch.keys() == {'audio', 'valid'} and batch['valid'].all()
    assert batch['audio'].shape == (bucket.rows, bucket.shape[0]) and batch['audio'].dtype == np.float32
    shapes.add(batch['audio'].shape)
    for row, index in zip(batch['audio'], indices):
      whole = standardise(source.wave(index))
      (start,) = np.flatnonzero(whole == row[0])
      np.testing.assert_array_equal(whole[start : start + len(row)], row)
      places.append(start / max(len(whole) - len(row), 1))
  assert shapes == {(8, 400), (4, 800)}
  assert min(places) < 0.05 and max(places) > 0.95 and 0.3 < np.mean([place for place in places if place]) < 0.7


def test_fine_tuning_sees_whole_clips_and_their_letters():
  source, config = Speech(CLIPS), speech_config('ctc')
  plan = plan_batches(config, source)
  for step, batch in enumerate(speech_batches('ctc', source)):
    indices, bucket = plan.batch(step)
    assert batch.keys() == {'audio', 'length', 'letters', 'valid'} and batch['valid'].all()
    assert batch['letters'].shape == (bucket.rows, 16) and batch['letters'].dtype == batch['length'].dtype == np.int32
    for row, index in enumerate(indices):
      length = source.lengths[index]
      assert batch['length'][row] == length <= 800
      np.testing.assert_array_equal(batch['audio'][row, :length], standardise(source.wave(index)))
      assert not batch['audio'][row, length:].any()
      letters = batch['letters'][row]
      assert decode(letters[letters >= 0]) == source.texts[index] and (letters[(letters >= 0).sum() :] == -1).all()


@pytest.mark.parametrize('task', ['pretrain', 'ctc'])
def test_any_number_of_hosts_gives_the_same_speech(task):
  source = Speech(CLIPS, unreadable=(3, 6))
  expected = speech_batches(task, source)
  for hosts in (2, 4):
    parts = [speech_batches(task, source, share=(host, hosts)) for host in range(hosts)]
    for number, batch in enumerate(expected):
      joined = {key: np.concatenate([part[number][key] for part in parts]) for key in batch}
      for key in batch:
        np.testing.assert_array_equal(joined[key], batch[key], err_msg=key)
  later = speech_batches(task, source, 3, start_step=5)
  for batch, other in zip(later, expected[5:]):
    for key in batch:
      np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def test_speech_that_cannot_be_read_is_a_row_of_nothing():
  source = Speech(CLIPS, unreadable=(3,), cut=(0,))
  config = speech_config()
  plan, seen = plan_batches(config, source), set()
  with TrainLoader(config, source, 0, (0, 1)) as loader:
    for step in range(12):
      batch, (indices, _) = next(loader), plan.batch(step)
      np.testing.assert_array_equal(batch['valid'], ~np.isin(indices, (0, 3)))
      assert not batch['audio'][~batch['valid']].any()
      seen |= set(indices)
    assert {0, 3} <= seen and loader.unreadable.keys() == {'clip 0', 'clip 3'}
    assert '100 samples' in loader.unreadable['clip 0']


@pytest.mark.parametrize('task', ['pretrain', 'ctc'])
def test_evaluation_hears_every_clip_uncut_once(task):
  source, config = Speech(CLIPS, unreadable=(3,)), speech_config(task)
  indices = np.array([8, 3, 0, 5, 2, 2, 9, 10, 11])
  seen = []
  for batch in eval_batches(config, source, indices, 3):
    assert batch.keys() == {'audio', 'length', 'valid', 'index'}
    assert (batch['valid'] <= (batch['index'] >= 0)).all() and batch['index'].dtype == np.int64
    seen += [index for index in batch['index'] if index >= 0]
    for row in np.flatnonzero(batch['valid']):
      whole = standardise(source.wave(batch['index'][row]))
      assert batch['length'][row] == len(whole)
      np.testing.assert_array_equal(batch['audio'][row], np.pad(whole, (0, batch['audio'].shape[1] - len(whole))))
    assert not batch['audio'][~batch['valid']].any() and not batch['length'][~batch['valid']].any()
    assert (batch['index'][~batch['valid']] == -1).sum() + (batch['index'] == 3).sum() == (~batch['valid']).sum()
  assert sorted(seen) == sorted(indices)


# --- text


class Texts:
  """Tokens of known lengths with labels; some cannot be read."""

  def __init__(self, lengths, labels, unreadable=()):
    self.lengths, self.labels, self.unreadable = np.array(lengths), labels, unreadable

  def __len__(self):
    return len(self.lengths)

  def name(self, index):
    return f'text {index}'

  def tokens(self, index):
    return np.random.default_rng(index).integers(4, 299, self.lengths[index]).astype(np.int32)

  def read(self, index):
    if index in self.unreadable:
      raise ValueError('damaged')
    return {'tokens': self.tokens(index), 'label': self.labels[index]}


def test_pretraining_sees_blocks():
  source, config = Texts([24] * 9, [0] * 9, unreadable=(4,)), text_config()
  with TrainLoader(config, source, 0, (0, 1)) as loader:
    for step in range(9):
      batch, indices = next(loader), example_indices(config.seed, step, 4, 9)
      assert batch.keys() == {'tokens', 'valid'}
      assert batch['tokens'].shape == (4, 24) and batch['tokens'].dtype == np.int32
      np.testing.assert_array_equal(batch['valid'], indices != 4)
      for row, index in enumerate(indices):
        np.testing.assert_array_equal(batch['tokens'][row], source.tokens(index) if index != 4 else PAD)


LABELS = {'classification': [0, 2, 1, 1, 0, 2, 0, 1, 2, 0], 'regression': np.linspace(0, 5, 10, dtype=np.float32)}


@pytest.mark.parametrize('kind', LABELS)
@pytest.mark.parametrize('evaluation', [False, True])
def test_sentences_are_padded_and_keep_their_length_and_label(kind, evaluation):
  source = Texts([8, 9, 3, 16, 32, 5, 6, 7, 20, 12], LABELS[kind], unreadable=(2,))
  config = text_config('sentence')
  config.sentence.kind = kind
  if evaluation:
    batches = [(batch, batch['index']) for batch in eval_batches(config, source, np.arange(10), 4)]
    assert sorted(index for _, indices in batches for index in indices if index >= 0) == list(range(10))
  else:
    plan = plan_batches(config, source)
    with TrainLoader(config, source, 0, (0, 1)) as loader:
      batches = [(next(loader), plan.batch(step)[0]) for step in range(8)]
  assert len({batch['tokens'].shape for batch, _ in batches}) > 1
  for batch, indices in batches:
    assert batch.keys() - {'index'} == {'tokens', 'length', 'label', 'valid'} and len(batch['tokens']) == 4
    assert batch['label'].dtype == (np.int32 if kind == 'classification' else np.float32)
    np.testing.assert_array_equal(batch['valid'], (indices != 2) & (indices != -1))
    for row, index in enumerate(indices):
      if batch['valid'][row]:
        assert batch['length'][row] == source.lengths[index] and batch['label'][row] == source.labels[index]
        np.testing.assert_array_equal(batch['tokens'][row, : source.lengths[index]], source.tokens(index))
      else:
        assert batch['length'][row] == 0 and (batch['label'][row] == -1 or np.isnan(batch['label'][row]))
      assert (batch['tokens'][row, batch['length'][row] :] == PAD).all()


# --- processes


def test_batch_must_divide_over_processes(folder, monkeypatch):
  import jax

  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  config = config_of(folder)
  with pytest.raises(InputError, match=r'config\.batch_size: batches of 8 .* 3 processes'):
    TrainLoader(config, open_source(config, 'train'), 0)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  with TrainLoader(config, open_source(config, 'train'), 0) as loader:
    assert_same([next(loader)], [{key: value[4:] for key, value in batches_of(config, count=1)[0].items()}])


def test_a_killed_worker_is_an_error_not_a_hang(folder):
  config = config_of(folder, workers=2)
  with TrainLoader(config, open_source(config, 'train'), 0, (0, 1)) as loader:
    next(loader)
    for child in multiprocessing.active_children():
      os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(RunError, match='worker process died'):
      for _ in range(100):
        next(loader)
  assert not multiprocessing.active_children()


_PROGRAM = """
import multiprocessing, sys
from d2v_jax.config import default_config
from d2v_jax.data.loader import TrainLoader
from d2v_jax.data.sources import open_source
from d2v_jax.data.tokenizer import PAD
if __name__ == '__main__':
  config = default_config()
  config.batch_size = 8
  config.data.update({'source': 'folder:' + sys.argv[1], 'image_size': 16, 'workers': 1})
  loader = TrainLoader(config, open_source(config, 'train'), 0, (0, 1))
  batch = next(loader)
  print(*[child.pid for child in multiprocessing.active_children()], flush=True)
  sys.stdin.readline()
  for _ in range(10):
    next(loader)
"""


@pytest.mark.parametrize('kill', [True, False])
def test_no_worker_outlives_the_main_process(folder, kill):
  # The loader is not closed: the main process is killed, or just ends.
  program = folder / 'program.py'
  program.write_text(_PROGRAM)
  environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])}
  pipes = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
  process = subprocess.Popen([sys.executable, str(program), str(folder)], text=True, env=environment, **pipes)
  workers = [int(pid) for pid in process.stdout.readline().split()]
  assert workers, process.communicate()[1]
  for worker in workers:
    os.kill(worker, signal.SIGTERM)  # a signal to the whole process group is for the main process to answer
  if kill:
    process.kill()
  _, errors = process.communicate('go on\n', timeout=30)
  if not kill:
    assert process.returncode == 0 and 'Traceback' not in errors, errors
  deadline = time.monotonic() + 10
  while any(_alive(worker) for worker in workers):
    assert time.monotonic() < deadline, 'a worker is still running'
    time.sleep(0.05)


def _alive(pid):
  try:
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False
