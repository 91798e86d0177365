"""Model FLOPs: the products and convolutions that a method needs, 2 per multiply-add, backward twice forward."""

import itertools
import math


def data2vec2(config, num_tokens: int, num_visible: int, grid_rank: int) -> dict[str, float]:
  """Model FLOPs of one example in one data2vec 2.0 train step, by part: 'teacher', 'student' and 'decoder'.

  Args:
    config: the config.
    num_tokens: T, without extra tokens.
    num_visible: V.
    grid_rank: dimensions of the token grid, which the decoder's kernels have.
  """
  model, decoder, masks = config.model, config.decoder, config.data2vec2.masks_per_example
  patch = 2 * num_tokens * 3 * model.patch_size**2 * model.embed_dim

  def blocks(tokens):
    matmuls = 2 * (4 + 2 * model.mlp_ratio) * model.embed_dim**2
    attention = 4 * tokens * model.embed_dim
    return (model.prenet_depth + model.depth) * tokens * (matmuls + attention)

  widths = [model.embed_dim] + [decoder.dim] * decoder.layers
  taps = decoder.kernel**grid_rank
  convolutions = sum(2 * taps * math.prod(pair) / decoder.groups for pair in itertools.pairwise(widths))
  projection = 2 * decoder.dim * model.embed_dim
  return {
    'teacher': patch + blocks(num_tokens + model.extra_tokens),
    'student': 2 * patch + 3 * masks * blocks(num_visible + model.extra_tokens),
    'decoder': 3 * masks * num_tokens * (convolutions + projection),
  }
