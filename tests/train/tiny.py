"""A run small enough for tests (also as `--config=tests/train/tiny.py`), a folder of images for it, and the commands."""

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import soundfile
from PIL import Image

import d2v_jax
from d2v_jax.config import default_config

ROOT = Path(d2v_jax.__file__).parents[1]
# A line of absl's log; everything else that a command writes to stderr is for the user.
LOG_LINE = re.compile(r'[IWE]\d{4} \d\d:\d\d:\d\d')
# Most of the time of a short test is compiling, and most of that is optimising.
FAST = {'xla_backend_optimization_level': 0}
fast_jit = functools.partial(jax.jit, compiler_options=FAST)
# What depends on the clock.
TIMINGS = ('train/steps_per_second', 'train/examples_per_second', 'train/data_wait', 'train/mfu')


def get_config():
  """16 tokens, two narrow blocks, six steps of eight images."""
  config = default_config()
  config.total_steps = 6
  config.batch_size = 8
  config.dtype = 'float32'
  config.log_every = 1
  config.checkpoint_every = 2
  config.pictures = False
  config.data.update(source='folder:', image_size=16, workers=0)
  config.model.update(patch_size=4, embed_dim=16, prenet_depth=0, depth=2, num_heads=2)
  config.mask.update(ratio=0.6, adjust=0.1, block_size=2)
  config.data2vec2.update(masks_per_example=2, average_top_k=2, ema_decay=0.9, ema_end_decay=0.99, ema_anneal_steps=10)
  config.decoder.update(dim=16, layers=1, groups=2)
  config.schedule.warmup_steps = 2
  config.eval.update(batch_size=16, knn_k=3)
  return config


def speech_config(task='pretrain'):
  """Batches of 400 and 800 samples, which are 19 and 39 frames; three narrow blocks; no dropout."""
  config = default_config('audio', task)
  config.total_steps = 6
  config.batch_size = 4
  config.dtype = 'float32'
  config.log_every = 1
  config.pictures = False
  config.data.update(source='folder:', bucket_seconds=(0.025, 0.05), rows_multiple=2, workers=0)
  config.model.update(conv_layers=((16, 10, 5), (16, 3, 2), (16, 2, 2)), embed_dim=16, prenet_depth=1, depth=2, num_heads=2)
  config.model.conv_positions.update(layers=2, kernel=5, groups=4)
  config.model.update(init_std=0.3, layer_drop=0.0, prenet_layer_drop=0.0)
  config.model.dropout.update(dict.fromkeys(config.model.dropout, 0.0))
  config.schedule.warmup_steps = 2
  if task == 'pretrain':
    config.data2vec2.update(masks_per_example=2, average_top_k=2, ema_decay=0.9, ema_end_decay=0.99, ema_anneal_steps=10)
    config.decoder.update(dim=16, layers=1, groups=2, input_dropout=0.0)
  return config


def text_config(task='pretrain'):
  """Blocks of 24 tokens, or sentences in batches of 8, 16 and 32; 300 entries; two narrow blocks; no dropout."""
  config = default_config('text', task)
  config.total_steps = 6
  config.batch_size = 4
  config.dtype = 'float32'
  config.log_every = 1
  config.pictures = False
  config.data.workers = 0
  config.model.update(vocab_size=300, max_positions=32, embed_dim=16, depth=2, num_heads=2, init_std=0.3)
  config.model.dropout.update(dict.fromkeys(config.model.dropout, 0.0))
  config.schedule.warmup_steps = 2
  if task == 'pretrain':
    config.data.update(source='folder:', block_tokens=24)
    config.data2vec2.update(masks_per_example=2, average_top_k=2, ema_decay=0.9, ema_end_decay=0.99, ema_anneal_steps=10)
    config.decoder.update(dim=16, layers=1, kernel=3, input_dropout=0.0)
    config.eval.batch_size = 4
  else:
    config.data.update(source='tsv:', bucket_tokens=(8, 16, 32))
  return config


def random_params(method, seed, scale=0.3):
  """Student parameters of a method as plain random numbers: nothing to compile, and no part does next to nothing."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(method.init, jax.random.key(0))
  draw = lambda path, leaf: rng.normal('scale' in jax.tree_util.keystr(path), scale, leaf.shape).astype(leaf.dtype)
  return jax.tree_util.tree_map_with_path(draw, shapes)


def make_images(root, train=16, test=8, side=20):
  """Writes ROOT/{train,val}/{a,b}/NN.png: noise, brighter on the left in class a, below in class b. Returns ROOT."""
  rng = np.random.default_rng(0)
  for part, count in (('train', train), ('val', test)):
    for number in range(count):
      label = number % 2
      pixels = rng.integers(0, 128, (side, side, 3), np.uint8)
      half = pixels[side // 2 :] if label else pixels[:, : side // 2]
      half += 100
      path = Path(root) / part / 'ab'[label] / f'{number:02d}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(pixels).save(path)
  return Path(root)


def make_speech(root, train=12, test=5):
  """Writes ROOT/{train,val}/NN.{wav,flac}, noisy tones at three rates, each with its transcript in NN.txt. Returns ROOT.

  Of the training part, the first third takes 0.3 to 0.45 s each, the next 0.55 to 0.9 s, the last 1.05 to 1.3 s; none of the
  test part takes more than 0.9 s.
  """
  thirds = [np.linspace(*ends, train // 3) for ends in ((0.3, 0.45), (0.55, 0.9), (1.05, 1.3))]
  seconds = {'train': np.concatenate(thirds), 'val': np.linspace(0.3, 0.9, test)}
  for part, lengths in seconds.items():
    for number, length in enumerate(lengths):
      path = Path(root) / part / f'{number:02d}.{("wav", "flac")[number % 2]}'
      write_tone(path, length, 300 + 300 * (number % 4), (16_000, 8_000, 44_100)[number % 3])
      path.with_suffix('.txt').write_text(('a low tone', 'Two.', "it's high", 'up')[number % 4])
  return Path(root)


def make_text(root, train=90, test=30):
  """Writes a small corpus of sentences and tables of some of them. Returns ROOT.

  ROOT/{train,valid}/N.txt hold so many sentences, one a line, a blank line after every tenth. ROOT/{train,dev}.tsv name
  their columns: sentence; second, a sentence too; label, 'happy' or 'sad' as a word of the first sentence is; score, how
  many words of the two sentences agree, from 0 to 5.
  """
  rng = np.random.default_rng(0)
  root = Path(root)
  words = (
    ('the', 'every', 'my'),
    ('old', 'small', 'quiet', 'green'),
    ('dog', 'river', 'teacher', 'house', 'garden'),
    ('loves', 'enjoys', 'fears', 'hates'),
    ('rain', 'music', 'the sea', 'long walks', 'winter'),
  )
  for part, table, count in (('train', 'train.tsv', train), ('valid', 'dev.tsv', test)):
    (root / part).mkdir(parents=True, exist_ok=True)
    sentences = [[str(rng.choice(choices)) for choices in words] for _ in range(count)]
    lines = [' '.join(sentence).capitalize() + '.' for sentence in sentences]
    for number in range(2):
      documents = [lines[first : first + 10] for first in range(number * 10, count, 20)]
      (root / part / f'{number}.txt').write_text('\n\n'.join('\n'.join(document) for document in documents) + '\n')
    rows = ['sentence\tsecond\tlabel\tscore']
    for number, sentence in enumerate(sentences):
      label = 'happy' if sentence[3] in ('loves', 'enjoys') else 'sad'
      score = sum(one == other for one, other in zip(sentence, sentences[number - 1]))
      rows.append(f'{lines[number]}\t{lines[number - 1]}\t{label}\t{score}')
    (root / table).write_text('\n'.join(rows) + '\n')
  return root


def write_tone(path, seconds, hertz=440, rate=16_000, channels=1, **options):
  """Writes a tone with some noise to an audio file; `options` are those of soundfile.write."""
  count = round(seconds * rate)
  noise = np.random.default_rng(hertz).normal(size=(count, channels))
  wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(count)[:, None] / rate) + 0.05 * noise
  Path(path).parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(path, wave, rate, **options)


def start(module, *arguments, devices=1, **options):
  """Starts `python -m d2v_jax.MODULE` (or a script, by its path) in the repository's root."""
  program = [str(module)] if str(module).endswith('.py') else ['-m', f'd2v_jax.{module}']
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': str(ROOT),
    # Compiling is most of the time of a short run: little optimisation, and every program is compiled once a session.
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0',
    'JAX_COMPILATION_CACHE_DIR': _compilation_cache(),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  command = [sys.executable, *program, *map(str, arguments)]
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, **options}
  return subprocess.Popen(command, text=True, cwd=ROOT, env=environment, **pipes)


def run(module, *arguments, devices=1, timeout=400):
  """Runs it to its end; returns a subprocess.CompletedProcess."""
  process = start(module, *arguments, devices=devices)
  return finish(process, timeout)


def finish(process, timeout=400):
  """Waits for a process from `start`."""
  try:
    stdout, stderr = process.communicate(timeout=timeout)
  except subprocess.TimeoutExpired:
    process.kill()
    raise
  return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def train(images, workdir, *overrides, **options):
  """Runs the tiny config on a folder of images."""
  return run('main', *train_arguments(images, workdir, *overrides), **options)


def train_arguments(images, workdir, *overrides):
  config = ROOT / 'tests' / 'train' / 'tiny.py'
  return [f'--config={config}', f'--workdir={workdir}', f'--config.data.source=folder:{images}', *overrides]


def speech_arguments(task, source, workdir, *overrides):
  """Of a speech run: `task` is 'pretrain' or 'ctc', `source` what config.data.source is to be."""
  config = ROOT / 'tests' / 'train' / f'tiny_speech.py:{task}'
  return [f'--config={config}', f'--workdir={workdir}', f'--config.data.source={source}', *overrides]


def message(done, code):
  """The one line for the user, without its prefix; fails where there is more, a traceback or another exit code."""
  assert done.returncode == code, done.stderr
  lines = [line for line in done.stderr.splitlines() if line.strip()]
  said = [line for line in lines if line.startswith('d2v_jax: ')]
  assert len(said) == 1 and lines[-1] == said[0], done.stderr
  assert 'Traceback' not in done.stderr, done.stderr
  if code == 2 and not any(LOG_LINE.match(line) for line in lines):
    assert len(lines) == 1, done.stderr
  return said[0].removeprefix('d2v_jax: ')


def wait_for(condition, process, seconds=300):
  """Polls until condition() is true; fails when the process ends before, or it takes too long."""
  deadline = time.monotonic() + seconds
  while not condition():
    if process.poll() is not None:
      raise AssertionError(f'ended early with {process.returncode}: {process.communicate()[1]}')
    assert time.monotonic() < deadline, 'waited too long'
    time.sleep(0.01)


def metrics(workdir, timings=False):
  """The lines of metrics.jsonl; without what depends on the clock."""
  text = (Path(workdir) / 'metrics.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  return rows if timings else [{name: row[name] for name in row if name not in TIMINGS} for row in rows]


@contextlib.contextmanager
def killed_at_the_end(process):
  """Whatever happens, no process stays behind."""
  try:
    yield process
  finally:
    if process.poll() is None:
      process.send_signal(signal.SIGKILL)
      process.communicate()


_CACHE = []


def _compilation_cache():
  if not _CACHE:
    _CACHE.append(tempfile.mkdtemp(prefix='compiled-'))
    atexit.register(shutil.rmtree, _CACHE[0], ignore_errors=True)
  return _CACHE[0]
