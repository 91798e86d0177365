"""Connectionist temporal classification: letters from speech (`docs/algorithm.md`, section 21)."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from d2v_jax.data.letters import BLANK, VOCABULARY
from d2v_jax.methods import flops
from d2v_jax.methods.randomness import StepKeys
from d2v_jax.modalities import build_encoder
from d2v_jax.modalities.masking import span_mask
from d2v_jax.nn.dropout import Randomness, dropout
from d2v_jax.nn.layers import Dense


class Ctc:
  """The objective for one config, with the same methods as `Data2vec2`; there is no teacher."""

  def __init__(self, config):
    self.config = config
    self.options = config.ctc
    self.encoder = build_encoder(config)
    self.modality = self.encoder.modality
    self.head = Dense(len(VOCABULARY), nn.initializers.xavier_uniform())

  def init(self, key: jax.Array) -> dict:
    """Random parameters, float32: {'encoder': ..., 'head': ...}."""
    encoder_key, head_key = jax.random.split(key)
    return {
      'encoder': self.encoder.init(encoder_key, self.modality.blank(1))['params'],
      'head': self.head.init(head_key, jnp.zeros((1, 1, self.config.model.embed_dim)))['params'],
    }

  def init_teacher(self, params: dict) -> dict:
    """None: an empty tree."""
    del params
    return {}

  def update_teacher(self, teacher_params: dict, params: dict, step) -> dict:
    """Still an empty tree."""
    del params, step
    return teacher_params

  def log_probs(self, params: dict, batch: dict) -> jax.Array:
    """Letter log-probabilities float32 [B, T, V] of a batch, without masks and dropout; those of padding mean nothing."""
    features = self._apply(params, 'local_features', self._inputs(batch))
    padding = self.modality.padding(batch, features.shape[1])
    encoded = self._apply(params, 'contextualise', features, padding=padding)
    return jax.nn.log_softmax(self._logits(params, encoded.output))

  def loss(self, params: dict, teacher_params: dict, batch: dict, keys: StepKeys) -> tuple[jax.Array, dict]:
    """Sum of the utterances' losses, and sums over the batch: 'weight' (utterances) and what `metrics` needs.

    Utterances with more letters than their frames can hold have no loss, but count.
    """
    del teacher_params
    inputs = self._inputs(batch)
    frames = self.modality.grid(batch[self.modality.key].shape[1:])[0]
    padding = self.modality.padding(batch, frames)
    output = jax.lax.cond(
      keys.step < self.options.freeze_steps,
      lambda params: jax.lax.stop_gradient(self._encode(params, inputs, padding, keys)),
      lambda params: self._encode(params, inputs, padding, keys),
      params,
    )
    logits = self._logits(params, output)

    letters = batch['letters']
    absent = letters < 0
    count = (~absent).sum(1)
    repeats = ((letters[:, 1:] == letters[:, :-1]) & ~absent[:, 1:]).sum(1)
    fits = count + repeats <= (~padding).sum(1)
    losses = optax.ctc_loss(
      logits, padding.astype(jnp.float32), jnp.maximum(letters, 0), absent.astype(jnp.float32), blank_id=BLANK
    )
    used = batch['valid'] & fits
    total = jnp.where(used, losses, 0).sum()
    sums = {
      'weight': batch['valid'].sum().astype(jnp.float32),
      'loss': total,
      'letters': jnp.where(used, count, 0).sum().astype(jnp.float32),
      'infeasible': (batch['valid'] & ~fits).sum().astype(jnp.float32),
    }
    return total, sums

  def metrics(self, sums: dict, step) -> dict[str, jax.Array]:
    """`loss` per utterance, `loss_per_letter`, and `infeasible`: utterances too short for their transcript."""
    del step
    return {
      'loss': sums['loss'] / jnp.maximum(sums['weight'], 1),
      'loss_per_letter': sums['loss'] / jnp.maximum(sums['letters'], 1),
      'infeasible': sums['infeasible'],
    }

  def flops_per_example(self, example: tuple[int, ...]) -> dict[str, float]:
    """Model FLOPs of one raw example of this shape in a train step after `freeze_steps`, by part."""
    model, frames = self.config.model, self.modality.grid(example)[0]
    forward, backward = self.modality.local_flops(example)
    return {
      'student': forward
      + (backward if self.options.train_front_end else 0)
      + 3 * (flops.conv_positions(model, frames) + flops.blocks(model, frames + model.extra_tokens)),
      'head': 3 * 2 * frames * model.embed_dim * len(VOCABULARY),
    }

  def _inputs(self, batch):
    return self.modality.prepare(batch[self.modality.key])

  def _apply(self, params, method, *args, **options):
    return self.encoder.apply({'params': params['encoder']}, *args, method=method, **options)

  def _encode(self, params, inputs, padding, keys):
    """What the encoder makes of inputs with spans of frames and channels hidden: [B, E + T, D]."""
    if not self.options.train_front_end:
      convolutions = lambda name: name.startswith(('conv_', 'norm_'))
      local = params['encoder']['local_encoder']
      local = {name: jax.lax.stop_gradient(tree) if convolutions(name) else tree for name, tree in local.items()}
      params = {**params, 'encoder': {**params['encoder'], 'local_encoder': local}}
    features = self._apply(params, 'local_features', inputs)
    hidden, channels, noise, seeds = self._draw(keys, (~padding).sum(1), features)
    if self.options.time_mask:
      features = jnp.where(hidden[..., None], noise, features)
    if self.options.channel_mask:
      features = jnp.where(channels[:, None], 0, features)
    randomness = Randomness(seeds, keys.shared)
    output = self._apply(params, 'contextualise', features, padding=padding, randomness=randomness).output
    if self.options.head_dropout:
      output = dropout(output, seeds, self.options.head_dropout, 1)
    return output

  def _draw(self, keys, lengths, features):
    options = self.options
    _, frames, width = features.shape

    def draw_one(key, length):
      time_key, channel_key, noise_key = jax.random.split(key, 3)
      hidden = span_mask(time_key, length, options.time_mask, options.time_mask_length, frames, at_least=1)
      channels = span_mask(channel_key, width, options.channel_mask, options.channel_mask_length, width)
      noise = options.mask_noise_std * jax.random.normal(noise_key, (frames, width), features.dtype)
      return hidden, channels, noise, jax.random.bits(jax.random.fold_in(key, 3))

    return jax.vmap(draw_one)(keys.rows, lengths)

  def _logits(self, params, output):
    return self.head.apply({'params': params['head']}, output[:, self.config.model.extra_tokens :]).astype(jnp.float32)
