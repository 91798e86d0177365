"""The progress line of a run: where it stands, how fast it goes, when it will be done, and what it waits for."""

import contextlib
import math
import re
import time

import jax
from absl import logging

# Peak dense bfloat16 FLOP/s of one JAX device, by a pattern of its `device_kind`; the first match counts. From the
# makers' data sheets, without sparsity. A TPU v2 or v3 device is one of the two cores of a chip. V100: float16.
_PEAK_FLOPS = (
  (r'TPU v2', 22.5e12),
  (r'TPU v3', 61.5e12),
  (r'TPU v4 lite', 138e12),
  (r'TPU v4', 275e12),
  (r'TPU v5 ?(lite|e)', 197e12),
  (r'TPU v5p?', 459e12),
  (r'TPU v6 ?(lite|e)', 918e12),
  (r'GB200', 2500e12),
  (r'B200', 2250e12),
  (r'H200 NVL', 835e12),
  (r'G?H200', 989e12),
  (r'H100 NVL', 835e12),
  (r'H100 PCIe', 756e12),
  (r'H100', 989e12),
  (r'A100', 312e12),
  (r'L40S', 362e12),
  (r'L40', 181e12),
  (r'L4', 121e12),
  (r'A10G', 70e12),
  (r'A10', 125e12),
  (r'V100.*PCIE', 112e12),
  (r'V100', 125e12),
  (r'RTX 4090', 165e12),
)


def peak_flops(device) -> float | None:
  """Returns the peak bfloat16 FLOP/s of a JAX device, or None when it is not known (CPUs, slices of a GPU, new chips)."""
  kind = device.device_kind
  if 'MIG' in kind:
    return None
  return next((peak for pattern, peak in _PEAK_FLOPS if re.search(rf'\b{pattern}\b', kind, re.IGNORECASE)), None)


class Progress:
  """Keeps the clock of a run.

  Call `step` after every step, put `pause` around what is not training (evaluating, saving), and ask for `rates` or a `line`
  when it is time to log. The first step is left out of the estimates: it compiles.
  """

  def __init__(self, total_steps, start_step, clock=time.monotonic, devices=None):
    """Starts the clock.

    Args:
      total_steps: the step at which the run is done.
      start_step: the step it starts from (above 0 when resuming).
      clock: returns seconds.
      devices: JAX devices that share a step; None: all.
    """
    self._total_steps = total_steps
    peaks = [peak_flops(device) for device in (jax.devices() if devices is None else devices)]
    self._peak = None if None in peaks else sum(peaks)
    self._clock = clock
    self._paused = 0.0
    self._step = start_step
    self._waited = 0.0
    self._examples = 0
    self._flops = 0.0
    self._first = None  # (step, time) after the first step: the origin of the ETA
    self._window = self._mark()
    self._rates = {}

  def _mark(self):
    return self._step, self._now(), self._waited, self._examples, self._flops

  def _now(self):
    return self._clock() - self._paused

  def step(self, examples: int, flops: float = 0.0, wait_seconds: float = 0.0) -> None:
    """Counts one finished step: its examples and model FLOPs, over all devices, and the seconds it waited for its batch."""
    self._step += 1
    self._waited += wait_seconds
    self._examples += examples
    self._flops += flops
    if self._first is None:
      self._first = (self._step, self._now())
      self._window = self._mark()

  @contextlib.contextmanager
  def pause(self):
    """Time spent in this context counts neither for the rates nor for the ETA."""
    start = self._clock()
    try:
      yield
    finally:
      self._paused += self._clock() - start

  def rates(self) -> dict[str, float]:
    """Returns rates over the steps since the last call that saw new ones (the same again where there are none).

    Keys: train/steps_per_second, train/examples_per_second, train/data_wait (share of the time spent waiting for data) and,
    where the device is known, train/mfu (model FLOP/s over the peak bfloat16 FLOP/s). Empty until two steps are done.
    """
    mark = self._mark()
    steps, seconds, waited, examples, flops = (now - last for now, last in zip(mark, self._window))
    if steps > 0 and seconds > 0:
      self._rates = {
        'train/steps_per_second': steps / seconds,
        'train/examples_per_second': examples / seconds,
        'train/data_wait': min(waited / seconds, 1.0),
      }
      if self._peak is not None and flops:
        self._rates['train/mfu'] = flops / seconds / self._peak
      self._window = mark
    return dict(self._rates)

  def eta_seconds(self) -> float:
    """Returns the seconds of training that remain at the average speed so far; infinite before two steps are done."""
    if self._step >= self._total_steps:
      return 0.0
    if self._first is None or self._step == self._first[0]:
      return math.inf
    return (self._now() - self._first[1]) / (self._step - self._first[0]) * (self._total_steps - self._step)

  def line(self, step: int, metrics: dict[str, float]) -> str:
    """Returns the line for the log: progress, ETA, rates, then the given metrics without their prefix."""
    rates = self.rates()
    parts = [f'{step}/{self._total_steps} ({100 * step / self._total_steps:.1f}%)']
    parts.append(f'ETA {format_duration(self.eta_seconds())}')
    if rates:
      parts.append(f'{rates["train/examples_per_second"]:.4g} examples/s')
      parts.append(f'{rates["train/steps_per_second"]:.3g} steps/s')
      if 'train/mfu' in rates:
        parts.append(f'MFU {100 * rates["train/mfu"]:.1f}%')
      parts.append(f'waiting for data {100 * rates["train/data_wait"]:.0f}%')
    shown = {name.removeprefix('train/'): value for name, value in metrics.items() if name not in rates}
    return ' | '.join(parts + [' '.join(f'{name}={value:.4g}' for name, value in shown.items())]).removesuffix(' | ')


def reported(items, total: int, what: str, every_seconds: float = 10.0, clock=time.monotonic):
  """Yields items (`total` of them) and logs from time to time how many are done and how long the rest will take."""
  start = last = clock()
  for done, item in enumerate(items, 1):
    yield item
    now = clock()
    if now - last >= every_seconds and done < total:
      last = now
      eta = format_duration((now - start) / done * (total - done))
      logging.info('%s: %d/%d (%.0f%%) | ETA %s', what, done, total, 100 * done / total, eta)


def format_scores(metrics: dict[str, float]) -> str:
  """Lays out scores named eval/SCORE/KIND as a table, a row for each score and a column for each kind; others in a line."""
  table, rest = {}, []
  for name, value in metrics.items():
    score, _, kind = name.removeprefix('eval/').partition('/')
    if kind:
      table.setdefault(score, {})[kind] = value
    else:
      rest.append(f'{score}={value:.4g}')
  kinds = list(dict.fromkeys(kind for row in table.values() for kind in row))
  lines = [' ' * 20 + ''.join(f'{kind:>12}' for kind in kinds)] if kinds else []
  for score, row in table.items():
    lines.append(f'{score:20}' + ''.join(f'{row[kind]:12.4f}' if kind in row else ' ' * 12 for kind in kinds))
  return '\n'.join(lines + ([' '.join(rest)] if rest else []))


def format_duration(seconds: float) -> str:
  """Writes seconds as `42s`, `3m05s`, `2h07m` or `4d03h`; `?` when not finite."""
  if not math.isfinite(seconds):
    return '?'
  seconds = round(seconds)
  for large, small, sizes in (('d', 'h', (86400, 3600)), ('h', 'm', (3600, 60)), ('m', 's', (60, 1))):
    if seconds >= sizes[0]:
      return f'{seconds // sizes[0]}{large}{seconds % sizes[0] // sizes[1]:02d}{small}'
  return f'{seconds}s'
