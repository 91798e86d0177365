"""The scores of sentence tasks, as GLUE defines them, in float64.

A score that is not defined is 0: a correlation with what is constant or not finite, an F1 without positives, a score of no
examples. So a network that always says the same gets 0, not NaN, and the scores of a run can always be compared.
"""

import numpy as np

from d2v_jax.errors import InputError

_MEANS = {'accuracy_f1': ('accuracy', 'f1'), 'pearson_spearman': ('pearson', 'spearman')}


def scores(kind: str, predictions, labels, num_classes: int) -> dict[str, float]:
  """All scores of a task.

  Args:
    kind: 'classification' or 'regression'.
    predictions, labels: int [n] classes, or float [n] of a regression.
    num_classes: of a classification; a regression does not read it.

  Returns:
    'accuracy' and 'matthews', with two classes also 'f1'; or 'pearson' and 'spearman'.

  Raises:
    ValueError: predictions and labels are not of the same shape [n]; so do all functions here.
  """
  if kind == 'regression':
    return {'pearson': pearson(predictions, labels), 'spearman': spearman(predictions, labels)}
  found = {'accuracy': accuracy(predictions, labels), 'matthews': matthews(predictions, labels)}
  return found | {'f1': f1(predictions, labels)} if num_classes == 2 else found


def combined(metric: str, scores: dict[str, float]) -> float:
  """The one number that `config.sentence.metric` asks for: a score, or the mean of two.

  Raises:
    InputError: the task has no such score.
  """
  parts = _MEANS.get(metric, (metric,))
  if missing := [part for part in parts if part not in scores]:
    raise InputError(
      f'config.sentence.metric: {metric!r} needs {missing[0]!r}, this task has {", ".join(scores)}'
      ' (f1 is of two classes, pearson and spearman are of a regression)'
    )
  return sum(scores[part] for part in parts) / len(parts)


def accuracy(predictions, labels) -> float:
  """The fraction of examples that are right."""
  predictions, labels = _same_shape(predictions, labels)
  return float(np.sum(predictions == labels) / max(len(labels), 1))


def f1(predictions, labels) -> float:
  """The harmonic mean of precision and recall of class 1; 0 where it is neither predicted nor a label."""
  predictions, labels = _same_shape(predictions, labels)
  found, true = predictions == 1, labels == 1
  return float(2 * np.sum(found & true) / max(np.sum(found) + np.sum(true), 1))


def matthews(predictions, labels) -> float:
  """The correlation of predicted with true classes, of any number of them; 0 where either is constant.

  For two classes that is Matthews' coefficient, for more Gorodkin's R_K.
  """
  predictions, labels = _same_shape(predictions, labels)
  count = len(labels)
  classes, which = np.unique(np.concatenate([predictions, labels]), return_inverse=True)
  predicted, true = (np.bincount(part, minlength=len(classes)).astype(np.float64) for part in (which[:count], which[count:]))
  covariance = count * np.sum(predictions == labels) - predicted @ true
  variances = (count**2 - predicted @ predicted) * (count**2 - true @ true)
  return float(covariance / np.sqrt(variances)) if variances else 0.0


def pearson(predictions, labels) -> float:
  """The linear correlation of two series; 0 where one is constant or not finite."""
  series = _same_shape(np.asarray(predictions, np.float64), np.asarray(labels, np.float64))
  if not np.isfinite(series).all() or any(values.size == 0 or values.min() == values.max() for values in series):
    return 0.0
  one, other = (values - values.mean() for values in series)
  return float(np.clip(one @ other / np.sqrt((one @ one) * (other @ other)), -1, 1))


def spearman(predictions, labels) -> float:
  """The correlation of the ranks of two series, equal values sharing the mean of theirs; 0 as for `pearson`."""
  series = _same_shape(np.asarray(predictions, np.float64), np.asarray(labels, np.float64))
  return pearson(*map(_ranks, series)) if np.isfinite(series).all() else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
  _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[which]


def _same_shape(predictions, labels) -> tuple[np.ndarray, np.ndarray]:
  predictions, labels = np.asarray(predictions), np.asarray(labels)
  if predictions.shape != labels.shape or predictions.ndim != 1:
    raise ValueError(f'predictions {predictions.shape} and labels {labels.shape} are not of one shape [n]')
  return predictions, labels
