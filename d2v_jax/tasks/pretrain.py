"""Pretraining: a method on a modality, judged by what its frozen features are worth."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from d2v_jax.data.loader import eval_batches
from d2v_jax.data.sources import open_source
from d2v_jax.evaluate.features import FeatureEvaluator
from d2v_jax.methods.data2vec2 import Data2vec2
from d2v_jax.modalities import Encoded
from d2v_jax.report import pictures
from d2v_jax.report.writers import read_metrics
from d2v_jax.train.state import TrainState

METHODS = {'data2vec2': Data2vec2}
# Images on the panels of the report.
SHOWN = 8


def pool(encoded: Encoded, kind: str, extra_tokens: int) -> jax.Array:
  """One float32 vector per example from what the encoder made of it.

  'final': mean of the last block's patch tokens [B, D]; 'cls': its last extra token [B, D]; 'layers': means of the MLP
  outputs of all main blocks side by side [B, L * D].
  """
  if kind == 'cls':
    return encoded.output[:, extra_tokens - 1].astype(jnp.float32)
  layers = encoded.mlps if kind == 'layers' else [encoded.output]
  return jnp.concatenate([layer[:, extra_tokens:].astype(jnp.float32).mean(1) for layer in layers], axis=-1)


class Pretrain:
  """The task: `objective` is what the train step optimises; `evaluate` and `report` are for the loop."""

  def __init__(self, config, train_source):
    """Builds the method; with config.eval_every also opens the evaluation data, so that what is missing shows at once."""
    self._config = config
    self._source = train_source
    self.objective = self.objective_of(config)
    self._evaluator = None
    if config.eval_every:
      test_source = open_source(config, 'test')
      self._evaluator = FeatureEvaluator(config, self._features, train_source, test_source, self._untrained)

  @staticmethod
  def objective_of(config):
    """What the train step optimises, without data."""
    return METHODS[config.method](config)

  def evaluate(self, state: TrainState) -> dict[str, float]:
    """Scores of frozen features by kNN and linear probe, beside raw pixels and the untrained network."""
    return self._evaluator.run(self._weights(state))

  def report(self, state: TrainState, workdir: Path) -> None:
    """Draws `report/*.png`: masks, feature maps, nearest neighbours and curves."""
    folder = Path(workdir) / 'report'
    folder.mkdir(exist_ok=True)
    images = self._shown_images()
    modality = self.objective.modality
    draw = jax.jit(modality.masks.sample, static_argnums=1)
    masks = np.asarray(jax.vmap(lambda key: draw(key, 4))(jax.random.split(jax.random.key(0), len(images))))
    pictures.masks(folder / 'masks.png', images, masks, modality.grid)
    trained, untrained = (np.asarray(self._patches(params, images)) for params in (self._weights(state), self._untrained()))
    pictures.feature_maps(folder / 'feature_maps.png', images, trained, modality.grid, untrained)
    if self._evaluator is not None:
      pictures.neighbours(folder / 'neighbours.png', **self._evaluator.neighbours())
    pictures.curves(folder / 'curves.png', read_metrics(workdir))

  def _weights(self, state):
    tree = state.teacher if self._config.eval.weights == 'teacher' else state.params
    return tree['encoder']

  def _untrained(self):
    return jax.jit(self.objective.init)(jax.random.key(self._config.seed))['encoder']

  def _shown_images(self):
    indices = np.linspace(0, len(self._source) - 1, min(SHOWN, len(self._source))).astype(int)
    batches = list(eval_batches(self._config, self._source, indices, len(indices)))
    return batches[0]['image'][batches[0]['valid']]

  @functools.partial(jax.jit, static_argnums=0)
  def _encode(self, params, images) -> Encoded:
    return self.objective.encoder.apply({'params': params}, self.objective.modality.prepare({'image': images}))

  @functools.partial(jax.jit, static_argnums=0)
  def _features(self, params, images):
    return pool(self._encode(params, images), self._config.eval.features, self._config.model.extra_tokens)

  @functools.partial(jax.jit, static_argnums=0)
  def _patches(self, params, images):
    return self._encode(params, images).output[:, self._config.model.extra_tokens :].astype(jnp.float32)
