"""Metrics on disk: valid JSON, one line a step, nothing twice after a resume, in whatever state a kill left the file."""

import importlib.util
import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.errors import RunError
from d2v_jax.report import writers
from d2v_jax.report.writers import MetricsWriter, read_metrics, write_atomically


def lines(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(autouse=True)
def no_event_writer(monkeypatch):
  """Most tests are about the other files; those about events undo this."""
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)


def test_one_line_a_step_with_the_step_first(tmp_path):
  writer = MetricsWriter(tmp_path)
  writer.write(10, {'train/loss': jnp.float32(0.5), 'train/learning_rate': np.float64(1e-3)})
  assert (tmp_path / 'metrics.jsonl').read_text() == '{"step": 10, "train/loss": 0.5, "train/learning_rate": 0.001}\n'
  writer.write(20, {'train/loss': 0.25})
  writer.write(20, {'eval/knn/accuracy': 0.75})
  writer.write(10, {'eval/knn/accuracy': 0.5, 'train/loss': 0.125})
  assert lines(tmp_path) == [
    {'step': 10, 'train/loss': 0.125, 'train/learning_rate': 0.001, 'eval/knn/accuracy': 0.5},
    {'step': 20, 'train/loss': 0.25, 'eval/knn/accuracy': 0.75},
  ]
  writer.write(30, {'train/loss': 0.0625})
  assert [row['step'] for row in lines(tmp_path)] == [10, 20, 30]


def test_not_finite_is_null_and_reads_as_nan(tmp_path):
  writer = MetricsWriter(tmp_path)
  writer.write(1, {'train/loss': math.nan, 'train/grad_norm': -math.inf})
  assert lines(tmp_path) == [{'step': 1, 'train/loss': None, 'train/grad_norm': None}]
  assert math.isnan(read_metrics(tmp_path)[0]['train/loss'])
  assert writer.result({})['train/loss'] is None


def test_resume_drops_later_steps_and_the_half_written_line(tmp_path):
  writer = MetricsWriter(tmp_path)
  for step in (10, 20, 30):
    writer.write(step, {'train/loss': step})
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 40, "train/lo')
  writer = MetricsWriter(tmp_path, resume_step=20)
  assert [row['step'] for row in lines(tmp_path)] == [10, 20]
  writer.write(20, {'eval/knn/accuracy': 0.5})
  writer.write(30, {'train/loss': 31})
  assert lines(tmp_path) == [
    {'step': 10, 'train/loss': 10},
    {'step': 20, 'train/loss': 20, 'eval/knn/accuracy': 0.5},
    {'step': 30, 'train/loss': 31},
  ]


def test_half_written_line_before_the_resume_step(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 10, "train/loss": 1}\n{"step": 2')
  MetricsWriter(tmp_path, resume_step=40).write(50, {'train/loss': 2})
  assert lines(tmp_path) == [{'step': 10, 'train/loss': 1}, {'step': 50, 'train/loss': 2}]


def test_new_run_starts_an_empty_record(tmp_path):
  MetricsWriter(tmp_path).write(10, {'train/loss': 1})
  MetricsWriter(tmp_path)
  assert read_metrics(tmp_path) == []


def test_result_has_the_last_value_of_every_metric(tmp_path):
  writer = MetricsWriter(tmp_path)
  writer.write(10, {'train/loss': 2, 'eval/knn/accuracy': 0.5})
  writer.write(20, {'train/loss': 1})
  returned = writer.result({'steps': 20, 'seconds': np.float32(1.5)})
  expected = {'step': 20, 'train/loss': 1, 'eval/knn/accuracy': 0.5, 'steps': 20, 'seconds': 1.5}
  assert returned == expected
  assert json.loads((tmp_path / 'result.json').read_text()) == expected


def test_only_process_zero_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  writer = MetricsWriter(tmp_path, resume_step=3)
  writer.write(1, {'train/loss': 1})
  writer.result({})
  writer.close()
  assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file_and_is_one_line(tmp_path, monkeypatch):
  writer = MetricsWriter(tmp_path)
  writer.write(1, {'train/loss': 1})
  before = (tmp_path / 'metrics.jsonl').read_bytes()

  def disk_full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(writers.os, 'fsync', disk_full)
  with pytest.raises(RunError, match='No space left on device') as caught:
    writer.write(1, {'eval/knn/accuracy': 1})
  assert '\n' not in str(caught.value)
  assert (tmp_path / 'metrics.jsonl').read_bytes() == before
  assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']


def test_write_atomically_replaces(tmp_path):
  for content in (b'old', b'new'):
    write_atomically(tmp_path / 'file', content)
  assert (tmp_path / 'file').read_bytes() == b'new'


@pytest.mark.parametrize('installed', [('tensorboardX',), ('tensorboardX', 'tensorflow'), ('tensorboardX', 'tensorboard')])
def test_events_where_clu_cannot_write(tmp_path, monkeypatch, installed):
  pytest.importorskip('tensorboardX')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object() if name in installed else None)
  from tensorboardX.proto import event_pb2

  writer = MetricsWriter(tmp_path, resume_step=5)
  writer.write(7, {'train/loss': 0.5, 'eval/knn/accuracy': math.nan})
  writer.close()
  (path,) = tmp_path.glob('events.out.tfevents.*')
  content, events = path.read_bytes(), []  # records of length, checksum, data, checksum
  while content:
    length = int.from_bytes(content[:8], 'little')
    events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
    content = content[16 + length :]
  assert events[0].file_version == 'brain.Event:2'
  assert (events[1].step, events[1].session_log.status) == (6, event_pb2.SessionLog.START)  # purges what came after step 5
  values = {value.tag: value.simple_value for value in events[2].summary.value}
  assert events[2].step == 7 and values['train/loss'] == 0.5 and math.isnan(values['eval/knn/accuracy'])


def test_events_by_clu_where_tensorflow_is(tmp_path, monkeypatch):
  """With stand-ins for both, since TensorFlow is no dependency."""
  written = []

  class SummaryWriter:
    def __init__(self, logdir):
      assert logdir == str(tmp_path)

    def write_scalars(self, step, scalars):
      written.append((step, scalars))

    def flush(self):
      written.append('flush')

    def close(self):
      written.append('close')

  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object() if name.startswith('tensor') else None)
  monkeypatch.setitem(sys.modules, 'clu.metric_writers', types.SimpleNamespace(SummaryWriter=SummaryWriter))
  monkeypatch.setattr('clu.metric_writers', sys.modules['clu.metric_writers'], raising=False)
  writer = MetricsWriter(tmp_path)
  writer.write(1, {'train/loss': 2.0})
  writer.close()
  assert written == [(1, {'train/loss': 2.0}), 'flush', 'close']


def test_no_event_writer_installed(tmp_path):
  writer = MetricsWriter(tmp_path)
  writer.write(1, {'train/loss': 2.0})
  writer.close()
  assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']


def test_full_disk_stops_events_not_the_run(tmp_path, monkeypatch):
  class Full:
    def write(self, step, metrics):
      raise OSError(28, 'No space left on device')

  monkeypatch.setattr(writers, '_open_events', lambda *arguments: Full())
  writer = MetricsWriter(tmp_path)
  writer.write(1, {'train/loss': 1.0})
  writer.write(2, {'train/loss': 1.0})
  writer.close()
  assert [row['step'] for row in lines(tmp_path)] == [1, 2]
