"""What pretraining on text is worth without labels: do predictions find the right target among many?

At every masked place of held-out text the student predicts what the teacher makes of the token there in its context. The
prediction is compared with the targets of all masked places of a batch (`docs/algorithm.md`, section 26): is the nearest one
that of this very place, or at least of the same token? Deterministic: masks follow from the number of the block.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from d2v_jax.data.loader import eval_batches
from d2v_jax.methods.randomness import StepKeys
from d2v_jax.report.progress import reported

_SEED = 20240229  # of the masks, whatever the seed of the run


class RetrievalProbe:
  """Scores a text model on held-out blocks."""

  def __init__(self, config, objective, source, initialise):
    """Prepares the evaluation; nothing is read yet.

    Args:
      config: the whole config; `eval` is read here.
      objective: `Data2vec2` of the config.
      source: held-out blocks (`d2v_jax.data.prepared.TextBlocks`).
      initialise: function () -> (params, teacher) of the untrained network, called once if `eval.controls` is set.
    """
    self._config, self._objective, self._source, self._initialise = config, objective, source, initialise
    count = min(config.eval.max_test or len(source), len(source))
    self._indices = np.linspace(0, len(source) - 1, count).astype(int)
    self._controls = None if config.eval.controls else {}
    self.ranks = {}  # of the last run: 'trained' and 'untrained' -> int [n], the targets nearer than the right one

  def run(self, params, teacher) -> dict[str, float]:
    """Returns the scores, all fractions of the masked places.

    'eval/token_retrieval/accuracy': the nearest target is of a place with the same token;
    'eval/position_retrieval/accuracy': it is that of this very place. With controls both also under '.../untrained',
    computed once. 'eval/token_retrieval/frequency' is the share of the most frequent token: what guessing it would score.
    """
    if self._controls is None:
      untrained = self._score('untrained', *self._initialise())
      self._controls = {f'eval/{score}_retrieval/untrained': untrained[score] for score in ('token', 'position')}
    scores = self._score('trained', params, teacher)
    return {
      'eval/token_retrieval/accuracy': scores['token'],
      'eval/token_retrieval/frequency': scores['frequency'],
      'eval/position_retrieval/accuracy': scores['position'],
      **self._controls,
    }

  def examples(self, params, teacher, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the first `count` blocks: tokens int32 [count, T]; mask bool [count, T]; guesses int [count, T], at masked places
    the token whose target is nearest, elsewhere -1."""
    batch = next(eval_batches(self._config, self._source, self._indices[:count], count))
    tokens, kept = batch['tokens'], batch['valid']
    mask, _, nearest = self._retrieve(params, teacher, {'tokens': tokens[kept], 'index': batch['index'][kept]})
    guesses = np.full(mask.shape, -1)
    guesses[np.asarray(mask)] = np.asarray(nearest)
    return tokens[kept], np.asarray(mask), guesses

  def _score(self, name, params, teacher):
    ranks, hits, right = [], 0, []
    rows = self._config.eval.batch_size
    batches = eval_batches(self._config, self._source, self._indices, rows)
    for batch in reported(batches, -(-len(self._indices) // rows), 'evaluation, batches'):
      kept = batch['valid']  # unreadable or padding rows are left out: the last batch may be smaller than the others
      tokens = batch['tokens'][kept]
      mask, found, nearest = self._retrieve(params, teacher, {'tokens': tokens, 'index': batch['index'][kept]})
      expected = tokens[np.asarray(mask)]
      ranks.append(np.asarray(found))
      hits += int((np.asarray(nearest) == expected).sum())
      right.append(expected)
    self.ranks[name], right = np.concatenate(ranks), np.concatenate(right)
    return {
      'token': hits / len(right),
      'position': float((self.ranks[name] == 0).mean()),
      'frequency': float(np.unique(right, return_counts=True)[1].max() / len(right)),
    }

  @functools.partial(jax.jit, static_argnums=0)
  def _retrieve(self, params, teacher, batch):
    """Mask bool [B, T]; of its n masked places, in order: rank of the right target int [n], token of the nearest int [n]."""
    tokens = batch['tokens']
    keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(_SEED), index))(batch['index'])
    views = self._objective.draw(StepKeys(jnp.zeros((), jnp.int32), keys[0], keys), tokens.shape[1:], views=1)
    forward = self._objective.forward(params, teacher, {'tokens': tokens}, views.replace(randomness=None))
    mask = views.where.mask[:, 0]
    masked = jnp.nonzero(mask, size=mask.shape[0] * (mask.shape[1] - views.where.positions.shape[-1]))
    predictions, targets = (x[masked].astype(jnp.float32) for x in (forward.predictions[:, 0], forward.targets))
    # What all targets have in common says nothing about which is which.
    centre = targets.mean(0)
    unit = lambda x: (x - centre) / jnp.linalg.norm(x - centre, axis=-1, keepdims=True)
    likeness = unit(predictions) @ unit(targets).T
    # Ties and what is not finite count against the prediction: where nothing tells targets apart, none is found.
    ranks = (~(likeness < jnp.diagonal(likeness)[:, None])).sum(1) - 1
    return mask, ranks, tokens[masked][likeness.argmax(1)]
