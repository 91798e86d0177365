"""The evaluation of frozen features: every example once, all kinds of features alike, controls once."""

import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.config import default_config
from d2v_jax.errors import InputError
from d2v_jax.evaluate import features as features_module
from d2v_jax.evaluate.features import FeatureEvaluator, pixel_features


class Source:
  """Images of one brightness a class; some cannot be read or have no label."""

  def __init__(self, count, classes=('dark', 'bright'), unreadable=(), unlabelled=(), seed=0):
    random = np.random.default_rng(seed)
    self.labels = random.integers(max(len(classes), 1), size=count)
    self.images = (60 + 80 * self.labels[:, None, None, None] + random.integers(0, 60, (count, 8, 8, 3))).astype(np.uint8)
    self.classes, self.unreadable, self.unlabelled = classes, unreadable, unlabelled
    self.reads = []

  def __len__(self):
    return len(self.labels)

  def name(self, index):
    return f'image {index}'

  def read(self, index):
    self.reads.append(int(index))
    if index in self.unreadable:
      raise ValueError('truncated')
    return {'image': self.images[index], 'label': -1 if index in self.unlabelled else int(self.labels[index])}


@pytest.fixture
def config():
  config = default_config()
  config.data.source = 'folder:images'
  config.data.image_size = 8
  config.eval.batch_size = 16
  return config


def brightness(params, images):
  """Features of a 'network' whose single parameter mixes the image's brightness with noise."""
  flat = images.reshape(len(images), -1) / 255.0
  noise = jnp.sin(1e4 * flat[:, :3])
  return jnp.concatenate([params * flat.mean(axis=1, keepdims=True), noise], axis=1)


@pytest.fixture
def no_probe(monkeypatch):
  """Spares the compilation of the probe where the scores do not matter."""
  monkeypatch.setattr(features_module, 'linear_probe', lambda *arguments: 0.5)


def evaluator(config, train, test, initialise=lambda: 0.0):
  return FeatureEvaluator(config, brightness, train, test, initialise)


def test_scores_and_controls(config):
  metrics = evaluator(config, Source(300), Source(100, seed=1)).run(1.0)
  assert set(metrics) == {
    *(f'eval/{name}/{kind}' for name in ('knn', 'linear_probe') for kind in ('accuracy', 'pixels', 'untrained')),
    'eval/train_examples', 'eval/test_examples', 'eval/unreadable',
  }  # fmt: skip
  assert metrics['eval/linear_probe/accuracy'] == 1.0 and metrics['eval/knn/accuracy'] > 0.95
  assert metrics['eval/linear_probe/untrained'] < 0.7 and metrics['eval/knn/untrained'] < 0.7
  assert metrics['eval/train_examples'] == 300 and metrics['eval/test_examples'] == 100


def test_controls_are_computed_once(config, no_probe):
  calls = []
  subject = evaluator(config, Source(200), Source(50, seed=1), lambda: calls.append(1) or 0.0)
  first, second = subject.run(1.0), subject.run(0.0)
  assert calls == [1]
  assert set(first) == set(second)
  assert second['eval/knn/accuracy'] == second['eval/knn/untrained'] == first['eval/knn/untrained']
  assert second['eval/knn/pixels'] == first['eval/knn/pixels']


def test_without_controls(config, no_probe):
  config.eval.controls = False
  metrics = evaluator(config, Source(200), Source(50, seed=1), None).run(1.0)
  assert sorted(name for name in metrics if 'accuracy' in name) == ['eval/knn/accuracy', 'eval/linear_probe/accuracy']
  assert not any('pixels' in name or 'untrained' in name for name in metrics)


def test_each_example_counts_once(config, no_probe, monkeypatch):
  """100 = 6 full batches and a padded one; what is unreadable or unlabelled is left out, in both parts."""
  train = Source(100, unreadable=(5, 50), unlabelled=(7,))
  test = Source(37, unreadable=(36,), seed=1)
  given = {}

  def record(train_features, train_labels, test_features, test_labels, num_classes, k):
    given.update(train=train_labels, test=test_labels, shapes=(train_features.shape[0], test_features.shape[0]))
    return 0.5

  monkeypatch.setattr(features_module, 'knn_accuracy', record)
  metrics = evaluator(config, train, test).run(1.0)
  assert sorted(train.reads) == list(range(100)) and sorted(test.reads) == list(range(37))
  np.testing.assert_array_equal(given['train'], np.delete(train.labels, [5, 7, 50]))
  np.testing.assert_array_equal(given['test'], test.labels[:36])
  assert given['shapes'] == (97, 36)
  assert (metrics['eval/train_examples'], metrics['eval/test_examples'], metrics['eval/unreadable']) == (97, 36, 4)


def test_limits_take_the_same_examples_every_time(config, no_probe):
  config.eval.max_train, config.eval.max_test = 40, 20
  reads = []
  for seed in (1, 2):
    config.seed = seed
    train, test = Source(300), Source(100, seed=1)
    evaluator(config, train, test).run(1.0)
    reads.append((sorted(train.reads), sorted(test.reads)))
  assert reads[0] == reads[1] and len(set(reads[0][0])) == 40 and len(set(reads[0][1])) == 20
  assert reads[0][0] != list(range(40))  # sorted by class on disk, the first ones would be one class


def test_neighbours_belong_to_their_features(config, no_probe):
  train, test = Source(200, unreadable=(0, 3)), Source(50, unreadable=(1,), seed=1)
  subject = evaluator(config, train, test)
  subject.run(1.0)
  found = subject.neighbours(queries=5, k=4)
  assert found['query_images'].shape == (2, 8, 8, 3) and found['neighbour_images'].shape == (2, 4, 8, 8, 3)
  assert list(found['query_labels']) == [0, 1]  # one of each class
  assert found['class_names'] == ('dark', 'bright')
  for images, labels in (
    (found['query_images'], found['query_labels']),
    (found['neighbour_images'], found['neighbour_labels']),
  ):
    np.testing.assert_array_equal(images.mean(axis=(-3, -2, -1)) > 130, labels == 1)


@pytest.mark.parametrize(
  'train, test, message',
  [
    (Source(20, classes=()), Source(20), '0 classes in the training part'),
    (Source(20), Source(20, classes=()), '0 classes in the test part'),
    (Source(20, classes=('one',)), Source(20, classes=('one',)), '1 classes in the training part'),
    (Source(20), Source(20, classes=('dark', 'light')), 'bright, light'),
  ],
)
def test_labels_that_cannot_be_evaluated(config, train, test, message):
  with pytest.raises(InputError, match=message) as caught:
    evaluator(config, train, test)
  assert 'config.data.source' in str(caught.value) and 'eval_every=0' in str(caught.value) and '\n' not in str(caught.value)


def test_no_labelled_test_examples_left(config):
  with pytest.raises(InputError, match='0 labelled test examples'):
    evaluator(config, Source(50), Source(20, unlabelled=range(20))).run(1.0)


def test_pixel_features():
  images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
  np.testing.assert_allclose(pixel_features(images), images.reshape(3, -1) / 255, atol=1e-6)
  large = np.repeat(np.repeat(images, 4, axis=1), 4, axis=2)  # 64 pixels: halved
  assert pixel_features(large).shape == (3, 32 * 32 * 3)
  np.testing.assert_allclose(np.mean(pixel_features(large), axis=1), images.mean(axis=(1, 2, 3)) / 255, atol=0.01)
