"""PCA whitening: the one treatment that every kind of features gets before it is scored.

Mean-pooled features are dominated by a few directions, raw pixels by brightness, so that a plain cosine compares nothing but
those. Whitened, all directions weigh the same, and different kinds of features are compared on equal terms.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAX_DIMENSIONS = 512
_ROWS = 4096  # rows on the device at a time
_ITERATIONS = 10
_EXAMPLES_PER_DIRECTION = 8


class Whitening(NamedTuple):
  """An affine map [n, F] -> [n, d] whose outputs have zero mean and unit covariance on the features it was fitted to."""

  mean: np.ndarray  # [F]
  matrix: np.ndarray  # [F, d]

  def __call__(self, features: np.ndarray) -> np.ndarray:
    """Maps features [n, F] to float32 [n, d]."""
    return np.concatenate([np.asarray(_project(rows, self.mean, self.matrix)) for rows in _chunks(features)])


def fit_whitening(features: np.ndarray, max_dimensions: int = MAX_DIMENSIONS) -> Whitening:
  """Fits the whitening of float features [n, F], n >= 2: standardises every feature, then scales the principal directions.

  The directions of the largest variance are kept, at most `max_dimensions` and at most one for every eight examples: fewer
  examples do not determine them. Directions without variance (constant features, copies of others) are dropped.
  """
  count, width = features.shape
  mean = np.mean(features, axis=0, dtype=np.float64)
  variance = sum(np.square(rows - mean).sum(axis=0) for rows in _chunks(features)) / count
  mean = mean.astype(np.float32)
  # What is constant up to rounding has no spread worth dividing by.
  constant = variance <= np.square(1e-6 * mean) + 1e-30
  scale = np.where(constant, 0, 1 / np.sqrt(np.where(constant, 1, variance))).astype(np.float32)

  correlation = jnp.zeros((width, width))
  for rows in _chunks(features):
    correlation = _add_outer(correlation, rows, mean, scale)
  kept = max(1, min(max_dimensions, width, count // _EXAMPLES_PER_DIRECTION))
  values, directions = jax.device_get(_leading_directions(correlation / count, kept))
  # Values this small are the rounding errors of the sums above.
  independent = values > max(values.max(), 1e-30) * 1e-6
  return Whitening(mean, scale[:, None] * directions[:, independent] / np.sqrt(values[independent]))


def _chunks(features):
  return (features[start : start + _ROWS] for start in range(0, len(features), _ROWS))


@jax.jit
def _add_outer(total, rows, mean, scale):
  rows = (rows - mean) * scale
  return total + jnp.dot(rows.T, rows, precision='highest')


@partial(jax.jit, static_argnames='kept')
def _leading_directions(matrix, kept):
  """Eigenvalues [kept] and eigenvectors [F, kept] of a symmetric matrix by subspace iteration: exact for kept = F.

  For a wide matrix this takes a small part of the time of a full decomposition. The last few directions are mixed with those
  that follow them; within the subspace found the whitening is exact all the same.
  """

  def iterate(_, basis):
    return jnp.linalg.qr(jnp.dot(matrix, basis, precision='highest'))[0]

  basis = jax.random.normal(jax.random.key(0), (matrix.shape[0], kept))
  basis = jax.lax.fori_loop(0, _ITERATIONS, iterate, basis)
  inside = jnp.dot(basis.T, jnp.dot(matrix, basis, precision='highest'), precision='highest')
  values, rotation = jnp.linalg.eigh(inside)
  return values, jnp.dot(basis, rotation, precision='highest')


@jax.jit
def _project(rows, mean, matrix):
  return jnp.dot(rows - mean, matrix, precision='highest')
