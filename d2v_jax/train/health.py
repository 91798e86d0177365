"""Is this run learning? Warnings while there is time, and an end with advice when there is none."""

import math

from absl import logging

from d2v_jax.errors import RunError

# A loss this many times the first one is not noise.
EXPLODED = 10.0
# The spread of a constant is 1e-3 (the root of the 1e-6 under it).
CONSTANT = 2e-3


class Health:
  """Watches the metrics of a run; call `check` with each record."""

  def __init__(self, config, step: int = 0, skipped: int = 0):
    """Starts at update `step`, `skipped` of which were skipped before."""
    self._config = config
    self._first_loss = None
    self._step, self._skipped = step, skipped
    self._skipped_in_a_row = 0
    self._warned = set()

  def check(self, step: int, metrics: dict[str, float]) -> None:
    """Raises RunError when going on makes no sense; warns once for each sign that something goes wrong.

    Args:
      step: updates done.
      metrics: `train/...` of that step.
    """
    self._check_divergence(step, metrics)
    self._check_collapse(step, metrics)

  def _check_divergence(self, step, metrics):
    options = self._config.health
    advice = f'lower config.learning_rate (now {self._config.learning_rate:g}) or lengthen config.schedule.warmup_steps'
    steps, skipped = step - self._step, int(metrics['train/skipped_updates']) - self._skipped
    self._step, self._skipped = step, self._skipped + skipped
    self._skipped_in_a_row = self._skipped_in_a_row + skipped if skipped == steps else 0
    if self._skipped_in_a_row >= options.max_skipped:
      raise RunError(
        f'step {step}: the last {self._skipped_in_a_row} updates were skipped for non-finite gradients; {advice}'
      )
    if skipped:
      logging.warning('Step %d: %d updates skipped since the last record for non-finite gradients', step, skipped)
    # A loss per utterance is large where utterances are long.
    loss = metrics.get('train/loss_per_letter', metrics['train/loss'])
    if self._first_loss is None and math.isfinite(loss):
      self._first_loss = loss
    elif self._first_loss is not None and loss > EXPLODED * self._first_loss:
      raise RunError(f'step {step}: the loss exploded from {self._first_loss:.4g} to {loss:.4g}; {advice}')

  def _check_collapse(self, step, metrics):
    options = self._config.health
    advice = 'lower the learning rate, or move the teacher more slowly (ema_decay closer to 1)'
    for name, floor in (('target_std', options.min_target_std), ('pred_std', options.min_pred_std)):
      value = metrics.get(f'train/{name}', math.inf)
      if floor and step > options.grace_steps and value < floor:
        raise RunError(f'step {step}: {name} {value:.3g} fell below config.health.min_{name} {floor:g}: collapse; {advice}')
    if step < min(self._config.schedule.warmup_steps, options.grace_steps):
      return
    if metrics.get('train/target_std', 1.0) < 0.1:
      self._warn(
        'target_std', 'Step %d: targets have nearly no spread (%.3g): the teacher collapses; %s', step, metrics, advice
      )
    if metrics.get('train/pred_std', 1.0) < 0.01:
      self._warn('pred_std', 'Step %d: predictions have nearly no spread (%.3g); %s', step, metrics, advice)
    for name, value in metrics.items():
      if name.startswith('train/spread/') and value < CONSTANT:
        label = name.removeprefix('train/')
        self._warn(label, f'Step %d: {label} is only %.3g: this part has collapsed to a constant; %s', step, metrics, advice)
    if metrics.get('train/mse', 0.0) >= metrics.get('train/target_content', math.inf):
      hint = 'if this stays, targets are too predictable from position alone: try a faster teacher (lower ema_end_decay)'
      text = 'Step %d: the error is no smaller than target_content (%.3g): nothing but positions is predicted; %s'
      self._warn('target_content', text, step, metrics, hint)

  def _warn(self, name, text, step, metrics, advice):
    if name not in self._warned:
      self._warned.add(name)
      logging.warning(text, step, metrics[f'train/{name}'], advice)
