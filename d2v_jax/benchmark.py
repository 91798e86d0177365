"""`python -m d2v_jax.benchmark --config=configs/NAME.py [--steps=N]`: how fast this machine trains the config.

Runs the real train step on random input and prints what it measured, then one JSON object on the last line: step time
(median, fastest, slowest), examples per second, of speech also its seconds per second and of text tokens per second; model
FLOP/s and, where the device is known, MFU; peak memory; compile time; and the input pipeline alone. Speech and tables of
text are timed in batches of the longest bucket. The pipeline reads `config.data.source` where that can be opened; else what
is made on the spot: JPEG of 400 x 500 pixels, FLAC as long as the longest bucket, or tokens. Compare two programs as ratios
of runs in turns on one machine (`benchmarks/compare.py`).
"""

import io
import json
import os
import platform
import resource
import statistics
import time

from absl import flags, logging

from d2v_jax import cli

_CONFIG = cli.define_config()
_STEPS = flags.DEFINE_integer('steps', 10, 'Train steps that are timed, after two that are not.')
_PIPELINE_SECONDS = flags.DEFINE_float('pipeline_seconds', 10.0, 'How long the input pipeline is timed; 0: not at all.')


def time_steps(config, steps: int) -> dict:
  """Times the train step of a config on all devices; see the module's docstring for what is returned."""
  import jax

  from d2v_jax.data.audio import SAMPLE_RATE
  from d2v_jax.data.examples import random_batch
  from d2v_jax.parallel import mesh as meshes
  from d2v_jax.report.progress import peak_flops
  from d2v_jax.tasks import TASKS
  from d2v_jax.train.step import abstract_state, sharded_init, sharded_step

  mesh = meshes.build(config)
  objective = TASKS[config.task].objective_of(config)
  example = objective.modality.example
  batch = meshes.global_batch(mesh, random_batch(config, example, config.batch_size // jax.process_count()))

  start = time.perf_counter()
  lowered = sharded_step(objective, config, max(config.total_steps, 1), mesh).lower(
    abstract_state(objective, config, mesh), batch
  )
  traced = time.perf_counter()
  compiled = lowered.compile()
  compile_seconds = time.perf_counter() - traced

  state = sharded_init(objective, config, mesh)
  seconds = []
  for _ in range(steps + 2):
    start_step = time.perf_counter()
    state, metrics = compiled(state, batch)
    loss = float(metrics['loss'])  # waits for the step
    seconds.append(time.perf_counter() - start_step)
  seconds = seconds[2:]
  median = statistics.median(seconds)
  flops = config.batch_size * sum(objective.flops_per_example(example).values())
  per_second = config.batch_size * example[0] / median  # of samples or tokens, where examples are sequences
  peaks = [peak_flops(device) for device in mesh.devices.flat]
  return {
    'step_seconds': median,
    'step_seconds_min': min(seconds),
    'step_seconds_max': max(seconds),
    'examples_per_second': config.batch_size / median,
    **({'audio_seconds_per_second': per_second / SAMPLE_RATE} if config.modality == 'audio' else {}),
    **({'tokens_per_second': per_second} if config.modality == 'text' else {}),
    'model_flops_per_step': flops,
    'model_flops_per_second': flops / median,
    'mfu': None if None in peaks else flops / median / sum(peaks),
    'loss': loss,
    'trace_seconds': traced - start,
    'compile_seconds': compile_seconds,
    'peak_memory_bytes': _peak_memory(mesh.devices.flat[0]),
    'device': mesh.devices.flat[0].device_kind,
    'devices': mesh.size,
  }


def _peak_memory(device) -> int:
  """Of the device where it tells, else of this process."""
  stats = device.memory_stats() or {}
  return stats.get('peak_bytes_in_use') or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def time_pipeline(config, seconds: float) -> dict:
  """Times the loader alone, decoding and augmenting with at most as many workers as there are cores."""
  from d2v_jax.data.loader import TrainLoader
  from d2v_jax.data.sources import open_source
  from d2v_jax.errors import InputError

  try:
    source, origin = open_source(config, 'train'), config.data.source
  except InputError as error:
    logging.info('The pipeline is timed on generated files, since: %s', error)
    if config.modality == 'image':
      source, origin = _Photographs(), 'generated JPEG files, 400 x 500 pixels'
    elif config.modality == 'text':
      source, origin = _Tokens(config), 'generated tokens'
    else:
      seconds_each = config.data.bucket_seconds[-1]
      source, origin = _Recordings(seconds_each), f'generated FLAC files, {seconds_each:g} s'
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  config.data.workers = min(config.data.workers, cores)
  with TrainLoader(config, source, 0) as loader:
    next(loader)  # starting the workers is not counted
    start, batches, examples = time.perf_counter(), 0, 0
    while batches < 2 or time.perf_counter() - start < seconds:
      examples += len(next(loader)['valid'])
      batches += 1
    rate = examples / (time.perf_counter() - start)
  return {
    'pipeline_source': origin,
    'pipeline_examples_per_second': rate,
    'pipeline_examples_per_second_per_core': rate / cores,
    'pipeline_workers': config.data.workers,
    'cores': cores,
  }


class _Photographs:
  """A source of 64 different JPEG files with the size and about the bytes of ImageNet's."""

  classes = ()

  def __init__(self):
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    self._files = []
    for _ in range(64):
      coarse = Image.fromarray(rng.integers(0, 256, (50, 40, 3), np.uint8)).resize((400, 500), Image.Resampling.BICUBIC)
      noisy = np.asarray(coarse) + rng.normal(0, 4, (500, 400, 3))
      file = io.BytesIO()
      Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, 'jpeg', quality=90)
      self._files.append(file.getvalue())

  def __len__(self):
    return 1_000_000

  def read(self, index: int) -> dict:
    return {'image': self._files[index % len(self._files)], 'label': -1}

  def name(self, index: int) -> str:
    return f'photograph {index}'


class _Recordings:
  """A source of 16 different FLAC files, noise with the spectrum and about the bytes of speech."""

  classes = ()

  def __init__(self, seconds: float):
    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    self._files = []
    for _ in range(16):
      noise = np.convolve(rng.normal(size=round(seconds * 16_000)), np.hanning(16), 'same')
      file = io.BytesIO()
      soundfile.write(file, 0.05 * noise / noise.std(), 16_000, format='flac')
      self._files.append(file.getvalue())
    self.lengths = np.full(100_000, round(seconds * 16_000))
    self.texts = ['THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG'] * len(self.lengths)

  def __len__(self):
    return len(self.lengths)

  def read(self, index: int) -> dict:
    from d2v_jax.data.audio import decode

    return {'audio': decode(self._files[index % len(self._files)]), 'text': self.texts[index], 'label': -1}

  def name(self, index: int) -> str:
    return f'recording {index}'


class _Tokens:
  """A source of random tokens, as long as the longest batch."""

  classes = ()

  def __init__(self, config):
    import numpy as np

    longest = config.data.block_tokens if config.task == 'pretrain' else max(config.data.bucket_tokens)
    self._tokens = np.random.default_rng(0).integers(4, config.model.vocab_size, longest, np.int32)
    self.lengths = np.full(100_000, longest)

  def __len__(self):
    return len(self.lengths)

  def read(self, index: int) -> dict:
    return {'tokens': self._tokens, 'label': 0}

  def name(self, index: int) -> str:
    return f'text {index}'


def main() -> None:
  """The command; see the module's docstring."""
  config = cli.config_of(_CONFIG)
  import jax
  import jaxlib

  from d2v_jax import config as configs
  from d2v_jax.errors import InputError
  from d2v_jax.parallel import processes

  if _STEPS.value < 1:
    raise InputError(f'--steps: found {_STEPS.value}; at least 1 is needed')
  processes.initialize()
  configs.validate(config)
  result = time_steps(config, _STEPS.value)
  if _PIPELINE_SECONDS.value:
    result |= time_pipeline(config, _PIPELINE_SECONDS.value)
  result |= {
    'batch_size': config.batch_size,
    'dtype': config.dtype,
    'jax': jax.__version__,
    'jaxlib': jaxlib.__version__,
    'python': platform.python_version(),
  }
  for name, value in result.items():
    print(f'{name:>40}  {value:.5g}' if isinstance(value, float) else f'{name:>40}  {value}')
  print(json.dumps(result))


if __name__ == '__main__':
  cli.run(main)
