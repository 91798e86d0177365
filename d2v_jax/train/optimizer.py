"""AdamW with decoupled weight decay (`docs/algorithm.md`, sections 16 and 18)."""

import jax
import jax.numpy as jnp
import optax


def scale_by_adam(beta1: float, beta2: float, eps: float, eps_uncorrected: bool) -> optax.GradientTransformation:
  """Adam's direction. With `eps_uncorrected` eps is added to the root of the second moment *before* bias correction.

  The two forms differ only in eps: m_hat / (sqrt(v_hat) + eps / sqrt(1 - beta2^t)) is the uncorrected one.
  """

  def init(params):
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)
    return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=zeros(), nu=zeros())

  def update(gradients, state, params=None):
    del params
    count = state.count + 1
    first_correction = 1 - beta1 ** count.astype(jnp.float32)
    second_correction = 1 - beta2 ** count.astype(jnp.float32)
    floor = eps / jnp.sqrt(second_correction) if eps_uncorrected else eps
    mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, gradients)
    nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * jnp.square(g), state.nu, gradients)
    direction = lambda m, v: (m / first_correction) / (jnp.sqrt(v / second_correction) + floor)
    return jax.tree.map(direction, mu, nu), optax.ScaleByAdamState(count, mu, nu)

  return optax.GradientTransformation(init, update)


def decay_mask(params) -> dict:
  """True where weight decay applies as intended: everything but 1-D parameters, biases and ALiBi scales."""

  def decays(path, leaf):
    name = jax.tree_util.keystr(path)
    return leaf.ndim > 1 and 'alibi_scale' not in name

  return jax.tree_util.tree_map_with_path(decays, params)


def build(config) -> optax.GradientTransformation:
  """The optimiser of a config. Its updates are still to be multiplied by minus the learning rate."""
  options = config.optimizer
  return optax.chain(
    scale_by_adam(options.beta1, options.beta2, options.eps, options.eps_uncorrected),
    optax.add_decayed_weights(options.weight_decay, mask=None if options.decay_all else decay_mask),
  )


def clip(gradients, norm, limit: float):
  """Scales gradients whose global norm is `norm` to at most `limit` (0: no limit), as torch's clip_grad_norm_ does."""
  if not limit:
    return gradients
  scale = jnp.minimum(1.0, limit / (norm + 1e-6))
  return jax.tree.map(lambda g: g * scale, gradients)
