"""The linear probe against scikit-learn's logistic regression."""

import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.evaluate import linear_probe as probe
from d2v_jax.evaluate.linear_probe import linear_probe


def data(count, seed, classes=4, width=20, noise=2.0):
  centres = np.random.default_rng(7).normal(size=(classes, width))
  random = np.random.default_rng(seed)
  labels = random.integers(classes, size=count)
  return (centres[labels] + noise * random.normal(size=(count, width))).astype(np.float32), labels.astype(np.int32)


@pytest.mark.parametrize('penalty', [1e-1, 1e-3])
def test_the_fit_is_scikit_learns(penalty):
  linear_model = pytest.importorskip('sklearn.linear_model')
  features, labels = data(1000, 0)
  peer = linear_model.LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-8, max_iter=2000).fit(features, labels)
  start = {'kernel': jnp.zeros((20, 4)), 'bias': jnp.zeros(4)}
  found = probe._fit(start, jnp.asarray(features), jnp.asarray(labels), jnp.ones(len(labels)), penalty)
  np.testing.assert_allclose(found['kernel'], peer.coef_.T, atol=2e-3)
  bias = np.asarray(found['bias'])
  np.testing.assert_allclose(bias - bias.mean(), peer.intercept_ - peer.intercept_.mean(), atol=2e-3)


def test_accuracy_is_scikit_learns_with_the_best_penalty():
  linear_model = pytest.importorskip('sklearn.linear_model')
  train, test = data(3000, 0), data(1000, 1)
  peer = max(
    linear_model.LogisticRegression(C=1 / (penalty * 3000), max_iter=1000).fit(*train).score(*test)
    for penalty in probe.PENALTIES
  )
  accuracy = linear_probe(*train, *test, 4)
  assert accuracy == pytest.approx(peer, abs=0.01)
  assert accuracy == linear_probe(*train, *test, 4)  # deterministic


def test_weights_leave_examples_out():
  features, labels = data(400, 0)
  weights = (np.arange(400) < 300).astype(np.float32)
  start = {'kernel': jnp.zeros((20, 4)), 'bias': jnp.zeros(4)}
  some = probe._fit(start, jnp.asarray(features), jnp.asarray(labels), jnp.asarray(weights), 1e-2)
  alone = probe._fit(start, jnp.asarray(features[:300]), jnp.asarray(labels[:300]), jnp.ones(300), 1e-2)
  np.testing.assert_allclose(some['kernel'], alone['kernel'], atol=2e-3)


def test_the_penalty_is_chosen_without_the_test_examples(monkeypatch):
  """Many useless features, few examples: a strong penalty is better by far, and the held-out part shows it."""
  train, test = data(120, 0, width=300, noise=4.0), data(1000, 1, width=300, noise=4.0)
  used = []
  fit = probe._fit
  monkeypatch.setattr(probe, '_fit', lambda *arguments: used.append(arguments[-1]) or fit(*arguments))
  linear_probe(*train, *test, 4)
  chosen = used[-1]
  used.clear()
  shuffled = np.random.default_rng(0).permutation(test[1])
  linear_probe(*train, test[0], shuffled, 4)
  assert used[-1] == chosen


def test_a_useless_penalty_is_not_chosen():
  train, test = data(1000, 0), data(1000, 1)
  accuracy = linear_probe(*train, *test, 4, penalties=(1e6, 1e-2))
  assert accuracy == pytest.approx(linear_probe(*train, *test, 4, penalties=(1e-2,)), abs=0.01)
  assert accuracy > linear_probe(*train, *test, 4, penalties=(1e6,)) + 0.2


def test_a_class_without_training_examples_is_never_right():
  features, labels = data(500, 0, noise=0.1)
  seen = labels < 3
  assert linear_probe(features[seen], labels[seen], features, labels, 4) == pytest.approx(seen.mean())
