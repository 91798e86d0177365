"""Scores of sentence tasks against scikit-learn and SciPy, by hand, and where they are not defined."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from d2v_jax.errors import InputError
from d2v_jax.evaluate.sentence_metrics import accuracy, combined, f1, matthews, pearson, scores, spearman


def random_classes(seed, classes):
  """Labels of unequal frequency, and predictions that are right about half the time."""
  rng = np.random.default_rng(seed)
  count = int(rng.integers(2, 400))
  frequencies = rng.dirichlet(np.ones(classes))
  labels, others = rng.choice(classes, p=frequencies, size=(2, count))
  return np.where(rng.random(count) < 0.5, labels, others), labels


@pytest.mark.parametrize('classes', [2, 3, 20])
@pytest.mark.parametrize('seed', range(10))
def test_classification_equals_scikit_learn(seed, classes):
  predictions, labels = random_classes(seed, classes)
  assert accuracy(predictions, labels) == pytest.approx(metrics.accuracy_score(labels, predictions), abs=1e-12)
  assert matthews(predictions, labels) == pytest.approx(metrics.matthews_corrcoef(labels, predictions), abs=1e-12)
  if classes == 2:
    assert f1(predictions, labels) == pytest.approx(metrics.f1_score(labels, predictions, zero_division=0), abs=1e-12)


@pytest.mark.parametrize('offset', [0.0, 1e6])
@pytest.mark.parametrize('decimals', [0, 1, 12])  # many ties, some, none
@pytest.mark.parametrize('seed', range(4))
def test_regression_equals_scipy(seed, decimals, offset):
  rng = np.random.default_rng(seed)
  labels = np.round(rng.uniform(0, 5, 300), decimals)
  predictions = np.round(0.3 * labels**2 + rng.normal(size=300), decimals) + offset
  for series in ((predictions, labels), (-predictions, labels), (predictions.astype(np.float32), labels.astype(np.float32))):
    wide = [values.astype(np.float64) for values in series]
    assert pearson(*series) == pytest.approx(stats.pearsonr(*wide)[0], abs=1e-9)
    assert spearman(*series) == pytest.approx(stats.spearmanr(*wide)[0], abs=1e-12)


def test_by_hand():
  labels = np.array([0, 0, 1, 1, 1])
  predictions = np.array([0, 1, 1, 1, 0])
  assert accuracy(predictions, labels) == 0.6
  assert f1(predictions, labels) == pytest.approx(2 / 3)
  assert f1(1 - predictions, 1 - labels) == 0.5  # the second label is the positive one
  assert matthews(predictions, labels) == pytest.approx((2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2))
  assert spearman([10, 20, 20, 90], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_perfect_and_opposite():
  labels = np.arange(200_000) % 2
  assert (accuracy(labels, labels), f1(labels, labels), matthews(labels, labels)) == (1, 1, 1)
  assert (accuracy(1 - labels, labels), f1(1 - labels, labels), matthews(1 - labels, labels)) == (0, 0, -1)
  values = np.random.default_rng(0).normal(size=100)
  assert pearson(2 * values + 1, values) == pytest.approx(1) and pearson(-values, values) == pytest.approx(-1)
  assert spearman(np.exp(values), values) == pytest.approx(1)
  assert all(pearson(values[:count], 0.1 * values[:count] + 3) <= 1 for count in range(2, 100))  # not rounded up


@pytest.mark.parametrize('constant', [0, 1])
def test_a_constant_answer(constant):
  labels, answers = np.array([0, 0, 1, 0]), np.full(4, constant)
  assert matthews(answers, labels) == matthews(labels, answers) == matthews(answers, answers) == 0
  assert f1(answers, labels) == (0.4 if constant else 0)
  # A third added up and divided again is not a third, so the mean is not what it should be.
  for values in (np.full(7, 1 / 3), np.full(7, 1e300)):
    assert pearson(values, np.arange(7)) == spearman(values, np.arange(7)) == pearson(np.arange(7), values) == 0


def test_f1_without_positives():
  assert f1([0, 0], [0, 0]) == f1([1, 1], [0, 0]) == f1([0, 0], [1, 1]) == 0


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_not_finite_correlates_with_nothing(bad):
  predictions = np.arange(5.0)
  predictions[2] = bad
  assert pearson(predictions, np.arange(5)) == spearman(predictions, np.arange(5)) == 0


@pytest.mark.parametrize('function', [accuracy, f1, matthews, pearson, spearman])
def test_no_examples_and_wrong_shapes(function):
  assert function([], []) == 0
  for predictions, labels in (([1], [1, 0]), ([[1, 0]], [[1, 0]]), ([[1], [0]], [1, 0])):
    with pytest.raises(ValueError, match='shape'):
      function(predictions, labels)


def test_all_scores_of_a_task():
  predictions, labels = random_classes(0, 2)
  two = scores('classification', predictions, labels, 2)
  assert two == {
    'accuracy': accuracy(predictions, labels),
    'matthews': matthews(predictions, labels),
    'f1': f1(predictions, labels),
  }
  assert list(scores('classification', predictions, labels, 3)) == ['accuracy', 'matthews']
  answers = scores('regression', [0.5, 1.5, 1.0], [0, 1, 2], 0)
  assert answers == {'pearson': pytest.approx(0.5), 'spearman': pytest.approx(0.5)}
  assert all(type(value) is float for value in [*two.values(), *answers.values()])


def test_combined():
  found = {'accuracy': 0.5, 'matthews': 0.1, 'f1': 0.8}
  assert combined('accuracy', found) == 0.5 and combined('matthews', found) == 0.1 and combined('f1', found) == 0.8
  assert combined('accuracy_f1', found) == pytest.approx(0.65)
  assert combined('pearson_spearman', {'pearson': 0.2, 'spearman': -0.4}) == pytest.approx(-0.1)
  for metric, has in (('f1', {'accuracy': 1, 'matthews': 1}), ('pearson_spearman', found), ('accuracy', {'pearson': 1})):
    with pytest.raises(InputError, match=rf'config\.sentence\.metric: {metric!r} needs .* this task has'):
      combined(metric, has)
