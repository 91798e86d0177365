"""CTC decoding against the sum over all alignments, on tiny problems, and what a language model changes."""

import itertools
import time

import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.data.letters import BLANK, SPECIAL, VOCABULARY, decode, encode
from d2v_jax.evaluate.ctc_decoding import beam_search, greedy

ID = {letter: id_ for id_, letter in enumerate(VOCABULARY)}


def log_softmax(logits):
  return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def frames_of(probabilities):
  """Log-probabilities [T, V] of dicts from letter ('-' is blank) to probability."""
  probs = np.zeros((len(probabilities), len(VOCABULARY)))
  for row, frame in zip(probs, probabilities):
    for letter, probability in frame.items():
      row[ID.get(letter, BLANK)] = probability
  with np.errstate(divide='ignore'):
    return np.log(probs)


def random_frames(seed, frames, letters, scale=1.0):
  ids = [BLANK, *(ID[letter] for letter in letters)]
  log_probs = np.full((frames, len(VOCABULARY)), -np.inf)
  log_probs[:, ids] = log_softmax(scale * np.random.default_rng(seed).normal(size=(frames, len(ids))))
  return log_probs


def speech(text, frames=120, seed=0):
  """What a sure recogniser gives for the text: mostly blank, one or two frames a letter, a little noise."""
  rng = np.random.default_rng(seed)
  ids = encode(text)
  places = 3 * np.sort(rng.choice(frames // 3, len(ids), replace=False))
  logits = rng.normal(size=(frames, len(VOCABULARY)))
  logits[:, BLANK] += 14
  for place, id_ in zip(places, ids):
    logits[place : place + rng.integers(1, 3), id_] += 28
  return log_softmax(logits)


class WordModel:
  """Log-probabilities by (word before, word)."""

  def __init__(self, scores, otherwise=-5.0):
    self.scores, self.otherwise = scores, otherwise

  def score(self, words_before, word):
    return self.scores.get((words_before[-1], word), self.otherwise)


def all_alignments(log_probs, model=None, lm_weight=0.0, word_score=0.0):
  """Scores of all texts, by adding up every alignment."""
  ids = np.flatnonzero(np.isfinite(log_probs).any(axis=0))
  masses = {}
  for alignment in itertools.product(ids.tolist(), repeat=len(log_probs)):
    text = decode([id_ for id_, _ in itertools.groupby(alignment) if id_ != BLANK])
    masses[text] = np.logaddexp(masses.get(text, -np.inf), log_probs[np.arange(len(alignment)), alignment].sum())
  for text in masses:
    words = text.split()
    masses[text] += word_score * len(words)
    if model is not None:
      sentence = ['<s>', *words, '</s>']
      masses[text] += lm_weight * sum(model.score(tuple(sentence[:n]), sentence[n]) for n in range(1, len(sentence)))
  return sorted(masses.items(), key=lambda item: -item[1])


def assert_same(results, expected):
  assert [text for text, _ in results] == [text for text, _ in expected]
  assert [score for _, score in results] == pytest.approx([score for _, score in expected], abs=1e-9)


@pytest.mark.parametrize('frames, letters', [(1, 'AB|'), (4, 'AB|'), (6, 'A|'), (6, 'AB'), (5, "E'|")])
@pytest.mark.parametrize('seed', range(3))
def test_wide_beam_equals_the_sum_over_all_alignments(frames, letters, seed):
  log_probs = random_frames(seed, frames, letters)
  assert_same(beam_search(log_probs, 10_000), all_alignments(log_probs))


@pytest.mark.parametrize('seed', range(3))
def test_wide_beam_with_a_language_model(seed):
  log_probs = random_frames(seed, 5, 'AB|')
  rng = np.random.default_rng(seed)
  words = ['<s>', '</s>', 'A', 'B', 'AB', 'BA']
  model = WordModel({pair: rng.uniform(-4, 0) for pair in itertools.product(words, repeat=2)})
  settings = {'lm_weight': 0.7, 'word_score': -0.3}
  expected = all_alignments(log_probs, model, **settings)
  assert_same(beam_search(log_probs, 10_000, model, **settings), expected)


def test_alignments_add_up():
  # Each frame for itself says blank; of the two together, A has three alignments with 0.64 in all.
  log_probs = frames_of([{'-': 0.6, 'A': 0.4}] * 2)
  assert decode(greedy(log_probs)) == ''
  (best, score), (second, _) = beam_search(log_probs, 2)
  assert (best, second) == ('A', '')
  assert score == pytest.approx(np.log(0.64))


def test_repeated_letters_need_a_blank_between():
  assert beam_search(frames_of([{'A': 1}, {'A': 1}, {'-': 1}, {'B': 1}, {'-': 1}, {'B': 1}]), 5) == [('ABB', 0.0)]


@pytest.mark.parametrize('width', [1, 50])
@pytest.mark.parametrize('seed', range(3))
def test_equals_greedy_on_sure_frames(width, seed):
  text = 'A GOOD BOOK WILL DO WELL'
  log_probs = speech(text, seed=seed)
  assert decode(greedy(log_probs)) == text
  assert beam_search(log_probs, width)[0][0] == text


def test_a_language_model_tells_homophones_apart():
  # Frames prefer SEA a little; after I, the model prefers SEE by far, and after THE, SEA.
  sea = [{'S': 1}, {'E': 1}, {'-': 0.9, 'E': 0.1}, {'A': 0.55, 'E': 0.45}, {'|': 1}]
  model = WordModel({('I', 'SEE'): -1, ('I', 'SEA'): -6, ('THE', 'SEA'): -1, ('THE', 'SEE'): -6})
  i_see = frames_of([{'I': 1}, {'|': 1}, *sea])
  the_sea = frames_of([{'T': 1}, {'H': 1}, {'E': 1}, {'|': 1}, *sea])
  assert beam_search(i_see, 20)[0][0] == 'I SEA'
  assert beam_search(i_see, 20, model, lm_weight=0.0)[0][0] == 'I SEA'
  assert beam_search(i_see, 20, model, lm_weight=1.0)[0][0] == 'I SEE'
  assert beam_search(the_sea, 20, model, lm_weight=1.0)[0][0] == 'THE SEA'
  # The last word counts too where no boundary follows it, and so does the end of the sentence.
  assert beam_search(i_see[:-1], 20, model, lm_weight=1.0)[0][0] == 'I SEE'
  ending = WordModel({('SEE', '</s>'): -0.1, ('SEA', '</s>'): -3})
  assert beam_search(i_see, 20, ending, lm_weight=1.0)[0][0] == 'I SEE'


def test_word_score_splits_and_joins_words():
  log_probs = frames_of([{'A': 1}, {'|': 0.5, '-': 0.5}, {'N': 1}])
  assert beam_search(log_probs, 10, word_score=1.0) == [
    ('A N', pytest.approx(np.log(0.5) + 2)),
    ('AN', pytest.approx(np.log(0.5) + 1)),
  ]
  assert beam_search(log_probs, 10, word_score=-1.0)[0][0] == 'AN'


def test_special_ids_are_never_chosen():
  log_probs = log_softmax(np.random.default_rng(0).normal(size=(30, len(VOCABULARY))))
  log_probs[:, SPECIAL] = 0
  assert not set(greedy(log_probs).tolist()) & {BLANK, *SPECIAL}
  assert len(greedy(log_probs)) > 10
  for text, _ in beam_search(log_probs, 20):
    assert set(text) <= {' ', *VOCABULARY[5:]}
  # The ids beside them count as though these were not there.
  others = log_probs.copy()
  others[:, SPECIAL] = -np.inf
  assert beam_search(log_probs, 20) == beam_search(others, 20)


def test_deterministic_with_ties():
  log_probs = np.full((12, len(VOCABULARY)), -np.log(len(VOCABULARY)))
  results = beam_search(log_probs, 30)
  assert len({text for text, _ in results}) == len(results) <= 30
  assert all(beam_search(log_probs, 30) == results for _ in range(3))
  assert results == sorted(results, key=lambda result: (-result[1], result[0]))


def test_a_narrow_beam_loses_alignments_but_counts_none_twice():
  for seed in range(10):  # beginnings leave the beam and come back
    log_probs = random_frames(seed, 8, 'AB', scale=2.0)
    exact = dict(all_alignments(log_probs))
    for width in range(1, 8):
      results = beam_search(log_probs, width)
      assert len(results) <= width
      assert all(score <= exact[text] + 1e-9 for text, score in results)


def test_length_of_padded_utterances():
  log_probs = speech('TEN CATS', frames=60)
  padded = np.concatenate([log_probs, np.full((20, len(VOCABULARY)), np.nan)])
  np.testing.assert_array_equal(greedy(padded, 60), greedy(log_probs))
  assert greedy(padded, np.int32(60)).dtype == np.int32
  assert len(greedy(padded, 0)) == 0
  assert len(greedy(log_probs, 30)) < len(greedy(log_probs))
  for length in (-1, 81):
    with pytest.raises(ValueError, match='length'):
      greedy(padded, length)
  with pytest.raises(ValueError, match='NaN'):
    greedy(padded)
  with pytest.raises(ValueError, match='NaN'):
    beam_search(padded, 5)


def test_no_frames():
  nothing = np.zeros((0, len(VOCABULARY)), np.float32)
  assert greedy(nothing).tolist() == []
  assert beam_search(nothing, 5) == [('', 0.0)]
  assert beam_search(nothing, 5, WordModel({('<s>', '</s>'): -2.0}), 0.5, 1.0) == [('', -1.0)]


def test_takes_what_a_model_gives():
  log_probs = speech('TEN CATS')
  assert decode(greedy(jnp.asarray(log_probs, jnp.bfloat16))) == 'TEN CATS'
  assert beam_search(jnp.asarray(log_probs, jnp.float32), 5)[0][0] == 'TEN CATS'


def test_wrong_arguments():
  with pytest.raises(ValueError, match='shape'):
    greedy(np.zeros((5, 31)))
  with pytest.raises(ValueError, match='shape'):
    beam_search(np.zeros((1, 5, 32)), 5)
  with pytest.raises(ValueError, match='width'):
    beam_search(np.zeros((5, 32)), 0)


def test_fast_enough_for_every_utterance():
  log_probs = log_softmax(2 * np.random.default_rng(0).normal(size=(500, len(VOCABULARY))))
  start = time.perf_counter()
  beam_search(log_probs, 50)
  assert time.perf_counter() - start < 2  # a tenth of a second is usual
