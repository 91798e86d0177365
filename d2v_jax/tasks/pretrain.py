"""Pretraining: a method on a modality, judged by what its frozen features are worth."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from d2v_jax.data.loader import eval_batches
from d2v_jax.data.sources import open_source
from d2v_jax.errors import InputError
from d2v_jax.evaluate.features import FeatureEvaluator
from d2v_jax.evaluate.retrieval import RetrievalProbe
from d2v_jax.evaluate.senses import word_targets
from d2v_jax.methods.data2vec2 import Data2vec2
from d2v_jax.modalities import Encoded
from d2v_jax.report import pictures, speech_pictures, text_pictures
from d2v_jax.report.writers import read_metrics
from d2v_jax.train.state import TrainState

METHODS = {'data2vec2': Data2vec2}
# Of text on the picture of masks.
_SHOWN_BLOCKS, _SHOWN_TOKENS = 4, 75


def pool(encoded: Encoded, kind: str, extra_tokens: int) -> jax.Array:
  """One float32 vector per example from what the encoder made of it.

  'final': mean of the last block's tokens [B, D]; 'cls': its last extra token [B, D]; 'layers': means of the MLP
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
    self.assets = {'tokenizer': train_source.tokenizer.to_text()} if config.modality == 'text' else {}
    self._evaluator = None
    if config.eval_every and config.modality == 'audio':
      raise InputError(
        'config.eval_every: speech has no labels to judge pretraining by; set config.eval_every=0, and score a fine-tuning '
        '(configs/finetune/ctc_*.py)'
      )
    if config.eval_every:
      test_source = open_source(config, 'test')
      if config.modality == 'text':
        self._evaluator = RetrievalProbe(config, self.objective, test_source, self._untrained)
      else:
        initialise = lambda: self._untrained()[0]['encoder']
        self._evaluator = FeatureEvaluator(config, self._features, train_source, test_source, initialise)

  @staticmethod
  def objective_of(config):
    """What the train step optimises, without data."""
    return METHODS[config.method](config)

  def evaluate(self, state: TrainState, workdir: Path) -> dict[str, float]:
    """What has been learned, beside the untrained network: of images kNN and linear probe, of text the retrieval probe."""
    del workdir
    if self._config.modality == 'text':
      return self._evaluator.run(state.params, state.teacher)
    return self._evaluator.run(self._weights(state))

  def report(self, state: TrainState, workdir: Path) -> None:
    """Draws `report/*.png`: masks, what the network makes of examples, and curves."""
    folder = Path(workdir) / 'report'
    folder.mkdir(exist_ok=True)
    {'image': self._draw_images, 'audio': self._draw_speech, 'text': self._draw_text}[self._config.modality](folder, state)
    pictures.curves(folder / 'curves.png', read_metrics(workdir))

  def _draw_images(self, folder, state):
    trained, untrained = self._weights(state), self._untrained()[0]['encoder']
    (batch,) = self._shown(8)
    images = batch['image'][batch['valid']]
    grid = self.objective.modality.grid(images.shape[1:])
    maps = [np.asarray(self._tokens(params, {'image': images})) for params in (trained, untrained)]
    pictures.masks(folder / 'masks.png', images, self._masks(len(images), grid), grid)
    pictures.feature_maps(folder / 'feature_maps.png', images, maps[0], grid, maps[1])
    if self._evaluator is not None:
      pictures.neighbours(folder / 'neighbours.png', **self._evaluator.neighbours())

  def _draw_speech(self, folder, state):
    trained, untrained = self._weights(state), self._untrained()[0]['encoder']
    modality = self.objective.modality
    waves, masks, maps = [], [], ([], [])
    for batch in self._shown(4):
      inputs = {name: batch[name] for name in ('audio', 'length')}
      found = [np.asarray(self._tokens(params, inputs)) for params in (trained, untrained)]
      for row in np.flatnonzero(batch['valid']):
        waves.append(batch['audio'][row, : batch['length'][row]])
        grid = modality.grid(waves[-1].shape)
        masks.extend(self._masks(1, grid))
        for features, tokens in zip(maps, found):
          features.append(tokens[row, : grid[0]])
    speech_pictures.waveform_masks(folder / 'masks.png', waves, masks)
    speech_pictures.feature_maps(folder / 'feature_maps.png', waves, *maps)

  def _draw_text(self, folder, state):
    trained = state.params, state.teacher
    probe = self._evaluator or RetrievalProbe(self._config, self.objective, self._source, self._untrained)
    show = self._source.tokenizer.token
    rows = []
    for tokens, mask, guesses in zip(*(found[:, :_SHOWN_TOKENS] for found in probe.examples(*trained, _SHOWN_BLOCKS))):
      guesses = [show(guess) if guess >= 0 else None for guess in guesses]
      rows.append(([show(token) for token in tokens], mask.tolist(), guesses))
    text_pictures.masked_text(folder / 'masks.png', rows)
    if 'trained' in probe.ranks:
      controls = {name: ranks for name, ranks in probe.ranks.items() if name != 'trained'}
      text_pictures.retrieval(folder / 'retrieval.png', probe.ranks['trained'], controls)
    if (senses := word_targets(self.objective, *trained, self._source.tokenizer)) is not None:
      text_pictures.senses(folder / 'senses.png', **senses)

  def _masks(self, examples, grid):
    masks = self.objective.modality.masks(grid)
    draw = jax.vmap(lambda key: masks.sample(key, 4))
    return np.asarray(draw(jax.random.split(jax.random.key(0), examples)))

  def _weights(self, state):
    tree = state.teacher if self._config.eval.weights == 'teacher' else state.params
    return tree['encoder']

  def _untrained(self):
    """(params, teacher) of the network at the start."""
    params = jax.jit(self.objective.init)(jax.random.key(self._config.seed))
    return params, self.objective.init_teacher(params)

  def _shown(self, count):
    """Batches that hold a few training examples, spread evenly over the source."""
    indices = np.linspace(0, len(self._source) - 1, min(count, len(self._source))).astype(int)
    return list(eval_batches(self._config, self._source, indices, len(indices)))

  @functools.partial(jax.jit, static_argnums=0)
  def _encode(self, params, batch) -> Encoded:
    modality = self.objective.modality
    raw = batch[modality.key]
    tokens = math.prod(modality.grid(raw.shape[1:]))
    inputs, padding = modality.prepare(raw), modality.padding(batch, tokens)
    return self.objective.encoder.apply({'params': params}, inputs, padding)

  @functools.partial(jax.jit, static_argnums=0)
  def _features(self, params, images):
    return pool(self._encode(params, {'image': images}), self._config.eval.features, self._config.model.extra_tokens)

  @functools.partial(jax.jit, static_argnums=0)
  def _tokens(self, params, batch):
    return self._encode(params, batch).output[:, self._config.model.extra_tokens :].astype(jnp.float32)
