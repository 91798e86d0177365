"""What a run leaves in numbers: metrics.jsonl, result.json and TensorBoard events, in the workdir.

metrics.jsonl has one line a step: `{"step": 100, "train/loss": 0.42, ...}`, steps ascending. A value that is not finite is
written as null, since JSON has no word for it.
"""

import contextlib
import importlib.util
import json
import math
import os
import time
from pathlib import Path

import jax
from absl import logging

from d2v_jax.errors import RunError


class MetricsWriter:
  """Writes scalars as they come, and the result at the end. Only process 0 writes; in the others every call does nothing."""

  def __init__(self, workdir: str | os.PathLike, resume_step: int | None = None):
    """Opens the run's records.

    Args:
      workdir: an existing folder.
      resume_step: the step the run goes on from: records of later steps are dropped, since they will come again. None: a new
        run, all earlier records are dropped.
    """
    self._path = Path(workdir) / 'metrics.jsonl'
    self._writes = jax.process_index() == 0
    self._last_step = -1
    self._events = None
    if self._writes:
      kept = [row for row in read_metrics(workdir) if resume_step is not None and row['step'] <= resume_step]
      self._rewrite(kept)
      self._events = _open_events(str(workdir), resume_step)

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Records scalars of one step. Writes to the same step are merged into its line; the later value of a name wins.

    Raises:
      RunError: the file cannot be written (disk full, for example).
    """
    if not self._writes or not metrics:
      return
    step = int(step)
    metrics = {name: float(value) for name, value in metrics.items()}
    if step > self._last_step:
      with _reporting_errors(self._path), open(self._path, 'a', encoding='utf-8') as file:
        file.write(json.dumps({'step': step, **_finite(metrics)}, allow_nan=False) + '\n')
      self._last_step = step
    else:
      rows = {row['step']: row for row in read_metrics(self._path.parent)}
      rows[step] = rows.get(step, {'step': step}) | _finite(metrics)
      self._rewrite([rows[known] for known in sorted(rows)])
    if self._events is not None:
      try:
        self._events.write(step, metrics)
      except OSError as error:
        logging.warning('TensorBoard events stop here: %s', error)
        self._events = None

  def result(self, values: dict) -> dict:
    """Writes result.json: the last value of every metric of this run, then `values` (any JSON) over them. Returns it."""
    result = {}
    for row in read_metrics(self._path.parent):
      result.update(row)
    result.update(values)
    if self._writes:
      result = _finite(result)
      text = json.dumps(result, indent=2, allow_nan=False) + '\n'
      with _reporting_errors(self._path):
        write_atomically(self._path.with_name('result.json'), text.encode())
    return result

  def close(self) -> None:
    """Closes the event file. The other files are complete after every call."""
    if self._events is not None:
      self._events.close()
      self._events = None

  def _rewrite(self, rows):
    text = ''.join(json.dumps(row, allow_nan=False) + '\n' for row in rows)
    with _reporting_errors(self._path):
      write_atomically(self._path, text.encode())
    self._last_step = rows[-1]['step'] if rows else -1


def read_metrics(workdir: str | os.PathLike) -> list[dict]:
  """Reads metrics.jsonl: one dict a step, steps ascending, nulls as NaN. A half-written or broken line is left out."""
  path = Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  rows = {}
  for number, line in enumerate(path.read_text(encoding='utf-8', errors='replace').splitlines(), 1):
    try:
      row = json.loads(line)
      step = int(row['step'])
    except (ValueError, TypeError, KeyError):
      logging.warning('%s line %d is half-written or damaged and left out', path, number)
      continue
    rows[step] = rows.get(step, {}) | {name: math.nan if value is None else value for name, value in row.items()}
  return [rows[step] for step in sorted(rows)]


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file so that at any moment, power cuts included, either the old content stands or the new one."""
  path = Path(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    with open(temporary, 'wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _finite(values):
  result = {}
  for name, value in values.items():
    if not isinstance(value, (str, bool, int, list, dict, type(None))):
      value = float(value)  # NumPy and JAX scalars too
    result[name] = None if isinstance(value, float) and not math.isfinite(value) else value
  return result


@contextlib.contextmanager
def _reporting_errors(path):
  try:
    yield
  except OSError as error:
    raise RunError(
      f'{path.parent}: cannot write the metrics ({error.strerror}); make room or check the permissions'
    ) from error


def _open_events(logdir, resume_step):
  def installed(*modules):
    return all(importlib.util.find_spec(module) is not None for module in modules)

  # clu.metric_writers imports both at its top (TensorFlow no longer brings TensorBoard along), so look before importing.
  if installed('tensorflow', 'tensorboard'):
    return _CluEvents(logdir)
  if installed('tensorboardX'):
    return _Events(logdir, resume_step)
  logging.info('No TensorBoard events: no tensorboardX, nor tensorflow with tensorboard, is installed. See metrics.jsonl.')
  return None


class _CluEvents:
  def __init__(self, logdir):
    from clu import metric_writers

    self._writer = metric_writers.SummaryWriter(logdir)

  def write(self, step, metrics):
    self._writer.write_scalars(step, metrics)
    self._writer.flush()

  def close(self):
    self._writer.close()


class _Events:
  """An event file through tensorboardX, written in place: its own background thread dies on a full disk and then blocks."""

  def __init__(self, logdir, resume_step):
    from tensorboardX import event_file_writer, proto

    self._proto = proto
    # Records after the resume step are purged by the reader when it meets this start mark.
    self._writer = event_file_writer.EventsWriter(os.path.join(logdir, 'events'), filename_suffix=f'.{os.getpid()}')
    if resume_step is not None:
      start = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
      self._event(step=resume_step + 1, session_log=start)
    self._writer.flush()

  def _event(self, **fields):
    self._writer.write_event(self._proto.event_pb2.Event(wall_time=time.time(), **fields))

  def write(self, step, metrics):
    summary = self._proto.summary_pb2.Summary
    values = [summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
    self._event(step=step, summary=summary(value=values))
    self._writer.flush()

  def close(self):
    self._writer.close()
