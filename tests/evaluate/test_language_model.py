"""n-gram models: backoff by hand, against the estimate the file was made from, and damaged files."""

import collections
import gzip
import itertools
import math

import pytest

from d2v_jax.errors import InputError
from d2v_jax.evaluate.language_model import NGram

ARPA = """\
made by hand

\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-99\t<s>\t-0.1
-0.5\t</s>
-1.5\t<unk>
-0.7\tcat\t-0.2
-0.9\tsat\t-0.3

\\2-grams:
-0.4\t<s> cat\t-0.05
-0.6\tcat sat
-0.8\tsat </s>

\\3-grams:
-0.25\t<s> cat sat

\\end\\
"""
BIGRAMS = ARPA.replace('ngram 3=1\n', '').replace('\\3-grams:\n-0.25\t<s> cat sat\n', '')


def write(path, text):
  path.write_bytes(text.encode())
  return path


def read(tmp_path, text=ARPA):
  return NGram.read(write(tmp_path / 'lm.arpa', text))


@pytest.mark.parametrize(
  'words_before, word, log10',
  [
    (('<s>', 'cat'), 'sat', -0.25),
    (('<s>',), 'cat', -0.4),
    (('cat', 'sat'), '</s>', -0.8),  # (cat sat) has no backoff
    (('<s>', 'cat'), 'cat', -0.05 - 0.2 - 0.7),
    (('<s>', 'cat'), '</s>', -0.05 - 0.2 - 0.5),
    (('sat',), 'sat', -0.3 - 0.9),
    ((), 'sat', -0.9),
    (('<s>',), 'dog', -0.1 - 1.5),
    (('cat', 'dog'), 'sat', -0.9),  # no n-gram has <unk> before
    (('<s>', 'sat', '<s>', 'cat'), 'sat', -0.25),  # words too far back do not count
    (('<s>', 'CAT'), 'Sat', -0.25),  # the model is lower case
  ],
)
def test_backoff_by_hand(tmp_path, words_before, word, log10):
  model = read(tmp_path)
  assert model.order == 3
  assert model.score(words_before, word) == pytest.approx(log10 * math.log(10), abs=1e-12)


def test_lower_orders_and_gzip(tmp_path):
  (tmp_path / 'lm.arpa.gz').write_bytes(gzip.compress(BIGRAMS.replace('\n', '\r\n').encode()))
  model = NGram.read(tmp_path / 'lm.arpa.gz')
  assert model.order == 2
  assert model.score(('<s>', 'cat'), 'sat') == pytest.approx(-0.6 * math.log(10))
  unigrams = read(tmp_path, '\\data\\\nngram 1=1\n\\1-grams:\n-0.5 A\n\\end\\\n')
  assert unigrams.order == 1
  assert unigrams.score(('<s>', 'A'), 'A') == pytest.approx(-0.5 * math.log(10))


def test_words_are_looked_up_as_they_are_where_the_model_has_upper_case(tmp_path):
  model = read(tmp_path, ARPA.replace('cat', 'CAT').replace('sat', 'SAT'))
  assert model.score(('<s>', 'CAT'), 'SAT') == pytest.approx(-0.25 * math.log(10))
  assert model.score((), 'sat') == pytest.approx(-1.5 * math.log(10))


def test_unknown_words_without_an_entry_for_them(tmp_path):
  model = read(tmp_path, ARPA.replace('-1.5\t<unk>\n', '').replace('ngram 1=5', 'ngram 1=4'))
  assert model.score((), 'dog') == pytest.approx(-100 * math.log(10))
  assert read(tmp_path, ARPA.replace('<unk>', '<UNK>')).score((), 'dog') == pytest.approx(-1.5 * math.log(10))


def test_words_may_hold_other_white_space(tmp_path):
  model = read(tmp_path, ARPA.replace('cat', 'c\u00a0t'))
  assert model.score(('<s>', 'c\u00a0t'), 'sat') == pytest.approx(-0.25 * math.log(10))


def estimate(sentences, order, discount=0.5):
  """A proper model: interpolated absolute discounting. Returns its ARPA text, its probability and its vocabulary."""
  sentences = [('<s>', *sentence.split(), '</s>') for sentence in sentences]
  vocabulary = sorted({word for sentence in sentences for word in sentence[1:]} | {'<unk>'})
  followers = collections.defaultdict(collections.Counter)
  for sentence in sentences:
    for end in range(1, len(sentence)):
      for start in range(max(end - order + 1, 0), end + 1):
        followers[sentence[start:end]][sentence[end]] += 1

  def left_over(before):
    return discount * len(followers[before]) / followers[before].total() if before in followers else 1.0

  def probability(before, word):
    lower = probability(before[1:], word) if before else 1 / len(vocabulary)
    own = max(followers[before][word] - discount, 0) / followers[before].total() if before in followers else 0.0
    return own + left_over(before) * lower

  sections = []
  for n in range(1, order + 1):
    ngrams = [(*before, word) for before in list(followers) if len(before) == n - 1 for word in followers[before]]
    ngrams += [('<unk>',), ('<s>',)] if n == 1 else []
    lines = []
    for ngram in ngrams:
      log_prob = -99 if ngram == ('<s>',) else math.log10(probability(ngram[:-1], ngram[-1]))
      backoff = f'\t{math.log10(left_over(ngram)):.12f}' if ngram in followers and n < order else ''
      lines.append(f'{log_prob:.12f}\t{" ".join(ngram)}{backoff}\n')
    sections.append(lines)
  text = '\\data\\\n' + ''.join(f'ngram {n}={len(lines)}\n' for n, lines in enumerate(sections, 1))
  text += ''.join(f'\n\\{n}-grams:\n{"".join(lines)}' for n, lines in enumerate(sections, 1)) + '\n\\end\\\n'
  return text, probability, vocabulary


@pytest.mark.parametrize('order', [2, 3, 4])
def test_equals_the_estimate_it_was_made_from_and_sums_to_one(tmp_path, order):
  text, probability, vocabulary = estimate(['a b a c', 'b a b b', 'c', 'a b c a b'], order)
  model = read(tmp_path, text)
  histories = [history for n in range(order) for history in itertools.product(['<s>', *'abc', '<unk>'], repeat=n)]
  for history in histories:
    scores = [model.score(history, word) for word in vocabulary]
    assert scores == pytest.approx([math.log(probability(history, word)) for word in vocabulary], abs=1e-9)
    assert sum(map(math.exp, scores)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
  'text, message',
  [
    ('', r'line 1: .*no \\data\\'),
    (ARPA.replace('\\data\\', 'data'), r'line 1: .*no \\data\\'),
    (ARPA.replace('ngram 2=3', 'ngram 2=4'), r'line 20: 3 different 2-grams, \\data\\ announces 4'),
    (ARPA.replace('cat sat\n-0.8', 'cat sat\n-0.9\tcat sat\n-0.8').replace('2=3', '2=4'), r'line 21: 3 different 2-grams'),
    (ARPA.replace('ngram 1=5', 'ngram one=5'), r'line 4: .*ngram one=5'),
    (ARPA.replace('\\2-grams:', '\\3-grams:'), r'line 15: .*\\\\3-grams:.* where 2-grams are due'),
    (ARPA.replace('ngram 2=3\n', ''), r'line 14: .*2-grams.* announces orders \[1, 3\]'),
    (ARPA.replace('\\3-grams:\n-0.25\t<s> cat sat\n', ''), r'line 21: the file ends after 2-grams.* orders \[1, 2, 3\]'),
    ('\\data\\\nngram 1=0\n\\1-grams:\n\\end\\\n', 'line 4: .*without unigrams'),
    ('\\data\\\n\\end\\\n', 'line 2: .*without unigrams'),
    (ARPA.replace('\\end\\\n', ''), r'line 22: the last one, is not \\end\\'),
    (ARPA.replace('-0.7\tcat', 'x\tcat'), r'line 12: .*x.*cat.* is not a log10 probability'),
    (ARPA.replace('-0.7\tcat', 'nan\tcat'), 'line 12: '),
    (ARPA.replace('-0.7\tcat', '0.7\tcat'), 'line 12: '),
    (ARPA.replace('-0.6\tcat sat', '-0.6\tcat'), 'line 17: .*2 words'),
    (ARPA.replace('-0.6\tcat sat', '-0.6\tcat sat sat'), 'line 17: '),
    (ARPA.replace('-0.6\tcat sat', '-0.6\tcat sat -1 -1'), 'line 17: '),
  ],
)
def test_damaged_files(tmp_path, text, message):
  with pytest.raises(InputError, match=r'lm\.arpa ' + message) as error:
    read(tmp_path, text)
  assert '\n' not in str(error.value)


def test_unreadable_files(tmp_path):
  whole = gzip.compress(ARPA.encode())
  for name, content in (('cut.gz', whole[:-20]), ('plain.gz', ARPA.encode()), ('spoilt.gz', whole[:40] + b'\xff' * 60)):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf'{name}: cannot be read'):
      NGram.read(tmp_path / name)
  with pytest.raises(InputError, match=r'absent\.arpa: cannot be read \(No such file'):
    NGram.read(tmp_path / 'absent.arpa')
  (tmp_path / 'latin.arpa').write_bytes(ARPA.replace('cat', 'c\u00e9t').encode('latin-1'))
  with pytest.raises(InputError, match=r'latin\.arpa line 12: .*not UTF-8'):
    NGram.read(tmp_path / 'latin.arpa')
