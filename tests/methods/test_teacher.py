"""How far the teacher moves at which update (`docs/algorithm.md`, section 10.2)."""

import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.methods import teacher

# start, end, updates of the anneal; the decay at n = 1, A/4, A/2, A and 3 A
RECIPES = {
  'base': (0.9998, 0.99999, 100_000, (0.9998000019, 0.9998475, 0.999895, 0.99999, 0.99999)),
  'large': (0.9998, 0.99999, 150_000, (0.99980000127, 0.9998475, 0.999895, 0.99999, 0.99999)),
  'huge': (0.9998, 0.99995, 150_000, (0.999800001, 0.9998375, 0.999875, 0.99995, 0.99995)),
  'huge14': (0.9998, 1.0, 300_000, (0.99980000067, 0.99985, 0.9999, 1.0, 1.0)),
}


@pytest.mark.parametrize('name', RECIPES)
def test_annealing_of_the_released_recipes(name):
  start, end, steps, expected = RECIPES[name]
  rates = [float(teacher.ema_rate(n, start, end, steps)) for n in (1, steps // 4, steps // 2, steps, 3 * steps)]
  # The complement has the digits that matter: the decay itself is within a thousandth of one throughout.
  np.testing.assert_allclose(rates, 1 - np.array(expected), rtol=2e-5, atol=1e-12)


def test_a_decay_of_one_freezes_the_teacher_bit_for_bit():
  rng = np.random.default_rng(0)
  old, new = ({'encoder': {'a': jnp.asarray(rng.normal(0, 1, 1000), jnp.float32)}} for _ in range(2))
  rate = teacher.ema_rate(300_000, 0.9998, 1.0, 300_000)
  assert float(rate) == 0
  np.testing.assert_array_equal(teacher.update(old, new, rate)['encoder']['a'], old['encoder']['a'])
  assert not np.array_equal(
    teacher.update(old, new, teacher.ema_rate(299_000, 0.9998, 1.0, 300_000))['encoder']['a'], old['encoder']['a']
  )


def test_update_is_leaf_by_leaf_and_what_only_the_student_has_stays_out():
  old = {'encoder': {'a': jnp.zeros(2), 'b': {'c': jnp.full(3, 4.0)}}}
  new = {'encoder': {'b': {'c': jnp.full(3, 8.0)}, 'a': jnp.ones(2)}, 'decoder': {'d': jnp.ones(1)}}
  found = teacher.update(old, new, 0.25)
  assert found.keys() == {'encoder'}
  np.testing.assert_allclose(found['encoder']['a'], 0.25)
  np.testing.assert_allclose(found['encoder']['b']['c'], 5)


def test_a_copy_shares_no_buffer():
  original = {'a': jnp.ones(3)}
  copied = teacher.copy(original)
  original['a'].delete()
  np.testing.assert_array_equal(copied['a'], 1)
