"""What frozen features are worth: kNN and linear probe of the trained network beside raw pixels and the untrained network.

All three kinds of features get the same treatment (PCA whitening fitted to the training examples, `whitening.py`) and the
same classifiers, so that their scores are comparable. Examples that cannot be read are left out and counted.
"""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from d2v_jax.data.loader import eval_batches
from d2v_jax.errors import InputError
from d2v_jax.evaluate.knn import knn_accuracy, nearest_neighbours
from d2v_jax.evaluate.linear_probe import linear_probe
from d2v_jax.evaluate.whitening import fit_whitening
from d2v_jax.report.progress import reported

_PIXEL_SIDE = 32


class FeatureEvaluator:
  """Scores the features of a network on a labelled training and test part. Deterministic; each example counts once."""

  def __init__(self, config, extract: Callable, train_source, test_source, initialise: Callable):
    """Prepares the evaluation; nothing is read yet.

    Args:
      config: the whole config; `eval` is read here, `data` by the loader.
      extract: function (params, images uint8 [b, S, S, 3]) -> features float [b, F], jitted, its result on every process.
      train_source: labelled examples that the classifiers learn from (`d2v_jax.data.sources`).
      test_source: examples that are classified.
      initialise: function () -> params of the untrained network, called once where `config.eval.controls` is set.

    Raises:
      InputError: no labels, fewer than two classes, or other classes in the test part.
    """
    _check_classes(config, train_source.classes, test_source.classes)
    self._config = config
    self._extract = extract
    self._initialise = initialise
    self._parts = {
      'train': (train_source, _subset(len(train_source), config.eval.max_train)),
      'test': (test_source, _subset(len(test_source), config.eval.max_test)),
    }
    self._num_classes = len(train_source.classes)
    self._controls = None if config.eval.controls else {}
    self._last = None  # whitened features, labels and indices of the last run

  def run(self, params) -> dict[str, float]:
    """Returns the scores of the network, all as fractions, and of the controls, which are computed once.

    Keys: eval/knn/accuracy, eval/linear_probe/accuracy; with controls also .../pixels and .../untrained; and
    eval/train_examples, eval/test_examples, eval/unreadable: the examples used, and those left out of both parts.

    Raises:
      InputError: no labelled test examples, or training examples of fewer than two classes, are left.
    """
    start = time.monotonic()
    extractors = {'accuracy': partial(self._extract, params)}
    if self._controls is None:
      extractors |= {'pixels': pixel_features, 'untrained': partial(self._extract, self._initialise())}
    train, train_labels, train_indices = self._read('train', extractors)
    test, test_labels, test_indices = self._read('test', extractors)
    num_seen = len(np.unique(train_labels))
    if num_seen < 2 or not len(test_labels):
      raise InputError(
        f'config.data.source: {self._config.data.source}: {num_seen} classes among the labelled training examples and'
        f' {len(test_labels)} labelled test examples; an evaluation needs 2 classes and 1 example, or config.eval_every=0'
      )

    scores = {}
    for kind in extractors:
      whiten = fit_whitening(train[kind])
      train[kind], test[kind] = whiten(train[kind]), whiten(test[kind])
      arguments = train[kind], train_labels, test[kind], test_labels, self._num_classes
      scores[f'eval/knn/{kind}'] = knn_accuracy(*arguments, k=self._config.eval.knn_k)
      scores[f'eval/linear_probe/{kind}'] = linear_probe(*arguments)
    if self._controls is None:
      self._controls = {name: score for name, score in scores.items() if not name.endswith('/accuracy')}
    self._last = {
      'train': (train['accuracy'], train_labels, train_indices),
      'test': (test['accuracy'], test_labels, test_indices),
    }
    logging.info('Evaluated %d examples in %.1f s', len(train_labels) + len(test_labels), time.monotonic() - start)
    counts = {
      'eval/train_examples': len(train_labels),
      'eval/test_examples': len(test_labels),
      'eval/unreadable': sum(len(indices) for _, indices in self._parts.values()) - len(train_labels) - len(test_labels),
    }
    return scores | self._controls | counts

  def neighbours(self, queries: int = 8, k: int = 6) -> dict[str, np.ndarray]:
    """Finds the nearest training examples of a test example of each of the first classes, by the features of the last run.

    Returns:
      the arguments of `report.pictures.neighbours`: query_images uint8 [queries, S, S, 3], neighbour_images
      [queries, k, S, S, 3], query_labels [queries], neighbour_labels [queries, k], class_names.
    """
    train_features, train_labels, train_indices = self._last['train']
    test_features, test_labels, test_indices = self._last['test']
    chosen = np.unique(test_labels, return_index=True)[1][:queries]
    nearest, _ = nearest_neighbours(train_features, test_features[chosen], min(k, len(train_labels)))
    neighbour_images = self._images('train', train_indices[nearest.ravel()])
    return {
      'query_images': self._images('test', test_indices[chosen]),
      'neighbour_images': neighbour_images.reshape(*nearest.shape, *neighbour_images.shape[1:]),
      'query_labels': test_labels[chosen],
      'neighbour_labels': train_labels[nearest],
      'class_names': self._parts['train'][0].classes,
    }

  def _read(self, part, extractors):
    """Reads a part once. Returns {kind: features float32 [n, F]}, labels int32 [n] and indices [n] of what can be used."""
    source, indices = self._parts[part]
    features, labels, usable = {kind: [] for kind in extractors}, [], []
    pending = {}
    size = self._config.eval.batch_size
    batches = eval_batches(self._config, source, indices, size)
    for batch in reported(batches, -(-len(indices) // size), f'evaluation, batches of the {part} part'):
      # Fetched one batch late, so that the device works while the host decodes.
      computed = {kind: extract(batch['image']) for kind, extract in extractors.items()}
      for kind, array in pending.items():
        features[kind].append(np.asarray(array, np.float32))
      pending = computed
      labels.append(batch['label'])
      usable.append(batch['valid'] & (batch['label'] >= 0))
    for kind, array in pending.items():
      features[kind].append(np.asarray(array, np.float32))
    usable = np.concatenate(usable)
    return (
      {kind: np.concatenate(arrays)[usable] for kind, arrays in features.items()},
      np.concatenate(labels)[usable],
      indices[usable[: len(indices)]],
    )

  def _images(self, part, indices):
    batches = eval_batches(self._config, self._parts[part][0], indices, len(indices))
    return np.concatenate([batch['image'] for batch in batches])[: len(indices)]


@jax.jit
def pixel_features(images: jax.Array) -> jax.Array:
  """Flattens uint8 images [b, S, S, 3] to float32 [b, F] in [0, 1].

  Images above 32 pixels are first reduced to 32: as features, more pixels are not better, and their covariance is too large.
  """
  batch, side, _, channels = images.shape
  reduced = min(side, _PIXEL_SIDE)
  images = jax.image.resize(images / jnp.float32(255), (batch, reduced, reduced, channels), 'linear', antialias=True)
  return images.reshape(batch, -1)


def _subset(size, limit):
  """The examples used of a part: all, or always the same `limit` of them, in ascending order."""
  if not limit or limit >= size:
    return np.arange(size)
  return np.sort(np.random.default_rng(0).permutation(size)[:limit])


def _check_classes(config, train, test):
  source = config.data.source
  advice = 'an evaluation needs labels of 2 classes or more in both; give another source or set config.eval_every=0'
  for part, classes in (('training', train), ('test', test)):
    if len(classes) < 2:
      raise InputError(f'config.data.source: {source}: {len(classes)} classes in the {part} part; {advice}')
  if list(train) != list(test):
    odd = sorted(set(map(str, train)) ^ set(map(str, test))) or ['their order']
    raise InputError(
      f'config.data.source: {source}: the training and test part differ in their classes ({", ".join(odd[:5])});'
      ' both need the same ones, or set config.eval_every=0'
    )
