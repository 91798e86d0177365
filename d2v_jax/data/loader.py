"""The loader: host batches of images, decoded and augmented by Grain workers.

A batch is a dict of NumPy arrays: 'image' uint8 [b, S, S, 3], 'label' int32 [b] (-1: none), 'valid' bool [b]. A row that
could not be read is zeros with valid False; each such example is named once, counted, and too many of them end the run.
Which examples a step sees, and how each is cropped, follow from (seed, step, row) alone, so any number of hosts and
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

from d2v_jax.data.images import eval_image, train_image
from d2v_jax.data.order import example_indices
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
    host_rows: the slice of the global batch this process loads; None: its share among all JAX processes.

  Attributes:
    unreadable: name -> reason of the examples that could not be read so far.

  Raises while iterating:
    InputError: more than `config.data.max_unreadable` examples could not be read, or all of a batch.
    RunError: a worker process died.
  """

  def __init__(self, config, source, start_step: int, host_rows: slice | None = None):
    self.unreadable = {}
    self._source = source
    self._max_unreadable = config.data.max_unreadable
    self._step = start_step
    rows = range(config.batch_size)[host_rows if host_rows is not None else _rows_of_this_process(config.batch_size)]
    self._whole_batch = len(rows) == config.batch_size
    load = _TrainBatch(
      source=source, seed=config.seed, batch_size=config.batch_size, rows=rows, size=config.data.image_size,
      crop_area=tuple(config.data.crop_area), crop_aspect=tuple(config.data.crop_aspect), flip=config.data.flip,
    )  # fmt: skip
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
    if self._whole_batch and not batch['valid'].any():
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
  """Yields batches [batch_size] of the given examples in order, with the evaluation crop; the last one is padded.

  Every example comes exactly once; rows with valid False are padding or could not be read. Decoding runs in threads.
  Raises InputError as `TrainLoader` does.
  """
  indices = np.asarray(indices, np.int64)
  load = _EvalBatch(source, indices, batch_size, config.data.image_size)
  unreadable = {}
  ahead = min(os.cpu_count() or 1, _MAX_EVAL_THREADS)
  for batch in _load_batches(load, range(-(-len(indices) // batch_size)), workers=0, prefetch=ahead):
    _report_unreadable(batch.pop('unreadable'), unreadable, config.data.max_unreadable, len(indices))
    yield batch


class _TrainBatch:
  """Step -> the host's rows of its batch. Travels to the workers, so it holds plain values only."""

  def __init__(self, source, seed, batch_size, rows, size, crop_area, crop_aspect, flip):
    self._source, self._seed, self._batch_size, self._rows = source, seed, batch_size, rows
    self._size, self._crop = size, (crop_area, crop_aspect, flip)

  def __call__(self, step: int) -> dict:
    indices = example_indices(self._seed, step, self._batch_size, len(self._source))[self._rows]

    def decode(row: int, image) -> np.ndarray:
      rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self._seed, step, self._rows[row]))))
      return train_image(image, self._size, *self._crop, rng)

    return _read_batch(self._source, indices, len(indices), self._size, decode)


class _EvalBatch:
  """Number of a batch -> that batch."""

  def __init__(self, source, indices, batch_size, size):
    self._source, self._indices, self._batch_size, self._size = source, indices, batch_size, size

  def __call__(self, number: int) -> dict:
    indices = self._indices[number * self._batch_size : (number + 1) * self._batch_size]
    return _read_batch(self._source, indices, self._batch_size, self._size, lambda row, image: eval_image(image, self._size))


def _read_batch(source, indices, batch_size: int, size: int, decode) -> dict:
  """Reads and decodes; whatever goes wrong with one example stays with that example."""
  images = np.zeros((batch_size, size, size, 3), np.uint8)
  labels = np.full(batch_size, -1, np.int32)
  valid = np.zeros(batch_size, bool)
  unreadable = []
  for row, index in enumerate(indices):
    try:
      example = source.read(index)
      images[row] = decode(row, example['image'])
      labels[row], valid[row] = example['label'], True
    except Exception as error:  # decoders raise many kinds; all of them mean that this example is bad
      unreadable.append((source.name(index), _reason(error)))
  return {'image': images, 'label': labels, 'valid': valid, 'unreadable': unreadable}


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


def _rows_of_this_process(batch_size: int) -> slice:
  import jax

  count, rest = divmod(batch_size, jax.process_count())
  if rest:
    raise InputError(f'config.batch_size: {batch_size} cannot be shared evenly by {jax.process_count()} processes')
  return slice(jax.process_index() * count, (jax.process_index() + 1) * count)


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
