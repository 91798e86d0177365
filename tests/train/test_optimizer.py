"""AdamW by hand; what weight decay applies to; clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2v_jax.methods.data2vec2 import Data2vec2
from d2v_jax.train import optimizer as optimizers
from tests.train.tiny import get_config


@pytest.mark.parametrize('uncorrected', [False, True])
def test_adamw_is_the_textbooks(uncorrected):
  config = get_config()
  config.optimizer.update(beta1=0.8, beta2=0.9, eps=0.1, eps_uncorrected=uncorrected, weight_decay=0.3)
  optimizer = optimizers.build(config)
  rng = np.random.default_rng(0)
  params = {'kernel': jnp.asarray(rng.normal(0, 1, (3, 2)), jnp.float32)}
  state = optimizer.init(params)
  m = v = np.zeros((3, 2))
  for t in range(1, 5):
    g = rng.normal(0, 1, (3, 2))
    updates, state = optimizer.update({'kernel': jnp.asarray(g, jnp.float32)}, state, params)
    m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
    m_hat, v_hat = m / (1 - 0.8**t), v / (1 - 0.9**t)
    eps = 0.1 / np.sqrt(1 - 0.9**t) if uncorrected else 0.1
    expected = m_hat / (np.sqrt(v_hat) + eps) + 0.3 * np.asarray(params['kernel'])
    np.testing.assert_allclose(updates['kernel'], expected, rtol=2e-5)
    params = jax.tree.map(lambda p, u: p - 0.1 * u, params, updates)
    assert int(optax.tree.get(state, 'count')) == t


def decayed(decay_all, params):
  """Names of the parameters that a step without gradient shrinks."""
  config = get_config()
  config.optimizer.decay_all = decay_all
  optimizer = optimizers.build(config)
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
  shrunk = {}
  for path, update in jax.tree.leaves_with_path(updates):
    share = np.unique(np.asarray(update))
    assert len(share) == 1 and share[0] in (0, np.float32(0.05))
    shrunk[jax.tree_util.keystr(path, simple=True, separator='/')] = bool(share[0])
  return shrunk


def test_weight_decay_leaves_out_vectors_and_alibi_scales_unless_told_otherwise():
  config = get_config()
  config.model.prenet_depth = 1
  shapes = jax.eval_shape(Data2vec2(config).init, jax.random.key(0))
  params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
  params['encoder']['alibi_scale'] = np.ones((1, 2, 1, 1), np.float32)
  intended = decayed(False, params)
  assert intended['encoder/extra_tokens'] and intended['decoder/conv_0/kernel']
  assert intended['encoder/local_encoder/projection/kernel'] and intended['encoder/prenet_0/mlp/fc1/kernel']
  assert not intended['encoder/alibi_scale']
  for name, shrinks in intended.items():
    assert shrinks == (name.endswith('/kernel') or name == 'encoder/extra_tokens'), name
  assert all(decayed(True, params).values())


def test_clipping_scales_to_the_global_norm():
  gradients = {'a': jnp.full((2, 2), 3.0), 'b': jnp.full(3, 2.0)}
  norm = optax.global_norm(gradients)
  np.testing.assert_allclose(norm, 48**0.5)
  clipped = optimizers.clip(gradients, norm, 1.0)
  np.testing.assert_allclose(optax.global_norm(clipped), 1, rtol=1e-5)
  np.testing.assert_allclose(clipped['a'] / clipped['b'][0], 1.5, rtol=1e-6)
  for limit in (0.0, 7.0):
    np.testing.assert_array_equal(optimizers.clip(gradients, norm, limit)['a'], gradients['a'])
