"""The letters of CTC speech recognition: transcripts to ids and back, in the order of fairseq's letter dictionaries."""

import re
import unicodedata

import numpy as np

VOCABULARY = ('<s>', '<pad>', '</s>', '<unk>', '|', *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
BLANK = 0  # fairseq's CTC takes <s> for it
SPECIAL = (1, 2, 3)  # <pad>, </s> and <unk>: no transcript has them
BOUNDARY = 4  # follows every word

_IDS = {' ': BOUNDARY} | {letter: id_ for id_, letter in enumerate(VOCABULARY) if id_ > BOUNDARY}
_APOSTROPHES = '\u2018\u2019\u201b\u02b9\u02bc\u2032\u0060\u00b4'  # quotes, modifier letters, prime, grave, acute
_TYPOGRAPHY = str.maketrans(
  {**dict.fromkeys(_APOSTROPHES, "'"), '\N{MINUS SIGN}': '-', 'Æ': 'AE', 'æ': 'ae', 'Œ': 'OE', 'œ': 'oe'}
)
_READ_ALOUD = '#%&@§¶'  # Unicode counts them as punctuation, but dropping them would drop a spoken word


def normalise(text: str) -> str:
  """Brings a transcript to the letters it is learned in: upper case, without accents, words one space apart.

  Apostrophes of all kinds become ' (one that stands alone, or doubled as a quotation mark, goes). Dashes, slashes and dots
  of omission separate words; other punctuation is removed without a trace ("U.S." gives "US"). Characters that are
  neither letters nor punctuation (digits, currencies, '&', ...) stay: whether they are allowed is for `encode` to say.
  """
  text = unicodedata.normalize('NFKD', text.translate(_TYPOGRAPHY)).upper()
  text = re.sub(r'\.\.+|[/\\]', ' ', text)
  text = ''.join(map(_plain, text))
  text = re.sub(r"''+|(?<!\S)'(?!\S)", '', text)
  return ' '.join(text.split())


def encode(text: str) -> np.ndarray:
  """Ids int32 [n] of the normalised text, with | after every word, the last one included.

  Raises:
    ValueError: the text is empty, or has characters that are not in the vocabulary; they are named.
  """
  text = normalise(text)
  if not text:
    raise ValueError('empty transcript')
  if unknown := sorted(set(text) - _IDS.keys()):
    raise ValueError(f'characters that are not in the vocabulary: {" ".join(map(repr, unknown))} in {text[:60]!r}')
  return np.array([_IDS[letter] for letter in text + ' '], np.int32)


def decode(ids) -> str:
  """Words of ids [n] (CTC's repeats already collapsed), one space apart; ids that are no letters are dropped."""
  text = ''.join(VOCABULARY[id_] for id_ in ids if id_ >= BOUNDARY)
  return ' '.join(text.replace('|', ' ').split())


def _plain(character: str) -> str:
  category = unicodedata.category(character)
  if category == 'Pd':
    return ' '
  if category in ('Mn', 'Cf') or (category.startswith('P') and character not in "'" + _READ_ALOUD):
    return ''  # accents, invisible characters such as soft hyphens, punctuation
  return character
