"""data2vec 2.0: M masked views of each example, encoded without the masked tokens, predict one teacher pass.

Pure functions of parameters; `docs/algorithm.md` has the equations. Shapes: B examples, M masks per example, T tokens,
V visible tokens, E extra tokens, D width, L main blocks. Student rows are example-major: row = example * M + mask.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct

from d2v_jax.methods import flops, losses, teacher
from d2v_jax.methods.randomness import StepKeys
from d2v_jax.methods.targets import targets
from d2v_jax.modalities import Encoded, build_encoder
from d2v_jax.modalities.masking import Visible, put_back, visible
from d2v_jax.nn.decoder import ConvDecoder
from d2v_jax.nn.dropout import Randomness, dropout, site_of


@struct.dataclass
class Forward:
  """Everything that one training forward pass computes.

  Attributes:
    local_features: student's, [B, T, D], before positions.
    student: what the student's encoder makes of the visible tokens, rows B * M.
    decoder_input: [B * M, T, D].
    predictions: [B, M, T, D].
    teacher: what the teacher's encoder makes of all tokens, rows B.
    targets: float32 [B, T, D].
  """

  local_features: jax.Array
  student: Encoded
  decoder_input: jax.Array
  predictions: jax.Array
  teacher: Encoded
  targets: jax.Array


@struct.dataclass
class Moments:
  """Count, sum and sum of squares: they add up over micro-batches and devices, so that statistics are of the whole batch."""

  count: jax.Array
  total: jax.Array
  squares: jax.Array

  @classmethod
  def of(cls, x: jax.Array, weight: jax.Array, axes: tuple[int, ...]) -> 'Moments':
    """Moments of x over `axes` with weights broadcastable to x; no gradient flows."""
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    count = jnp.broadcast_to(weight, (*jnp.broadcast_shapes(weight.shape, x.shape[:-1] + (1,)),)).sum(axes)
    return cls(count, (weight * x).sum(axes), (weight * jnp.square(x)).sum(axes))

  def variance(self) -> jax.Array:
    """Unbiased variance."""
    count = jnp.maximum(self.count, 2)
    return jnp.maximum(self.squares / (count - 1) - jnp.square(self.total) / (count * (count - 1)), 0)

  def spread(self) -> jax.Array:
    """Standard deviation per channel, averaged over channels."""
    return jnp.sqrt(self.variance() + 1e-6).mean(-1)


@struct.dataclass
class Views:
  """The masked views of a batch: everything about them that is drawn.

  Attributes:
    where: visible tokens of masks [B, M, T].
    noise: what the decoder sees at masked places, [B, M, T, D].
    randomness: of dropout, a seed for each row B * M; None: no dropout.
  """

  where: Visible
  noise: jax.Array
  randomness: Randomness | None = None


class Data2vec2:
  """The method for one config: `init`, `init_teacher`, `loss`, `metrics`, `update_teacher`."""

  def __init__(self, config):
    self.config = config
    self.options = config.data2vec2
    self.encoder = build_encoder(config)
    self.modality = self.encoder.modality
    decoder = config.decoder
    self.decoder = ConvDecoder(
      decoder.dim, decoder.layers, decoder.kernel, decoder.groups, decoder.residual, decoder.projection_layers,
      decoder.projection_ratio, config.model.init_std if decoder.projection_init == 'normal' else None,
    )  # fmt: skip

  def init(self, key: jax.Array) -> dict:
    """Random student parameters, float32: {'encoder': ..., 'decoder': ...} (section 15)."""
    encoder_key, decoder_key = jax.random.split(key)
    grid = self.modality.grid(self.modality.example)
    tokens = jnp.zeros((1, math.prod(grid), self.config.model.embed_dim))
    return {
      'encoder': self.encoder.init(encoder_key, self.modality.blank(1))['params'],
      'decoder': self.decoder.init(decoder_key, tokens, grid)['params'],
    }

  def init_teacher(self, params: dict) -> dict:
    """The teacher at the start: a copy of what it averages of the student's encoder; the decoder has no teacher."""
    averaged = {
      'all': lambda name: True,
      'context': lambda name: name != 'local_encoder',
      'blocks': lambda name: name.startswith('block_'),
    }[self.options.teacher_scope]
    return {'encoder': teacher.copy({name: tree for name, tree in params['encoder'].items() if averaged(name)})}

  def ema_rate(self, step):
    """One minus the decay of the teacher's update after `step` optimiser updates."""
    return teacher.ema_rate(step, self.options.ema_decay, self.options.ema_end_decay, self.options.ema_anneal_steps)

  def update_teacher(self, teacher_params: dict, params: dict, step) -> dict:
    """The teacher after the optimiser update number `step` (1, 2, ...), which gave the student `params`."""
    return teacher.update(teacher_params, params, self.ema_rate(step))

  def draw(self, keys: StepKeys, grid: tuple[int, ...], views: int | None = None) -> Views:
    """Draws masks, decoder noise and dropout for a batch of examples whose tokens stand on `grid`: M, or `views`, for each.

    Keys per example make the draw independent of how a batch is split over devices or micro-batches.
    """
    masks = self.modality.masks(grid)
    views = views or self.options.masks_per_example
    shape = (views, masks.num_tokens, self.config.model.embed_dim)
    std = self.options.mask_noise_std

    def draw_one(key):
      mask_key, noise_key = jax.random.split(key)
      noise = std * jax.random.normal(noise_key, shape, self.config.dtype)
      return masks.sample(mask_key, views), noise, jax.random.bits(jax.random.fold_in(key, 2), (views,))

    mask, noise, seeds = jax.vmap(draw_one)(keys.rows)
    return Views(visible(mask, masks.num_visible), noise, Randomness(seeds.reshape(-1), keys.shared))

  def forward(self, params: dict, teacher_params: dict, batch: dict, views: Views) -> Forward:
    """One training forward pass.

    Args:
      params: student parameters.
      teacher_params: teacher parameters.
      batch: of the loader, with B rows.
      views: the masked views of its examples.
    """
    apply = lambda tree, method, *args, **options: self.encoder.apply(
      {'params': tree['encoder']}, *args, method=method, **options
    )
    raw = batch[self.modality.key]
    grid = self.modality.grid(raw.shape[1:])
    inputs = self.modality.prepare(raw)
    padding = self.modality.padding(batch, math.prod(grid))
    # The scopes name the parts in profiles and in the compiled program.
    with jax.named_scope('student'):
      # The embeddings are of an example, not of a view: one of its views' seeds will do.
      seeds = None if views.randomness is None else views.randomness.seeds.reshape(len(raw), -1)[:, 0]
      local_features = apply(params, 'local_features', inputs, seeds)
      student = apply(
        params, 'contextualise', local_features, views.where, padding=padding, grid=grid, randomness=views.randomness
      )
    with jax.named_scope('decoder'):
      decoder_input = self.decoder_input(student.output, views)
      predictions = self.decoder.apply({'params': params['decoder']}, decoder_input, grid)

    with jax.named_scope('teacher'):
      # What the teacher does not average it shares with the student of the moment.
      frozen = jax.lax.stop_gradient({'encoder': params['encoder'] | teacher_params['encoder']})
      if self.options.teacher_scope == 'all':
        features = apply(frozen, 'local_features', inputs)
      else:
        features = jax.lax.stop_gradient(local_features)
      seen = apply(frozen, 'contextualise', features, padding=padding, grid=grid)
      layers = seen.blocks if self.options.block_output_targets else seen.mlps
      extra = self.config.model.extra_tokens
      layers = [layer[:, extra:] for layer in layers[-self.options.average_top_k :]]
      target = targets(layers, self.options.target_layer_norms, self.options.target_norms)
    predictions = predictions.reshape(*views.where.mask.shape, -1)
    return Forward(local_features, student, decoder_input, predictions, seen, target)

  def decoder_input(self, output: jax.Array, views: Views) -> jax.Array:
    """Student output [B * M, E + V, D] back at its places, noise at the masked ones: [B * M, T, D] (section 8)."""
    rate = self.config.decoder.input_dropout
    if rate and views.randomness is not None:
      output = dropout(output, views.randomness.seeds, rate, site_of(('decoder', 'input')))
    tokens = output[:, self.config.model.extra_tokens :].reshape(*views.where.positions.shape, -1)
    masked = views.where.mask[..., None]
    tokens = put_back(tokens, views.where) + jnp.where(masked, views.noise, 0).astype(tokens.dtype)
    if self.config.decoder.positions and self.modality.positions is not None:
      positions = self.modality.positions.astype(tokens.dtype)
      tokens = tokens + (positions if self.config.decoder.positions == 'all' else jnp.where(masked, positions, 0))
    return tokens.reshape(-1, *tokens.shape[2:])

  def loss_terms(self, forward: Forward, where: Visible, valid: jax.Array) -> dict[str, jax.Array]:
    """Loss terms summed over the batch as section 12 sums them; over the number of masked tokens they are the objective.

    Args:
      forward: the forward pass.
      where: its masks.
      valid: float32 [B]; 0 for rows that hold no example.
    """
    options = self.options
    width = self.config.model.embed_dim
    scale = options.loss_scale or width**-0.5
    weight = (valid[:, None, None] * where.mask).astype(jnp.float32)
    errors = losses.regression(forward.predictions, forward.targets[:, None], options.loss_beta)
    terms = {'regression': scale * options.regression_loss * (errors * weight[..., None]).sum()}
    if options.cls_loss:
      masks = options.masks_per_example
      cls = forward.student.output[:, self.config.model.extra_tokens - 1].reshape(-1, masks, width)
      errors = losses.regression(cls, forward.targets.mean(1)[:, None], options.loss_beta)
      # The reference sums over the rows of a worker: its weight grows with the worker's batch, which the recipe fixes.
      mean = (errors * valid[:, None, None]).sum() / jnp.maximum(valid.sum() * masks, 1)
      terms['cls'] = scale * options.cls_loss * options.cls_loss_examples * masks * mean * weight.sum()
    return terms

  def loss(self, params: dict, teacher_params: dict, batch: dict, keys: StepKeys) -> tuple[jax.Array, dict]:
    """Sum of all loss terms, and sums over the batch: 'weight' (masked tokens) and what `metrics` needs.

    Args:
      params: student parameters.
      teacher_params: teacher parameters.
      batch: of the loader, with B rows.
      keys: of the step, with the rows' own.
    """
    grid = self.modality.grid(batch[self.modality.key].shape[1:])
    return self.loss_of_views(params, teacher_params, batch, self.draw(keys, grid))

  def loss_of_views(self, params: dict, teacher_params: dict, batch: dict, views: Views):
    """As `loss`, for given views."""
    valid = batch['valid'].astype(jnp.float32)
    forward = self.forward(params, teacher_params, batch, views)
    terms = self.loss_terms(forward, views.where, valid)
    return sum(terms.values()), self.sums(forward, views.where, valid, terms)

  def sums(self, forward: Forward, where: Visible, valid: jax.Array, terms: dict) -> dict:
    """What the metrics are made of, as sums over the batch."""
    weight = valid[:, None, None] * where.mask
    rows = valid[:, None, None]
    views = Moments.of(forward.targets, weight.sum(1)[..., None], (0, 1))
    spreads = {'front_end': Moments.of(forward.local_features, rows, (0, 1))}
    for i, block in enumerate(forward.teacher.blocks):
      spreads[f'block_{i:02d}'] = Moments.of(block[:, self.config.model.extra_tokens :], rows, (0, 1))
    difference = jax.lax.stop_gradient(forward.predictions).astype(jnp.float32) - forward.targets[:, None]
    return {
      'weight': weight.sum(),
      'terms': terms,
      'square_error': (jnp.square(difference) * weight[..., None]).sum(),
      'targets': views,
      'predictions': Moments.of(forward.predictions, weight[..., None], (0, 1, 2)),
      'content': Moments.of(forward.targets, rows, (0,)),
      'spreads': spreads,
    }

  def metrics(self, sums: dict, step) -> dict[str, jax.Array]:
    """Metrics of a batch from its sums (section 13) and the number of updates including its own.

    `loss` and its terms per masked token; `target_std`, `pred_std`; `mse`, the squared error per element, against
    `target_content`, the variance of the target over examples at a fixed position: an error that is no smaller means that
    nothing but positions has been predicted; `spread/...` of the front end and of every block, near zero when one collapses.
    """
    weight = jnp.maximum(sums['weight'], 1)
    width = self.config.model.embed_dim
    metrics = {f'loss_{name}': term / weight for name, term in sums['terms'].items()}
    return {
      'loss': sum(sums['terms'].values()) / weight,
      **(metrics if len(metrics) > 1 else {}),
      'mse': sums['square_error'] / (weight * width),
      'target_content': sums['content'].variance().mean(),
      'target_std': sums['targets'].spread(),
      'pred_std': sums['predictions'].spread(),
      'ema_decay': 1 - self.ema_rate(step),
      **{f'spread/{name}': moments.spread() for name, moments in sums['spreads'].items()},
    }

  def flops_per_example(self, example: tuple[int, ...]) -> dict[str, float]:
    """Model FLOPs of one raw example of this shape in a train step, by part."""
    return flops.data2vec2(self.config, self.modality, example)
