"""Whitening: identity covariance, whatever scales, copies and constants the features have."""

import numpy as np
import pytest

from d2v_jax.evaluate.whitening import fit_whitening


def correlated(count=4000, width=24, seed=0):
  random = np.random.default_rng(seed)
  directions = np.linalg.qr(random.normal(size=(width, width)))[0]
  units = np.logspace(-2, 2, width)
  values = (random.normal(size=(count, width)) * np.logspace(-1, 1, width)) @ directions + 20 * random.normal(size=width)
  return (values * units).astype(np.float32)


def assert_white(features):
  features = features.astype(np.float64)
  np.testing.assert_allclose(features.mean(axis=0), 0, atol=2e-3)
  np.testing.assert_allclose(features.T @ features / len(features), np.eye(features.shape[1]), atol=5e-3)


def test_covariance_is_the_identity():
  features = correlated(9001)  # more than one chunk, the last one short
  whitened = fit_whitening(features)(features)
  assert whitened.shape == (9001, 24) and whitened.dtype == np.float32
  assert_white(whitened)


def test_the_directions_of_largest_variance_are_kept():
  random = np.random.default_rng(1)
  hidden = random.normal(size=(4000, 3))
  features = hidden @ random.normal(size=(3, 40)) + 0.01 * random.normal(size=(4000, 40))
  whitened = fit_whitening(features.astype(np.float32), 3)(features.astype(np.float32))
  assert_white(whitened)
  # They span what the hidden causes span: a linear map recovers those.
  recovered = whitened @ np.linalg.lstsq(whitened, hidden, rcond=None)[0]
  np.testing.assert_allclose(recovered, hidden, atol=0.1)


def test_copies_and_constants_are_dropped():
  features = correlated(width=10)
  constant = np.full((len(features), 2), 7.3, np.float32)
  whitened = fit_whitening(features)(features)
  padded = np.concatenate([features, constant, 3 * features[:, :4], features[:, :4] - features[:, 4:8]], axis=1)
  also = fit_whitening(padded)(padded)
  assert whitened.shape[1] == also.shape[1] == 10
  assert_white(also)


def test_applied_to_other_examples_it_is_the_same_affine_map():
  features = correlated()
  whiten = fit_whitening(features)
  halves = np.concatenate([whiten(features[:1500]), whiten(features[1500:])])
  np.testing.assert_allclose(halves, whiten(features), atol=1e-5)


def test_few_examples_give_few_directions():
  features = correlated(count=80, width=64)
  assert fit_whitening(features)(features).shape == (80, 10)


@pytest.mark.parametrize('count', [2, 5])
def test_hardly_any_examples(count):
  features = np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)
  assert np.isfinite(fit_whitening(features)(features)).all()


def test_features_without_any_spread():
  features = np.ones((100, 6), np.float32)
  assert fit_whitening(features)(features).shape[0] == 100
