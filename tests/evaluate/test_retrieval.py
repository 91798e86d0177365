"""The retrieval probe: right predictions score 1, ranks by hand, and the same blocks give the same scores."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.evaluate.retrieval import RetrievalProbe
from d2v_jax.methods.data2vec2 import Data2vec2
from d2v_jax.modalities.masking import visible
from tests.train.tiny import random_params, text_config

TOKENS, WIDTH, HIDDEN = 24, 16, 12
POSITION, UNTRAINED_POSITION = 'eval/position_retrieval/accuracy', 'eval/position_retrieval/untrained'
TOKEN, UNTRAINED_TOKEN = 'eval/token_retrieval/accuracy', 'eval/token_retrieval/untrained'
FREQUENCY = 'eval/token_retrieval/frequency'


class Blocks:
  """Blocks of known tokens, of which some cannot be read."""

  classes = ()

  def __init__(self, tokens, unreadable=()):
    self.tokens, self.unreadable = np.asarray(tokens, np.int32), unreadable

  def __len__(self):
    return len(self.tokens)

  def name(self, index):
    return f'block {index}'

  def read(self, index):
    if index in self.unreadable:
      raise ValueError('damaged')
    return {'tokens': self.tokens[index]}


def random_blocks(count=8, kinds=5, unreadable=()):
  return Blocks(np.random.default_rng(0).integers(10, 10 + kinds, (count, TOKENS)), unreadable)


class HandMade:
  """An objective of given masks, predictions and targets: the latter are functions of tokens [B, T] and parameters."""

  def __init__(self, predictions, targets, masks=None):
    self._predictions, self._targets, self._masks = predictions, targets, masks

  def draw(self, keys, grid, views):
    assert views == 1
    if self._masks is not None:
      return Drawn(visible(jnp.asarray(self._masks)[:, None], int((~self._masks[0]).sum())))
    scores = jax.vmap(lambda key: jax.random.uniform(key, (1, *grid)))(keys.rows)
    return Drawn(visible(scores.argsort(-1).argsort(-1) < HIDDEN, grid[0] - HIDDEN))

  def forward(self, params, teacher, batch, views):
    assert views.randomness is None, 'the probe must not drop anything'
    tokens = batch['tokens']
    predictions, targets = self._predictions(tokens, params), self._targets(tokens, teacher)
    return types.SimpleNamespace(predictions=predictions[:, None], targets=targets)


class Drawn:
  def __init__(self, where, randomness='of dropout'):
    self.where, self.randomness = where, randomness

  def replace(self, randomness):
    return Drawn(self.where, randomness)


def probe(objective, source, initialise=None, **evaluation):
  config = text_config()
  config.data.block_tokens = source.tokens.shape[1]
  config.eval.update(controls=False, **evaluation)
  return RetrievalProbe(config, objective, source, initialise)


TABLES = np.random.default_rng(1).normal(size=(2, 997, WIDTH)).astype(np.float32)


def by_place(tokens, params=None):
  """A target [B, T, D] that tells every token in every context from all others."""
  del params
  weighted = jnp.cumsum(tokens * jnp.arange(1, tokens.shape[1] + 1), 1)
  context = 31 * weighted + 17 * weighted[:, -1:] + tokens
  return jnp.asarray(TABLES[0])[context % 997] + jnp.asarray(TABLES[1])[context % 991]


def by_token(tokens, params=None):
  """A target that is the same wherever a token stands."""
  del params
  return jnp.asarray(TABLES[0])[tokens]


def noisy(share):
  """Predictions that hold only a share of the target."""
  return lambda tokens, params: share * by_place(tokens) + by_place(tokens + 7)


# --- scores


def test_perfect_predictions_score_one():
  found = probe(HandMade(by_place, by_place), random_blocks()).run(0.0, 0.0)
  assert found[POSITION] == found[TOKEN] == 1
  assert found.keys() == {POSITION, TOKEN, FREQUENCY}


def test_what_all_targets_share_does_not_matter():
  """Nor does how long predictions are."""
  shift = lambda function, scale: lambda tokens, params: 50 + scale * function(tokens, params)
  found = probe(HandMade(shift(noisy(0.5), 3), shift(by_place, 3)), random_blocks()).run(0.0, 0.0)
  expected = probe(HandMade(noisy(0.5), by_place), random_blocks()).run(0.0, 0.0)
  assert 0.2 < expected[POSITION] < 0.8
  np.testing.assert_allclose(list(found.values()), list(expected.values()), atol=0.02)


def test_the_right_token_at_another_place_counts_as_the_token_only():
  blocks = random_blocks(kinds=3)
  predictions = lambda tokens, params: by_token(tokens) + 1e-3 * by_place(tokens + 1)
  targets = lambda tokens, params: by_token(tokens) + 1e-3 * by_place(tokens)
  found = probe(HandMade(predictions, targets), blocks, batch_size=8).run(0.0, 0.0)
  assert found[TOKEN] == 1 and found[POSITION] < 0.3


def test_ranks_by_hand():
  """Five masked places, their targets on a circle around the origin, which is their mean."""
  degrees = lambda *angles: np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], -1).astype(np.float32)
  targets = np.zeros((1, 8, 2), np.float32)
  predictions = np.full((1, 8, 2), 7, np.float32)
  mask = np.zeros((1, 8), bool)
  mask[0, [1, 2, 4, 6, 7]] = True
  targets[mask] = degrees(0, 72, 144, 216, 288)
  # The target of the place is the nearest; the second nearest twice; the fourth; the nearest again, however long it is.
  predictions[mask] = degrees(10, 30, 80, 350, 280) * np.array([1, 1, 1, 1, 10])[:, None]
  objective = HandMade(lambda *_: jnp.asarray(predictions), lambda *_: jnp.asarray(targets), mask)
  # Places 1 and 7 hold the same token.
  found = probe(objective, Blocks([[9, 20, 21, 9, 22, 9, 23, 20]]), batch_size=1)
  scores = found.run(0.0, 0.0)
  np.testing.assert_array_equal(found.ranks['trained'], [0, 1, 1, 3, 0])
  np.testing.assert_allclose(scores[POSITION], 2 / 5)
  np.testing.assert_allclose(scores[FREQUENCY], 2 / 5)
  tokens, found_mask, guesses = found.examples(0.0, 0.0, 1)
  np.testing.assert_array_equal(tokens, [[9, 20, 21, 9, 22, 9, 23, 20]])
  np.testing.assert_array_equal(found_mask, mask)
  # 10 and 30 degrees are nearest to 0, 80 to 72, 350 to 0, 280 to 288.
  np.testing.assert_array_equal(guesses, [[-1, 20, 20, -1, 21, -1, 20, 20]])
  np.testing.assert_allclose(scores[TOKEN], 2 / 5)


def test_ranks_agree_with_a_plain_count():
  """Random predictions in the direction of their targets, against NumPy; batches are candidates of their own."""
  blocks = random_blocks(6)
  found = probe(HandMade(noisy(0.5), by_place), blocks, batch_size=3)
  found.run(0.0, 0.0)
  _, masks, _ = found.examples(0.0, 0.0, 6)
  ranks = []
  for rows in (slice(3), slice(3, 6)):
    tokens, mask = jnp.asarray(blocks.tokens[rows]), masks[rows]
    x, y = (np.asarray(function(tokens, None), np.float64)[mask] for function in (noisy(0.5), by_place))
    x, y = x - y.mean(0), y - y.mean(0)
    likeness = (x / np.linalg.norm(x, axis=1)[:, None]) @ (y / np.linalg.norm(y, axis=1)[:, None]).T
    ranks.append([(row > row[place]).sum() for place, row in enumerate(likeness)])
  assert 0 < np.mean(np.concatenate(ranks) == 0) < 1
  np.testing.assert_array_equal(found.ranks['trained'], np.concatenate(ranks))


def test_the_frequency_control_is_the_share_of_the_commonest_token():
  blocks = random_blocks()
  blocks.tokens[:, ::2] = 99
  found = probe(HandMade(by_token, by_token), blocks, batch_size=8)
  scores = found.run(0.0, 0.0)
  _, mask, _ = found.examples(0.0, 0.0, 8)
  np.testing.assert_allclose(scores[FREQUENCY], (blocks.tokens[mask] == 99).mean())
  assert 0.4 < scores[FREQUENCY] < 0.6


@pytest.mark.parametrize('collapsed', [1.0, 0.3, np.nan], ids=str)
def test_what_is_everywhere_the_same_finds_nothing(collapsed):
  """A teacher that tells nothing apart, or a network that is broken, must not look perfect."""
  same = lambda tokens, params: jnp.full((*tokens.shape, WIDTH), collapsed)
  for predictions, targets in ((same, same), (by_place, same), (same, by_place)):
    found = probe(HandMade(predictions, targets), random_blocks(), batch_size=8).run(0.0, 0.0)
    assert found[POSITION] <= 0.05 and found[TOKEN] <= 0.5, found


# --- what they are of


def test_masks_follow_from_the_number_of_the_block_alone():
  blocks = random_blocks()
  _, masks, _ = probe(HandMade(by_place, by_place), blocks).examples(0.0, 0.0, 8)
  assert len(np.unique(masks, axis=0)) == 8 and (masks.sum(1) == HIDDEN).all()
  tokens, some, _ = probe(HandMade(by_place, by_place), blocks, max_test=3).examples(0.0, 0.0, 3)
  np.testing.assert_array_equal(tokens, blocks.tokens[[0, 3, 7]])
  np.testing.assert_array_equal(some, masks[[0, 3, 7]])
  config = text_config()
  config.seed = 77
  _, again, _ = RetrievalProbe(config, HandMade(by_place, by_place), blocks, None).examples(0.0, 0.0, 8)
  np.testing.assert_array_equal(again, masks)


def test_rows_of_a_batch_matter_only_as_candidates():
  """Room for more blocks than there are changes nothing; smaller batches have fewer wrong targets to choose from."""
  run = lambda rows: probe(HandMade(noisy(0.3), by_place), random_blocks(), batch_size=rows).run(0.0, 0.0)
  expected = run(8)
  assert run(8) == run(13) == expected
  smaller = run(2)
  assert smaller[POSITION] > expected[POSITION] > 0
  assert smaller[FREQUENCY] == expected[FREQUENCY]


def test_what_cannot_be_read_is_no_candidate():
  found = probe(HandMade(noisy(0.3), by_place), random_blocks(unreadable=(3, 7)), batch_size=8)
  found.run(0.0, 0.0)
  assert len(found.ranks['trained']) == 6 * HIDDEN and found.ranks['trained'].max() < 6 * HIDDEN


@pytest.mark.parametrize(('most', 'expected'), [(0, range(8)), (3, (0, 3, 7)), (50, range(8)), (1, (0,))])
def test_some_blocks_stand_for_all(most, expected):
  class Watched(Blocks):
    def read(self, index):
      seen.append(int(index))
      return super().read(index)

  seen = []
  probe(HandMade(by_place, by_place), Watched(random_blocks().tokens), max_test=most).run(0.0, 0.0)
  assert sorted(seen) == list(expected)


def test_the_untrained_network_is_scored_once_as_a_control():
  calls = []

  def initialise():
    calls.append(1)
    return 0.0, 0.0

  # The untrained network has parameters 0: its predictions are of another place.
  predictions = lambda tokens, params: jnp.where(params > 0, by_place(tokens), by_place(tokens + 7))
  config = text_config()
  assert config.eval.controls
  found = RetrievalProbe(config, HandMade(predictions, by_place), random_blocks(), initialise)
  assert not calls
  first = found.run(1.0, 0.0)
  assert first.keys() == {POSITION, TOKEN, FREQUENCY, UNTRAINED_POSITION, UNTRAINED_TOKEN}
  assert first[POSITION] == 1 and first[UNTRAINED_POSITION] < 0.2
  assert found.ranks['trained'].max() == 0 and found.ranks['untrained'].mean() > 5
  other = found.run(0.0, 0.0)
  assert other[POSITION] == other[UNTRAINED_POSITION] and len(calls) == 1


def test_a_model_has_the_same_scores_every_time():
  config = text_config()
  config.model.depth = config.data2vec2.average_top_k = 1
  config.model.dropout.update(dict.fromkeys(config.model.dropout, 0.5))
  objective = Data2vec2(config)
  params = jax.tree.map(jnp.asarray, random_params(objective, 0))
  teacher = objective.init_teacher(params)
  found = RetrievalProbe(config, objective, random_blocks(4, 200), lambda: (params, teacher))
  scores = found.run(params, teacher)
  assert all(0 <= value <= 1 for value in scores.values()) and found.run(params, teacher) == scores
  assert (scores[POSITION], scores[TOKEN]) == (scores[UNTRAINED_POSITION], scores[UNTRAINED_TOKEN])
  # The targets of other weights are others.
  found.run(params, jax.tree.map(lambda leaf: leaf[..., ::-1], teacher))
  assert (found.ranks['trained'] != found.ranks['untrained']).mean() > 0.5
