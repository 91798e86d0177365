"""Classes or numbers from texts: what pretrained text models are fine-tuned for (`docs/algorithm.md`, section 24)."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from d2v_jax.methods import flops
from d2v_jax.methods.randomness import StepKeys
from d2v_jax.modalities import build_encoder
from d2v_jax.nn.dropout import Randomness
from d2v_jax.nn.layers import Dense, fan_in_uniform


class SentenceHead(nn.Module):
  """What the encoder makes of the first token [B, D] -> scores [B, outputs]."""

  outputs: int

  @nn.compact
  def __call__(self, x):
    init = fan_in_uniform(x.shape[-1])
    x = jnp.tanh(Dense(x.shape[-1], init, init, name='dense')(x))
    return Dense(self.outputs, init, init, name='output')(x)


class SentencePrediction:
  """The objective for one config, with the same methods as `Data2vec2`; there is no teacher.

  Args:
    config: the config.
    outputs: classes; 1 for a regression.
  """

  def __init__(self, config, outputs: int):
    self.config = config
    self.encoder = build_encoder(config)
    self.modality = self.encoder.modality
    self.head = SentenceHead(outputs)

  def init(self, key: jax.Array) -> dict:
    """Random parameters, float32: {'encoder': ..., 'head': ...}."""
    encoder_key, head_key = jax.random.split(key)
    return {
      'encoder': self.encoder.init(encoder_key, self.modality.blank(1))['params'],
      'head': self.head.init(head_key, jnp.zeros((1, self.config.model.embed_dim)))['params'],
    }

  def init_teacher(self, params: dict) -> dict:
    """None: an empty tree."""
    del params
    return {}

  def update_teacher(self, teacher_params: dict, params: dict, step) -> dict:
    """Still an empty tree."""
    del params, step
    return teacher_params

  def scores(self, params: dict, batch: dict, randomness: Randomness | None = None) -> jax.Array:
    """Scores of the classes, or the one number, of each text of a batch: float32 [B, outputs]."""
    tokens = self.modality.prepare(batch[self.modality.key])
    padding = self.modality.padding(batch, tokens.shape[1])
    apply = lambda method, *args, **options: self.encoder.apply(
      {'params': params['encoder']}, *args, method=method, **options
    )
    features = apply('local_features', tokens, None if randomness is None else randomness.seeds)
    encoded = apply('contextualise', features, padding=padding, randomness=randomness)
    first = encoded.output[:, self.config.model.extra_tokens]
    return self.head.apply({'params': params['head']}, first).astype(jnp.float32)

  def loss(self, params: dict, teacher_params: dict, batch: dict, keys: StepKeys) -> tuple[jax.Array, dict]:
    """Sum over the texts of cross-entropies or squared errors, and sums over the batch: 'weight' (texts), for `metrics`."""
    del teacher_params
    seeds = jax.vmap(lambda key: jax.random.bits(jax.random.fold_in(key, 0)))(keys.rows)
    scores = self.scores(params, batch, Randomness(seeds, keys.shared))
    valid = batch['valid']
    # Rows that hold no text have no label (nan, -1), which would reach the gradient past the `where` below.
    label = jnp.where(valid, batch['label'], 0)
    regression = self.config.sentence.kind == 'regression'
    if regression:
      losses = jnp.square(scores[:, 0] - label)
    else:
      losses = optax.softmax_cross_entropy_with_integer_labels(scores, label)
    total = jnp.where(valid, losses, 0).sum()
    sums = {'weight': valid.sum().astype(jnp.float32), 'loss': total}
    if not regression:
      sums['hits'] = (valid & (scores.argmax(-1) == label)).sum().astype(jnp.float32)
    return total, sums

  def metrics(self, sums: dict, step) -> dict[str, jax.Array]:
    """`loss` per text and, where there are classes, `accuracy` on the batch."""
    del step
    weight = jnp.maximum(sums['weight'], 1)
    metrics = {'loss': sums['loss'] / weight}
    return metrics | {'accuracy': sums['hits'] / weight} if 'hits' in sums else metrics

  def flops_per_example(self, example: tuple[int, ...]) -> dict[str, float]:
    """Model FLOPs of one text of this many tokens in a train step, by part."""
    model = self.config.model
    return {
      'student': 3 * flops.blocks(model, example[0] + model.extra_tokens),
      'head': 3 * 2 * model.embed_dim * (model.embed_dim + self.head.outputs),
    }
