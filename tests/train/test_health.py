"""Warnings while there is time, and an end with advice when there is none."""

import math

import pytest

from d2v_jax.errors import RunError
from d2v_jax.train.health import Health
from tests.train.tiny import get_config

FINE = {
  'train/loss': 1.0,
  'train/skipped_updates': 0.0,
  'train/target_std': 0.9,
  'train/pred_std': 0.3,
  'train/mse': 0.5,
  'train/target_content': 0.8,
  'train/spread/front_end': 0.5,
}


def make(step=0, skipped=0, **health):
  config = get_config()
  config.schedule.warmup_steps = 10
  config.health.update(grace_steps=50, **health)
  return Health(config, step, skipped)


def record(**changes):
  return FINE | {f'train/{name}': value for name, value in changes.items()}


def warnings(caplog):
  return [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']


def test_a_healthy_run_says_nothing(caplog):
  health = make()
  for step in range(10, 200, 10):
    health.check(step, record(loss=1 + 0.5 * math.sin(step)))
  assert not warnings(caplog)


def test_skipped_updates_in_a_row_end_the_run_with_advice(caplog):
  health = make(max_skipped=20)
  health.check(10, record(skipped_updates=4.0))
  health.check(20, record(skipped_updates=14.0))
  assert len(warnings(caplog)) == 2 and '4 updates skipped' in warnings(caplog)[0]
  with pytest.raises(RunError) as caught:
    health.check(30, record(skipped_updates=24.0, loss=math.nan))
  for part in ('step 30', 'the last 20 updates', 'non-finite', 'config.learning_rate (now 0.001)', 'warmup_steps'):
    assert part in str(caught.value)


def test_skips_with_good_updates_between_them_only_warn(caplog):
  health = make(max_skipped=5)
  for number in range(1, 20):
    health.check(10 * number, record(skipped_updates=9.0 * number))
  assert len(warnings(caplog)) == 19


def test_skips_before_a_resume_do_not_count(caplog):
  health = make(step=100, skipped=90, max_skipped=5)
  health.check(110, record(skipped_updates=90.0))
  assert not warnings(caplog)


def test_an_exploding_loss_ends_the_run_with_advice():
  health = make()
  health.check(1, record(loss=math.nan))  # no measure for what follows
  health.check(2, record(loss=2.0))
  health.check(3, record(loss=19.9))
  health.check(4, record(loss=math.nan))
  expected = r'step 5: the loss exploded from 2 to 20\.1; lower config\.learning_rate .*warmup_steps'
  with pytest.raises(RunError, match=expected):
    health.check(5, record(loss=20.1))
  with pytest.raises(RunError, match='exploded'):
    health.check(6, record(loss=math.inf))


@pytest.mark.parametrize('name', ['target_std', 'pred_std'])
def test_a_collapse_below_the_floor_ends_the_run_after_the_grace(name):
  health = make(**{f'min_{name}': 0.05})
  low = record(**{name: 0.04})
  health.check(50, low)
  health.check(51, record(**{name: 0.06}))
  with pytest.raises(RunError, match=rf'step 52: {name} 0\.04 fell below config\.health\.min_{name} 0\.05.*learning rate'):
    health.check(52, low)
  make().check(60, low)  # no floor, as in the image recipes: it only warns


@pytest.mark.parametrize(
  ('changes', 'says', 'advice'),
  [
    ({'target_std': 0.05}, 'targets have nearly no spread (0.05)', 'ema_decay closer to 1'),
    ({'pred_std': 0.005}, 'predictions have nearly no spread (0.005)', 'lower the learning rate'),
    ({'spread/front_end': 0.0011}, 'spread/front_end is only 0.0011', 'lower the learning rate'),
    ({'mse': 0.8}, 'nothing but positions is predicted', 'lower ema_end_decay'),
  ],
)
def test_signs_of_trouble_are_named_once_with_advice_after_the_warm_up(caplog, changes, says, advice):
  health = make()
  for step in (5, 9):
    health.check(step, record(**changes))
  assert not warnings(caplog)
  for step in (10, 20, 30):
    health.check(step, record(**changes))
  assert len(warnings(caplog)) == 1
  text = warnings(caplog)[0]
  assert text.startswith('Step 10: ') and says in text and advice in text


def test_other_tasks_need_no_gauges():
  make().check(100, {'train/loss': 1.0, 'train/skipped_updates': 0.0})
