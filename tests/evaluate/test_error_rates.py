"""Edit counts by hand and by brute force, corpus rates against jiwer, and the table of hypotheses."""

import functools
import time

import numpy as np
import pytest

from d2v_jax.evaluate.error_rates import edit_counts, error_rate, write_hypotheses


@pytest.mark.parametrize(
  'reference, hypothesis, counts',
  [
    ('a b c', 'a b c', (0, 0, 0)),
    ('a b c', 'a x c', (1, 0, 0)),
    ('a b c', 'a c', (0, 1, 0)),
    ('a c', 'a b c', (0, 0, 1)),
    ('a b c', '', (0, 3, 0)),
    ('', 'a b', (0, 0, 2)),
    ('', '', (0, 0, 0)),
    ('a b', 'b a', (2, 0, 0)),  # one deletion and one insertion cost as much
    ('a b c d e', 'x b d e f g', (1, 1, 2)),
    ('the cat sat on the mat', 'cat sat on a the mat mat', (0, 1, 2)),
  ],
)
def test_by_hand(reference, hypothesis, counts):
  assert edit_counts(reference.split(), hypothesis.split()) == counts


def brute_force(reference, hypothesis):
  """The cheapest of all ways, of these the one with the most substitutions."""

  @functools.cache
  def best(i, j):
    if i == len(reference) or j == len(hypothesis):
      deletions, insertions = len(reference) - i, len(hypothesis) - j
      return deletions + insertions, 0, deletions, insertions
    ways = []
    for more_i, more_j in ((1, 1), (1, 0), (0, 1)):
      edits, s, d, n = best(i + more_i, j + more_j)
      kind = (more_i, more_j)
      substituted = kind == (1, 1) and reference[i] != hypothesis[j]
      changed = kind != (1, 1) or substituted
      ways.append((edits + changed, s + substituted, d + (kind == (1, 0)), n + (kind == (0, 1))))
    return min(ways, key=lambda way: (way[0], -way[1]))

  return best(0, 0)[1:]


def test_equals_brute_force():
  rng = np.random.default_rng(0)
  for _ in range(300):
    reference, hypothesis = (tuple(rng.integers(3, size=rng.integers(9)).tolist()) for _ in range(2))
    assert edit_counts(reference, hypothesis) == brute_force(reference, hypothesis)


def texts(rng, count):
  words = ['a', 'an', 'and', 'ant', 'the', "then's", 'x']
  return [' '.join(rng.choice(words, size=rng.integers(12))) for _ in range(count)]


def spoilt(rng, text):
  return ' '.join(word for word in text.split() for word in ([], [word], [word], [word], ['an', word])[rng.integers(5)])


def random_corpus(seed):
  rng = np.random.default_rng(seed)
  references = texts(rng, 40)
  return references, [spoilt(rng, text) if rng.random() < 0.7 else other for text, other in zip(references, texts(rng, 40))]


@pytest.mark.parametrize(
  'references, hypotheses',
  [
    *[random_corpus(seed) for seed in range(5)],
    (['a b', 'c'], ['', '']),
    (['a b', ''], ['a', 'c d']),
    ([''], ['a b']),
    ([''], ['']),
    (['a'], ['b c d e']),
    ([], []),
  ],
)
def test_equals_jiwer(references, hypotheses):
  jiwer = pytest.importorskip('jiwer', reason='jiwer, the reference for error rates, is not installed')
  words = [text.split() for text in references], [text.split() for text in hypotheses]
  assert error_rate(*words) == pytest.approx(jiwer.wer(references, hypotheses), abs=1e-12)
  assert error_rate(references, hypotheses) == pytest.approx(jiwer.cer(references, hypotheses), abs=1e-12)


def test_a_corpus_is_not_the_mean_of_its_utterances():
  assert error_rate([['a'], ['b', 'c', 'd']], [['x'], ['b', 'c', 'd']]) == 0.25


def test_missing_hypotheses_are_an_error():
  with pytest.raises(ValueError):
    error_rate([['a'], ['b']], [['a']])


def test_a_thousand_words_take_no_time():
  rng = np.random.default_rng(0)
  reference, hypothesis = rng.integers(50, size=(2, 1000)).tolist()
  start = time.perf_counter()
  edit_counts(reference, hypothesis)
  assert time.perf_counter() - start < 2


def test_table_of_hypotheses(tmp_path):
  path = tmp_path / 'hypotheses.tsv'
  write_hypotheses(path, [('a\tb\n1.flac', 'THE CAT SAT', 'THE  HAT'), ('é', 'IT', ''), ('last', 'NO', 'NO\nNO')])
  assert path.read_text(encoding='utf-8') == (
    'name\treference\thypothesis\twords\tsubstitutions\tdeletions\tinsertions\n'
    'a b 1.flac\tTHE CAT SAT\tTHE HAT\t3\t1\t1\t0\n'
    'é\tIT\t\t1\t0\t1\t0\n'
    'last\tNO\tNO NO\t1\t0\t0\t1\n'
  )
  assert [file.name for file in tmp_path.iterdir()] == ['hypotheses.tsv']
