"""Model FLOPs: the products and convolutions that a method needs, 2 per multiply-add, backward twice forward."""

import itertools
import math


def blocks(model, tokens: int) -> float:
  """FLOPs of one row of `tokens` tokens, extra tokens included, through all blocks, forward."""
  matmuls = 2 * (4 + 2 * model.mlp_ratio) * model.embed_dim**2
  attention = 4 * tokens * model.embed_dim
  return (model.prenet_depth + model.depth) * tokens * (matmuls + attention)


def conv_positions(model, tokens: int) -> float:
  """FLOPs of the convolutional positions of one row, forward; 0 where there are none."""
  if 'conv_positions' not in model:
    return 0
  options = model.conv_positions
  return 2 * tokens * options.layers * options.kernel * model.embed_dim**2 / options.groups


def data2vec2(config, modality, example: tuple[int, ...]) -> dict[str, float]:
  """Model FLOPs of one example in one data2vec 2.0 train step, by part: 'teacher', 'student' and 'decoder'.

  Args:
    config: the config.
    modality: its modality.
    example: shape of one raw example.
  """
  model, decoder, views = config.model, config.decoder, config.data2vec2.masks_per_example
  grid = modality.grid(example)
  masks = modality.masks(grid)
  tokens = masks.num_tokens
  local_forward, local_backward = modality.local_flops(example)
  widths = [model.embed_dim] + [decoder.dim] * decoder.layers
  taps = decoder.kernel ** len(grid)
  convolutions = sum(2 * taps * math.prod(pair) / decoder.groups for pair in itertools.pairwise(widths))
  hidden = [int(decoder.dim * decoder.projection_ratio)] * (decoder.projection_layers - 1)
  projection = sum(2 * math.prod(pair) for pair in itertools.pairwise([decoder.dim, *hidden, model.embed_dim]))
  own_local = local_forward if config.data2vec2.teacher_scope == 'all' else 0
  visible = conv_positions(model, tokens) + blocks(model, masks.num_visible + model.extra_tokens)
  return {
    'teacher': own_local + conv_positions(model, tokens) + blocks(model, tokens + model.extra_tokens),
    'student': local_forward + local_backward + 3 * views * visible,
    'decoder': 3 * views * tokens * (convolutions + projection),
  }
