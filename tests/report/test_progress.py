"""The progress line, on a clock that the test moves."""

import math
from types import SimpleNamespace

import pytest

from d2v_jax.report.progress import Progress, format_duration, format_scores, peak_flops


class Clock:
  now = 1000.0

  def __call__(self):
    return self.now


def device(kind):
  return SimpleNamespace(device_kind=kind)


@pytest.fixture
def clock():
  return Clock()


def run_steps(progress, clock, count, seconds, wait=0.0, examples=10, flops=0.0):
  for _ in range(count):
    clock.now += seconds
    progress.step(examples, flops, wait)


def test_rates_and_eta_leave_out_the_first_step(clock):
  progress = Progress(1000, 0, clock=clock, devices=[device('cpu')])
  run_steps(progress, clock, 1, 60.0)  # compiles
  assert progress.rates() == {} and progress.eta_seconds() == math.inf
  run_steps(progress, clock, 9, 0.5, wait=0.125, examples=32)
  rates = progress.rates()
  assert rates == pytest.approx({'train/steps_per_second': 2, 'train/examples_per_second': 64, 'train/data_wait': 0.25})
  assert progress.eta_seconds() == pytest.approx(990 * 0.5)


def test_steps_of_different_sizes_count_for_what_they_are(clock):
  progress = Progress(100, 0, clock=clock, devices=[device('TPU v5 lite')])
  run_steps(progress, clock, 1, 9.0, examples=1000, flops=1e15)
  run_steps(progress, clock, 1, 1.0, examples=4, flops=197e11)
  run_steps(progress, clock, 1, 3.0, examples=24, flops=3 * 197e11)
  assert progress.rates()['train/examples_per_second'] == pytest.approx(28 / 4)
  assert progress.rates()['train/mfu'] == pytest.approx(0.1)


def test_rates_are_of_the_last_stretch_and_eta_of_the_whole(clock):
  progress = Progress(100, 0, clock=clock, devices=[device('cpu')])
  run_steps(progress, clock, 11, 1.0)
  progress.rates()
  run_steps(progress, clock, 10, 3.0)
  assert progress.rates()['train/examples_per_second'] == pytest.approx(10 / 3)
  assert progress.rates()['train/examples_per_second'] == pytest.approx(10 / 3)  # asked again without a new step
  assert progress.eta_seconds() == pytest.approx(79 * 2.0)


def test_paused_time_counts_for_nothing(clock):
  progress = Progress(100, 0, clock=clock, devices=[device('cpu')])
  run_steps(progress, clock, 6, 1.0)
  with progress.pause():
    clock.now += 500.0
  run_steps(progress, clock, 5, 1.0)
  assert progress.rates()['train/steps_per_second'] == pytest.approx(1.0)
  assert progress.eta_seconds() == pytest.approx(89.0)


def test_a_pause_ends_when_what_it_holds_fails(clock):
  progress = Progress(100, 0, clock=clock, devices=[device('cpu')])
  run_steps(progress, clock, 1, 1.0)
  with pytest.raises(ValueError), progress.pause():
    clock.now += 500.0
    raise ValueError
  run_steps(progress, clock, 1, 1.0)
  assert progress.rates()['train/steps_per_second'] == pytest.approx(1.0)


def test_resumed_run(clock):
  progress = Progress(100, 90, clock=clock, devices=[device('cpu')])
  run_steps(progress, clock, 6, 2.0)
  assert progress.eta_seconds() == pytest.approx(4 * 2.0)
  run_steps(progress, clock, 4, 2.0)
  assert progress.eta_seconds() == 0


def test_mfu_is_of_all_devices(clock):
  devices = [device('TPU v5 lite')] * 4
  progress = Progress(100, 0, clock=clock, devices=devices)
  run_steps(progress, clock, 3, 0.5, flops=197e12)
  assert progress.rates()['train/mfu'] == pytest.approx(0.5)  # a quarter second at the peak of four chips
  assert 'MFU 50.0%' in progress.line(3, {})


def test_no_mfu_on_unknown_devices(clock):
  progress = Progress(100, 0, clock=clock, devices=[device('TPU v4'), device('cpu')])
  run_steps(progress, clock, 3, 0.5, flops=1e12)
  assert 'train/mfu' not in progress.rates()


def test_line(clock):
  progress = Progress(1000, 0, clock=clock, devices=[device('cpu')])
  assert progress.line(0, {}) == '0/1000 (0.0%) | ETA ?'
  run_steps(progress, clock, 101, 0.5, wait=0.05, examples=32)
  line = progress.line(101, {'train/loss': 1.23456, 'train/learning_rate': 5e-4, 'train/data_wait': 0.1})
  assert line == (
    '101/1000 (10.1%) | ETA 7m30s | 64 examples/s | 2 steps/s | waiting for data 10% | loss=1.235 learning_rate=0.0005'
  )


@pytest.mark.parametrize(
  'kind, teraflops',
  [
    ('TPU v2', 22.5), ('TPU v3', 61.5), ('TPU v4', 275), ('TPU v5 lite', 197), ('TPU v5e', 197), ('TPU v5', 459),
    ('TPU v5p', 459), ('TPU v6 lite', 918), ('TPU v6e', 918), ('NVIDIA A100-SXM4-80GB', 312), ('NVIDIA A10', 125),
    ('NVIDIA A10G', 70), ('NVIDIA L4', 121), ('NVIDIA L40S', 362), ('Tesla V100-SXM2-16GB', 125),
    ('NVIDIA H100 80GB HBM3', 989), ('NVIDIA H100 PCIe', 756), ('NVIDIA H100 NVL', 835), ('NVIDIA H200', 989),
    ('NVIDIA B200', 2250), ('NVIDIA GeForce RTX 4090', 165), ('cpu', None), ('NVIDIA H100 80GB HBM3 MIG 1g.10gb', None),
    ('NVIDIA GeForce GTX 1080', None),
  ],
)  # fmt: skip
def test_peak_flops(kind, teraflops):
  assert peak_flops(device(kind)) == (teraflops and pytest.approx(teraflops * 1e12))


@pytest.mark.parametrize(
  'seconds, text',
  [(0, '0s'), (59.4, '59s'), (59.6, '1m00s'), (185, '3m05s'), (7620, '2h07m'), (356400, '4d03h'), (math.inf, '?')],
)
def test_format_duration(seconds, text):
  assert format_duration(seconds) == text


def test_scores_are_a_table():
  scores = {'eval/knn/accuracy': 0.75, 'eval/knn/pixels': 0.5, 'eval/linear_probe/accuracy': 0.625, 'eval/unreadable': 3}
  assert format_scores(scores).splitlines() == [
    '                        accuracy      pixels',
    'knn                       0.7500      0.5000',
    'linear_probe              0.6250            ',
    'unreadable=3',
  ]
