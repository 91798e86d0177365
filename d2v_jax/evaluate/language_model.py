"""Word n-gram language models with backoff, read from ARPA files (SRILM, KenLM and others write them)."""

import gzip
import math
import os
import re
import zlib

from d2v_jax.errors import InputError

_SPECIAL = ('<s>', '</s>', '<unk>', '<UNK>')
_UNKNOWN = -100.0  # log10 probability of unknown words where the file has no <unk>, as KenLM has it


class NGram:
  """Probabilities of words given the words before; make it with `read`.

  N-grams are kept in dicts: about 200 bytes each, so a few millions of them are the limit (LibriSpeech's pruned trigrams
  are fine, its full 4-grams are not).

  Attributes:
    order: the longest n-grams of the model: 3 for trigrams.
  """

  def __init__(self, order: int, log_probs: dict[str, float], backoffs: dict[str, float]):
    """Takes base-10 logarithms by n-gram, its words separated by one space; backoffs that are missing are 0."""
    self.order = order
    self._log_probs, self._backoffs = log_probs, backoffs
    words = [ngram for ngram in log_probs if ' ' not in ngram]
    self._lower = all(word == word.lower() for word in words if word not in _SPECIAL)
    self._unknown = '<UNK>' if '<UNK>' in log_probs else '<unk>'
    log_probs.setdefault(self._unknown, _UNKNOWN)

  @classmethod
  def read(cls, path: str | os.PathLike) -> 'NGram':
    """Reads an ARPA file, gzipped where its name ends in .gz, of any order.

    Words are looked up as they are, except that they are lower-cased first where all words of the model are lower case.

    Raises:
      InputError: the file cannot be read or is damaged; names the line.
    """
    try:
      with (gzip.open if str(path).endswith('.gz') else open)(path, 'rb') as file:
        return cls(*_parse(file))
    except _Damaged as damage:
      raise InputError(f'{path} line {damage}; give a complete language model in ARPA format') from None
    except (OSError, EOFError, zlib.error) as error:
      reason = getattr(error, 'strerror', None) or error
      raise InputError(f'{path}: cannot be read ({reason}); give a language model in ARPA format, plain or .gz') from None

  def score(self, words_before: tuple[str, ...], word: str) -> float:
    """Natural log-probability of `word`, which may be '</s>'.

    Args:
      words_before: the words so far, or at least the last order - 1, beginning with '<s>' where the sentence does.
      word: unknown words get the probability of <unk>; where the model has none, it is 1e-100 times the backoffs.
    """
    words = [self._known(w) for w in (*words_before[max(len(words_before) - self.order + 1, 0) :], word)]
    backoff = 0.0
    while (log_prob := self._log_probs.get(' '.join(words))) is None:
      backoff += self._backoffs.get(' '.join(words[:-1]), 0.0)
      words = words[1:]
    return (backoff + log_prob) * math.log(10)

  def _known(self, word: str) -> str:
    word = word.lower() if self._lower and word not in _SPECIAL else word
    return word if word in self._log_probs else self._unknown


class _Damaged(Exception):
  """Number of the line, and what is wrong there."""


def _parse(file):
  """Order, log10 probabilities and log10 backoffs of the lines (bytes) of an ARPA file."""
  lines = enumerate(map(bytes.strip, file), 1)
  if not any(line == b'\\data\\' for _, line in lines):
    raise _Damaged('1: from here on there is no \\data\\')
  announced = {}  # number of n-grams by order
  order, first = 0, 0  # of the section being read, and how many n-grams came before it
  log_probs, backoffs = {}, {}
  number = 0
  for number, line in lines:
    if not line:
      continue
    if line == b'\\end\\' or re.fullmatch(rb'\\\d+-grams:', line):
      if order and len(log_probs) - first != announced[order]:
        raise _Damaged(f'{number}: {len(log_probs) - first} different {order}-grams, \\data\\ announces {announced[order]}')
      if line == b'\\end\\':
        break
      order, first = order + 1, len(log_probs)
      if line != b'\\%d-grams:' % order or order not in announced:
        raise _Damaged(f'{number}: {_quote(line)}, where {order}-grams are due and \\data\\ announces orders {[*announced]}')
    elif order:
      ngram, log_prob, backoff = _entry(number, line, order)
      log_probs[ngram] = log_prob
      if backoff:
        backoffs[ngram] = backoff
    elif match := re.fullmatch(rb'ngram\s+(\d+)\s*=\s*(\d+)', line):
      announced[int(match[1])] = int(match[2])
    else:
      raise _Damaged(f'{number}: {_quote(line)}, where \\data\\ announces counts as "ngram 1=1000"')
  else:
    raise _Damaged(f'{number}: the last one, is not \\end\\')
  if not announced.get(1):
    raise _Damaged(f'{number}: the file ends without unigrams')
  if order != len(announced):
    raise _Damaged(f'{number}: the file ends after {order}-grams, \\data\\ announces orders {[*announced]}')
  return order, log_probs, backoffs


def _entry(number: int, line: bytes, order: int) -> tuple[str, float, float]:
  log_prob, *words = line.split()  # of bytes, so that only ASCII white space separates: words may hold other kinds
  try:
    log_prob, backoff = float(log_prob), float(words[order]) if len(words) > order else 0.0
    if order <= len(words) <= order + 1 and -math.inf < log_prob <= 0 and math.isfinite(backoff):
      return b' '.join(words[:order]).decode(), log_prob, backoff
  except UnicodeDecodeError:
    raise _Damaged(f'{number}: {_quote(line)} is not UTF-8 text') from None
  except ValueError:
    pass
  raise _Damaged(
    f'{number}: {_quote(line)} is not a log10 probability (0 or less), {"1 word" if order == 1 else f"{order} words"}'
    ' and, maybe, a log10 backoff'
  )


def _quote(line: bytes) -> str:
  return repr(line[:60].decode(errors='replace'))
