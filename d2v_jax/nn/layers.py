"""Linear layers and norms as flax modules: float32 parameters, computation in the dtype of the input."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from d2v_jax.nn.convolution import convolution, strided_convolution
from d2v_jax.nn.dense import dense
from d2v_jax.nn.normalization import layer_norm


def fan_in_uniform(fan_in: int):
  """Initialiser U(-b, b) with b = 1 / sqrt(fan_in): PyTorch's default for weights *and biases*."""
  bound = fan_in**-0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Dense(nn.Module):
  """y = x @ kernel + bias over the last axis; `kernel` is [in, out]."""

  features: int
  kernel_init: nn.initializers.Initializer
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features))
    bias = self.param('bias', self.bias_init, (self.features,))
    return dense(x, kernel, bias)


class Convolution(nn.Module):
  """Convolution over all axes between rows and channels, zero padded to keep the grid; kernel [*k, in / groups, out]."""

  features: int
  kernel_size: tuple[int, ...]
  groups: int = 1

  @nn.compact
  def __call__(self, x):
    shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
    init = fan_in_uniform(math.prod(shape[:-1]))
    return convolution(x, self.param('kernel', init, shape), self.param('bias', init, (self.features,)), self.groups)


class StridedConvolution(nn.Module):
  """Convolution of a sequence [rows, length, in] without padding and bias; kernel [k, in, out]."""

  features: int
  kernel_size: int
  stride: int
  kernel_init: nn.initializers.Initializer

  @nn.compact
  def __call__(self, x):
    shape = (self.kernel_size, x.shape[-1], self.features)
    return strided_convolution(x, self.param('kernel', self.kernel_init, shape), self.stride)


class LayerNorm(nn.Module):
  """Affine layer norm over the last axis with float32 statistics."""

  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    return layer_norm(x, scale, bias, self.eps)
