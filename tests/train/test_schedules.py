"""The learning rate over a run (`docs/algorithm.md`, section 17)."""

import numpy as np
import pytest

from d2v_jax.train import schedules
from tests.train.tiny import get_config, text_config


def base_rate(step):
  config = get_config()
  config.learning_rate = 1e-3
  config.schedule.warmup_steps = 50_040
  return float(schedules.learning_rate(config, 375_300)(step))


@pytest.mark.parametrize(
  ('step', 'rate'),
  [(1, 1.998401e-8), (25_020, 5e-4), (50_040, 1e-3), (212_670, 5e-4), (375_299, 2.33e-14)],
)
def test_check_values_of_the_base_recipe(step, rate):
  np.testing.assert_allclose(base_rate(step), rate, rtol=1e-2 if rate < 1e-10 else 2e-6)


def test_the_first_update_does_not_move_the_weights():
  assert base_rate(0) == 0


def test_half_a_cosine_after_the_warm_up():
  steps = np.arange(50_040, 375_300, 1000)
  expected = 0.5e-3 * (1 + np.cos(np.pi * (steps - 50_040) / (375_300 - 50_040)))
  np.testing.assert_allclose([base_rate(int(step)) for step in steps], expected, rtol=1e-5, atol=1e-10)


def test_minimum_is_where_it_starts_and_ends():
  config = get_config()
  config.learning_rate, config.schedule.min_learning_rate = 0.3, 0.1
  rate = schedules.learning_rate(config, 6)
  last = 0.1 + 0.2 * np.cos(0.375 * np.pi) ** 2
  np.testing.assert_allclose([rate(step) for step in (0, 1, 2, 4, 5)], [0.1, 0.2, 0.3, 0.2, last], rtol=1e-6)


def test_no_warm_up_starts_at_the_peak():
  config = get_config()
  config.schedule.warmup_steps = 0
  np.testing.assert_allclose(schedules.learning_rate(config, 6)(0), config.learning_rate, rtol=1e-6)


def test_three_stages_of_the_config():
  """Fractions of the run: up, level, and down by a factor a step."""
  config = get_config()
  config.learning_rate = 2e-3
  config.schedule.update(name='tri_stage', phases=(0.1, 0.4, 0.5), initial_scale=0.01, final_scale=0.05)
  found = [float(schedules.learning_rate(config, 100)(step)) for step in (0, 5, 10, 49, 50, 75, 100, 130)]
  np.testing.assert_allclose(found, 2e-3 * np.array([0.01, 0.505, 1, 1, 1, 0.05**0.5, 0.05, 0.05]), rtol=1e-5)


def test_stages_last_as_many_steps_as_their_fraction_says_in_spite_of_rounding():
  config = get_config()
  config.learning_rate = 1.0
  config.schedule.update(name='tri_stage', phases=(0.29, 0.0, 0.71), initial_scale=0.0, final_scale=0.1)
  rate = schedules.learning_rate(config, 100)
  # 0.29 * 100 is below 29 in float64.
  np.testing.assert_allclose([rate(28), rate(29), rate(30)], [28 / 29, 1, 0.1 ** (1 / 71)], rtol=1e-5)


def test_linear_up_and_down_as_in_the_recipe_of_cola():
  config = text_config('sentence')
  config.learning_rate = 2e-5
  config.schedule.warmup_steps = 320
  assert config.schedule.name == 'linear'
  rate = schedules.learning_rate(config, 5336)
  found = [float(rate(step)) for step in (0, 1, 160, 319, 320, 321, 2828, 5335, 5336, 6000)]
  rest = 5336 - 320
  expected = [0, 1 / 320, 0.5, 319 / 320, 1, 1 - 1 / rest, 0.5, 1 / rest, 0, 0]
  np.testing.assert_allclose(found, 2e-5 * np.array(expected), rtol=1e-4, atol=1e-12)


def test_linear_without_warm_up_starts_at_the_peak():
  config = text_config('sentence')
  config.schedule.warmup_steps = 0
  found = [float(schedules.learning_rate(config, 4)(step)) for step in range(5)]
  np.testing.assert_allclose(found, config.learning_rate * np.array([1, 0.75, 0.5, 0.25, 0]), rtol=1e-6)


def test_linear_with_a_warm_up_as_long_as_the_run_only_rises():
  config = text_config('sentence')
  config.schedule.warmup_steps = 6
  found = [float(schedules.learning_rate(config, 6)(step)) for step in range(6)]
  np.testing.assert_allclose(found, config.learning_rate * np.arange(6) / 6, rtol=1e-6)
