"""Linear probe: multinomial logistic regression on frozen features, by L-BFGS on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)  # from strong to weak
_HOLDOUT = 0.2
_MAX_ITERATIONS = 100


def linear_probe(train_features, train_labels, test_features, test_labels, num_classes, penalties=PENALTIES) -> float:
  """Fits a linear classifier and returns the fraction of test examples it gets right. Deterministic.

  The loss is the mean cross-entropy plus penalty / 2 times the squared norm of the weights (not of the biases), so features
  should be whitened or standardised. The penalty is the one that does best on a fifth of the training examples, held out;
  then the classifier is fitted to all of them. The test examples play no part in it.

  Args:
    train_features: float [n, F].
    train_labels: int [n], from 0 to num_classes - 1.
    test_features: float [m, F].
    test_labels: int [m].
    num_classes: number of classes.
    penalties: the penalties to choose from, strong ones first (each fit starts from the one before).
  """
  features, labels = jnp.asarray(train_features, jnp.float32), jnp.asarray(train_labels)
  count, width = features.shape
  held_out = np.zeros(count, bool)
  held_out[np.random.default_rng(0).permutation(count)[: int(count * _HOLDOUT)]] = True

  start = {'kernel': jnp.zeros((width, num_classes)), 'bias': jnp.zeros(num_classes)}
  fits, scores = [], []
  for penalty in penalties:
    start = _fit(start, features, labels, jnp.asarray(~held_out, jnp.float32), penalty)
    fits.append(start)
    scores.append(float(_accuracy(start, features, labels, jnp.asarray(held_out, jnp.float32))))
  best = int(np.argmax(scores))
  classifier = _fit(fits[best], features, labels, jnp.ones(count), penalties[best])
  test_features, test_labels = jnp.asarray(test_features, jnp.float32), jnp.asarray(test_labels)
  return float(_accuracy(classifier, test_features, test_labels, jnp.ones(len(test_labels))))


def _logits(classifier, features):
  return jnp.dot(features, classifier['kernel'], precision='highest') + classifier['bias']


@jax.jit
def _accuracy(classifier, features, labels, weights):
  right = jnp.argmax(_logits(classifier, features), axis=1) == labels
  return jnp.sum(right * weights) / jnp.maximum(jnp.sum(weights), 1)


@jax.jit
def _fit(classifier, features, labels, weights, penalty):
  """Minimises the loss over the examples of weight 1."""

  def loss(classifier):
    losses = optax.softmax_cross_entropy_with_integer_labels(_logits(classifier, features), labels)
    return jnp.sum(losses * weights) / jnp.sum(weights) + penalty / 2 * jnp.sum(jnp.square(classifier['kernel']))

  optimizer = optax.lbfgs(memory_size=10)
  value_and_grad = optax.value_and_grad_from_state(loss)

  def iterate(carry):
    classifier, state = carry
    value, gradient = value_and_grad(classifier, state=state)
    updates, state = optimizer.update(gradient, state, classifier, value=value, grad=gradient, value_fn=loss)
    return optax.apply_updates(classifier, updates), state

  def unfinished(carry):
    _, state = carry
    gradient = optax.tree.get(state, 'grad')
    iteration = optax.tree.get(state, 'count')
    return (iteration == 0) | ((iteration < _MAX_ITERATIONS) & (optax.tree.norm(gradient) > 1e-4))

  return jax.lax.while_loop(unfinished, iterate, (classifier, optimizer.init(classifier)))[0]
