"""The loader: host batches of examples, decoded and augmented by Grain workers.

A batch is a dict of NumPy arrays: what the modality's reader makes of its examples (`examples.py`), and 'valid' bool [b]. A
row that could not be read is zeros with valid False; each such example is named once, counted, and too many of them end the
run. Which examples a step sees, and how each is cropped, follow from (seed, step, row) alone, so any number of hosts and
workers gives the same global batch and a run resumes by naming its step.
"""

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import weakref

import numpy as np
from absl import flags, logging

from d2v_jax.data.examples import READERS
from d2v_jax.data.order import eval_buckets, plan_batches
from d2v_jax.errors import InputError, RunError

_ENDLESS = 1 << 40  # steps
_SMALL_ARRAY = 1 << 16  # bytes below which an array is sent through the pipe instead of shared memory
_MAX_EVAL_THREADS = 16


class TrainLoader:
  """Iterates over the host's part of the batches of `start_step`, `start_step` + 1, ... without end.

  Args:
    config: the whole config; `seed`, `batch_size` and `data` are read.
    source: what to read from; see `sources`.
    start_step: step of the first batch.
    share: (index, count): this process is one of `count` that each load an equal part of every batch; None: as in JAX.
    plan: which examples make up each batch, where the caller has it already (`order.plan_batches`).

  Attributes:
    unreadable: name -> reason of the examples that could not be read so far.

  Raises while iterating:
    InputError: more than `config.data.max_unreadable` examples could not be read, or all of a batch.
    RunError: a worker process died.
  """

  def __init__(self, config, source, start_step: int, share: tuple[int, int] | None = None, plan=None):
    self.unreadable = {}
    self._source = source
    self._max_unreadable = config.data.max_unreadable
    self._step = start_step
    share = share or _share_of_this_process()
    self._alone = share[1] == 1
    plan = plan or plan_batches(config, source)
    for bucket in plan.buckets:
      _rows_of(share, bucket.rows)
    load = _TrainBatch(config, source, plan, share)
    self._batches = _load_batches(load, range(start_step, _ENDLESS), config.data.workers, config.data.prefetch)
    # Also runs when the loader is dropped or the program ends, before Python takes apart what closing needs.
    weakref.finalize(self, self._batches.close)

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    try:
      batch = next(self._batches)
    except RuntimeError as error:
      if 'exit code' not in str(error):
        raise
      raise RunError(
        f'a data worker process died ({error}) at step {self._step}: out of memory, or /dev/shm is too small for'
        ' config.data.workers * config.data.prefetch batches; lower either, or raise the limit'
      ) from None
    found = batch.pop('unreadable')
    if self._alone and not batch['valid'].any():
      raise InputError(
        f'config.data.source: all unreadable: none of the {len(found)} examples of step {self._step} could be read;'
        f' the first: {found[0][0]}: {found[0][1]}'
      )
    _report_unreadable(found, self.unreadable, self._max_unreadable, len(self._source))
    self._step += 1
    # Out of shared memory at once, so that its segments do not live for as long as a caller keeps a batch.
    return {key: np.array(value) for key, value in batch.items()}

  def close(self):
    """Stops the workers; the loader cannot be iterated afterwards. Safe to call twice."""
    self._batches.close()

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()


def eval_batches(config, source, indices, batch_size: int):
  """Yields batches of the given examples, uncut; every example comes exactly once.

  Images come in the order of `indices`, `batch_size` at a time; speech comes by length, in batches of about as much as
  `batch_size` clips of the longest bucket. 'index' int64 [b] tells which example a row is; rows with valid False are padding
  (index -1) or could not be read. Decoding runs in threads. Raises InputError as `TrainLoader` does.
  """
  indices = np.asarray(indices, np.int64)
  load = _EvalBatch(config, source, eval_buckets(config, source, indices, batch_size) if len(indices) else [])
  unreadable = {}
  ahead = min(os.cpu_count() or 1, _MAX_EVAL_THREADS)
  for batch in _load_batches(load, range(len(load)), workers=0, prefetch=ahead):
    _report_unreadable(batch.pop('unreadable'), unreadable, config.data.max_unreadable, len(indices))
    yield batch


class _TrainBatch:
  """Step -> this process's rows of its batch. Travels to the workers, so it holds plain values only."""

  def __init__(self, config, source, plan, share):
    self._source, self._plan, self._share = source, plan, share
    self._seed, self._reader = config.seed, READERS[config.modality](config)

  def __call__(self, step: int) -> dict:
    indices, bucket = self._plan.batch(step)
    rows = _rows_of(self._share, bucket.rows)

    def read(row: int, example: dict) -> dict:
      seed = np.random.SeedSequence((self._seed, step, rows[row]))
      return self._reader.train(example, bucket.shape, np.random.Generator(np.random.PCG64(seed)))

    return _read_batch(self._source, indices[rows], self._reader.empty(len(rows), bucket.shape, training=True), read)


class _EvalBatch:
  """Number of a batch -> that batch."""

  def __init__(self, config, source, buckets):
    self._source, self._reader = source, READERS[config.modality](config)
    self._parts = [
      (bucket, bucket.members[first : first + bucket.rows])
      for bucket in buckets
      for first in range(0, len(bucket.members), bucket.rows)
    ]

  def __len__(self) -> int:
    return len(self._parts)

  def __call__(self, number: int) -> dict:
    bucket, indices = self._parts[number]
    read = lambda row, example: self._reader.evaluate(example, bucket.shape)
    batch = _read_batch(self._source, indices, self._reader.empty(bucket.rows, bucket.shape, training=False), read)
    batch['index'] = np.pad(indices, (0, bucket.rows - len(indices)), constant_values=-1)
    return batch


def _read_batch(source, indices, batch: dict, read) -> dict:
  """Fills the rows of a batch; whatever goes wrong with one example stays with that example."""
  batch['valid'] = np.zeros(len(next(iter(batch.values()))), bool)
  unreadable = []
  for row, index in enumerate(indices):
    try:
      values = read(row, source.read(index))
      for key, value in values.items():
        batch[key][row] = value
      batch['valid'][row] = True
    except Exception as error:  # decoders raise many kinds; all of them mean that this example is bad
      unreadable.append((source.name(index), _reason(error)))
  return batch | {'unreadable': unreadable}


def _reason(error: Exception) -> str:
  text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
  return ' '.join(text.split()) or type(error).__name__


def _report_unreadable(found, unreadable: dict[str, str], allowed: int, num_examples: int):
  """Adds to `unreadable`, names what is new, and raises InputError when it is more than allowed, or everything."""
  for name, reason in found:
    if name not in unreadable:
      unreadable[name] = reason
      _warn_once(name, reason)
      if len(unreadable) > allowed:
        raise InputError(
          f'config.data.source: {len(unreadable)} examples could not be read, config.data.max_unreadable={allowed} are'
          f' allowed; the last: {name}: {reason}'
        )
      if len(unreadable) == num_examples:
        raise InputError(f'config.data.source: all unreadable: none of {num_examples} examples; the last: {name}: {reason}')


@functools.cache
def _warn_once(name: str, reason: str):
  logging.warning('unreadable, skipped: %s: %s', name, reason)


def _share_of_this_process() -> tuple[int, int]:
  import jax

  return jax.process_index(), jax.process_count()


def _rows_of(share: tuple[int, int], rows: int) -> range:
  """The rows of a global batch that process `index` of `count` loads."""
  index, count = share
  each, rest = divmod(rows, count)
  if rest:
    raise InputError(f'config.batch_size: batches of {rows} cannot be shared evenly by {count} processes')
  return range(index * each, (index + 1) * each)


def _load_batches(load, numbers: range, workers: int, prefetch: int):
  """Yields load(number) for each number, in order: by worker processes, or by threads where `workers` is 0."""
  import grain

  if not flags.FLAGS.is_parsed():  # Grain reads flags; a program without absl's app.run has not parsed any
    flags.FLAGS.mark_as_parsed()
  batches = grain.MapDataset.range(numbers.start, numbers.stop).map(load)
  if workers:
    # Each worker overlaps reading the next batch with decoding this one.
    batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    options = grain.experimental.DatasetOptions(min_shm_size=_SMALL_ARRAY)
    batches = grain.experimental.WithOptionsIterDataset(batches, options)
    batches = batches.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch), worker_init_fn=_start_worker
    )
  else:
    prefetch = max(prefetch, 1)
    threads = min(os.cpu_count() or 1, prefetch)
    batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch))
  with contextlib.closing(iter(batches)) as iterator:
    yield from iterator


def _start_worker(worker: int, num_workers: int):
  """Signals to stop go to the main process, which closes the workers; if it is killed, they end by themselves."""
  del worker, num_workers
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def end_with_parent():
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()
