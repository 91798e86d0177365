"""k nearest neighbours by cosine similarity: how well frozen features sort examples without any training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

_SIMILARITIES = 16_000_000  # of queries to training examples held on the device at a time


def nearest_neighbours(train_features: np.ndarray, query_features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Finds the k training examples most similar to each query; among equals the first ones.

  Args:
    train_features: float [n, F].
    query_features: float [m, F].
    k: neighbours; at most n.

  Returns:
    indices int32 [m, k] into the training examples, most similar first, and their cosine similarities float32 [m, k].
  """
  train = _normalise(train_features)
  # Chunks of one size, the last one padded: one compilation.
  rows = max(1, min(len(query_features), _SIMILARITIES // len(train_features)))
  indices, similarities = [], []
  for start in range(0, len(query_features), rows):
    chunk = query_features[start : start + rows]
    padded = np.pad(chunk, ((0, rows - len(chunk)), (0, 0)))
    values, places = _most_similar(train, padded, k)
    indices.append(np.asarray(places)[: len(chunk)])
    similarities.append(np.asarray(values)[: len(chunk)])
  return np.concatenate(indices), np.concatenate(similarities)


def knn_accuracy(train_features, train_labels, test_features, test_labels, num_classes, k=20, temperature=0.07) -> float:
  """Classifies test examples by a vote of their k nearest training examples and returns the fraction that is right.

  A neighbour's vote weighs exp(similarity / temperature), as is usual for self-supervised features; equal votes go to the
  lowest class.

  Args:
    train_features: float [n, F].
    train_labels: int [n], from 0 to num_classes - 1.
    test_features: float [m, F].
    test_labels: int [m].
    num_classes: number of classes.
    k: neighbours that vote; all training examples where there are fewer.
    temperature: of the votes.
  """
  indices, similarities = nearest_neighbours(train_features, test_features, min(k, len(train_features)))
  # Relative to the nearest one, so that the exponential cannot overflow at any temperature.
  weights = np.exp((similarities - similarities[:, :1]) / temperature)
  votes = np.zeros((len(indices), num_classes))
  np.add.at(votes, (np.arange(len(indices))[:, None], np.asarray(train_labels)[indices]), weights)
  return float(np.mean(votes.argmax(axis=1) == np.asarray(test_labels)))


@jax.jit
def _normalise(features):
  return features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), 1e-12)


@partial(jax.jit, static_argnames='k')
def _most_similar(train, queries, k):
  return jax.lax.top_k(jnp.dot(_normalise(queries), train.T, precision='highest'), k)
