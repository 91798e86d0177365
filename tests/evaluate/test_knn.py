"""kNN against brute force."""

import numpy as np
import pytest

from d2v_jax.evaluate import knn
from d2v_jax.evaluate.knn import knn_accuracy, nearest_neighbours


def clusters(count, seed, classes=5, width=12, noise=1.0):
  centres = np.random.default_rng(99).normal(size=(classes, width))
  random = np.random.default_rng(seed)
  labels = random.integers(classes, size=count)
  return (centres[labels] + noise * random.normal(size=(count, width))).astype(np.float32), labels.astype(np.int32)


def brute_force(train, train_labels, test, test_labels, classes, k, temperature):
  train = train / np.linalg.norm(train, axis=1, keepdims=True)
  right = 0
  for query, label in zip(test / np.linalg.norm(test, axis=1, keepdims=True), test_labels):
    similarity = train @ query
    nearest = np.argsort(-similarity, kind='stable')[:k]
    votes = [np.exp(similarity[nearest][train_labels[nearest] == c] / temperature).sum() for c in range(classes)]
    right += int(np.argmax(votes) == label)
  return right / len(test)


@pytest.mark.parametrize('k', [1, 20])
@pytest.mark.parametrize('chunk', [16_000_000, 7 * 600])
def test_equals_brute_force(monkeypatch, k, chunk):
  monkeypatch.setattr(knn, '_SIMILARITIES', chunk)  # the second: 7 queries at a time, the last chunk short
  train, train_labels = clusters(600, 0)
  test, test_labels = clusters(151, 1)
  expected = brute_force(train, train_labels, test, test_labels, 5, k, 0.07)
  assert 0.5 < expected < 0.99
  assert knn_accuracy(train, train_labels, test, test_labels, 5, k) == pytest.approx(expected, abs=1e-9)


def test_neighbours_are_the_most_similar_first_ones_first():
  train = np.array([[0, 1], [2, 0], [1, 1], [5, 0], [-1, 0]], np.float32)
  indices, similarities = nearest_neighbours(train, np.array([[3, 0]], np.float32), 4)
  assert indices.tolist() == [[1, 3, 2, 0]]
  np.testing.assert_allclose(similarities, [[1, 1, np.sqrt(0.5), 0]], atol=1e-6)


def test_near_votes_weigh_more():
  train = np.array([[1, 0], [0.2, 1], [0.2, 1]], np.float32)
  assert knn_accuracy(train, [1, 0, 0], np.array([[1, 0.05]], np.float32), [1], 2, k=3) == 1.0


def test_fewer_examples_than_neighbours():
  train, labels = clusters(6, 0)
  assert 0 <= knn_accuracy(train, labels, train, labels, 5, k=20) <= 1


def test_zero_vectors_and_wrong_scales_do_no_harm():
  train, labels = clusters(200, 0, noise=0.1)
  test, test_labels = clusters(100, 1, noise=0.1)
  scale = np.random.default_rng(0).uniform(1e-3, 1e3, (100, 1)).astype(np.float32)
  assert knn_accuracy(train, labels, test * scale, test_labels, 5) == 1.0
  assert np.isfinite(nearest_neighbours(train, np.zeros((3, 12), np.float32), 5)[1]).all()
