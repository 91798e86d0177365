"""Tokenizers of text: byte-level BPE, that of GPT-2 as RoBERTa numbers it or one trained here.

Ids are in fairseq's order: <s>, <pad>, </s>, <unk>, the symbols of the dictionary, <mask>. Text is split into words as GPT-2
splits it, and every word, as UTF-8, into tokens, by the merges. Any text can be encoded, and special symbols never come from
text: "<s>" is three characters like any others. The library `tokenizers` does the work; what it gave for a word is kept,
since most words come again and again.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from d2v_jax.errors import InputError

BOS, PAD, EOS, UNK = range(4)

_BEGIN, _END = np.array([BOS], np.int32), np.array([EOS], np.int32)
_SPECIAL = ['<s>', '<pad>', '</s>', '<unk>']
_MASK = '<mask>'
_FILLER = re.compile(r'madeupword\d+')  # fairseq's name for entries that fill a dictionary up
_SMALLEST = len(_SPECIAL) + 256 + 1

# Letters and numbers of Unicode 17 and 18, which the library's regular expressions do not know yet but Python's `regex`, and
# so fairseq, does.
_NEW_LETTERS = (
  '\u0558\u058b\u058c\u088f\u0c5c\u0cdc\u208f\u209d-\u209f\ua7ce\ua7cf\ua7d2\ua7d4\ua7dd\ua7e2\ua7f1\uab6c\uab6d'
  '\U000107bb-\U000107bf\U00010940-\U00010959\U00010ec5-\U00010ec7\U00010ed9-\U00010eee\U00011b0a\U00011db0-\U00011ddb'
  '\U00011df1\U00016ea0-\U00016eb8\U00016ebb-\U00016ed3\U00016ff2\U00016ff3\U000187f8-\U000187ff\U00018cd6-\U00018cda'
  '\U00018d09-\U00018d20\U00018d80-\U00018df2\U00018e00-\U00019191\U000191a0-\U000191d2\U0001b123-\U0001b128\U0001b168'
  '\U0001d6a6\U0001df1f-\U0001df24\U0001df2b-\U0001df81\U0001df90-\U0001df96\U0001dfcd-\U0001dfff\U0001e6c0-\U0001e6de'
  '\U0001e6e0-\U0001e6e2\U0001e6e4\U0001e6e5\U0001e6e7-\U0001e6ed\U0001e6f0-\U0001e6f4\U0001e6fe\U0001e6ff'
  '\U0002b73a-\U0002b73f\U0002b81e\U0002cea2-\U0002cead\U000323b0-\U00033479\U0003d000-\U0003fc3f'
)
_NEW_NUMBERS = '\U00011de0-\U00011de9\U0001246f\U00012475-\U0001247f\U00012550-\U00012686\U00016ff4-\U00016ff6'
_LETTER, _NUMBER = rf'\p{{L}}{_NEW_LETTERS}', rf'\p{{N}}{_NEW_NUMBERS}'
# GPT-2's pattern. It is part of every saved tokenizer; those saved with another one are refused.
_PATTERN = rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{_LETTER}]+| ?[{_NUMBER}]+| ?[^\s{_LETTER}{_NUMBER}]+|\s+(?!\S)|\s+"
_SPLIT = pre_tokenizers.Sequence(
  [
    pre_tokenizers.Split(tokenizers.Regex(_PATTERN), 'isolated'),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ]
)
_SPLIT_OF_LIBRARY = pre_tokenizers.ByteLevel(add_prefix_space=False)  # the same but for the newest letters

# In GPT-2's pattern only the beginning of a match can be white space, so before white space that follows anything else one
# match ends and another begins, whatever stands around: there a text can be cut. The information separators \x1c to \x1f are
# white space for Python, but not for Unicode.
_SPACE, _OTHER = r'[^\S\x1c-\x1f]', r'[\S\x1c-\x1f]'
_CUT = re.compile(f'(?<={_OTHER}){_SPACE}')
_STRETCH = re.compile(f'{_SPACE}*{_OTHER}+|{_SPACE}+')  # from one cut to the next
_PIECE = 1 << 16  # characters after which a long text is cut at the next place
_LONGEST_STRETCH = 16_000_000  # bytes; the library takes up to 300 times the memory
_MOST_KNOWN = 1 << 18  # stretches whose ids are kept, and the characters in one
_LONGEST_KNOWN = 64


class Tokenizer:
  """A byte-level BPE.

  Args:
    tokens: the vocabulary in the order of ids, written as GPT-2 writes bytes. Those after <mask> have no id of their own:
      they are needed for merges, and are UNK where they are the result.
    merges: pairs of tokens that become one, first those that are merged first.

  Attributes:
    size: number of ids, those of special symbols included; the last is that of <mask>.
    fingerprint: 16 hexadecimal digits; tokenizers with the same give the same ids.
  """

  def __init__(self, tokens: list[str], merges: list[tuple[str, str]]):
    self.size = tokens.index(_MASK) + 1
    self.fingerprint = hashlib.sha256(json.dumps([_PATTERN, tokens, merges]).encode()).hexdigest()[:16]
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    self._library = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token=_SPECIAL[UNK], cache_capacity=0))
    self._library.pre_tokenizer, self._library.decoder = _SPLIT, decoders.ByteLevel()
    self._known = {}  # stretch of text -> its ids as the bytes of an int32 array

  def encode(self, text: str) -> np.ndarray:
    """Ids int32 [n] of a text, without special symbols.

    Raises:
      ValueError: the text has more than 16 MB without a place to cut it, or characters that UTF-8 does not have.
    """
    ids, known = bytearray(), self._known
    for piece in _pieces(text):
      ids += b''.join([known.get(stretch) or self._encode_stretch(stretch) for stretch in _STRETCH.findall(piece)])
    return np.frombuffer(ids, np.int32)

  def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 [n], and the characters [start, end) of the text that each is of, int64 [n, 2]; raises as `encode`.

    The space before a word is part of its token. Tokens of parts of a character all have the whole of it.
    """
    offsets, start = [np.empty((0, 2), np.int64)], 0
    for piece in _pieces(text):
      offsets.append(np.array(self._library.encode(piece).offsets, np.int64) + start)
      start += len(piece)
    return self.encode(text), np.concatenate(offsets)

  def encode_framed(self, *texts: str) -> tuple[np.ndarray, np.ndarray]:
    """A text or a pair of them as models take it: ids int32 [n], `framed`, and offsets int64 [n, 2]; raises as `encode`.

    White space at both ends of a text is left out, as in training. Offsets are those in the whole text that a token is of;
    special symbols have the span (0, 0).
    """
    encoded = [self.encode_with_offsets(text.strip()) for text in texts]
    ids = framed(*(ids for ids, _ in encoded))
    offsets = np.zeros((len(ids), 2), np.int64)
    before = [len(text) - len(text.lstrip()) for text in texts]
    offsets[(ids != BOS) & (ids != EOS)] = np.concatenate([own + start for (_, own), start in zip(encoded, before)])
    return ids, offsets

  def decode(self, ids) -> str:
    """The text of ids [n]. Special symbols are left out; bytes that are no UTF-8 become U+FFFD."""
    ids = np.asarray(ids)
    return self._library.decode(ids[(ids > UNK) & (ids < self.size - 1)].tolist())

  def token(self, id_: int) -> str:
    """One token to look at: what does not print is escaped, a part of a character is U+FFFD."""
    if not UNK < id_ < self.size - 1:
      return self._library.id_to_token(id_)
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in self.decode([id_]))

  def to_text(self) -> str:
    """The tokenizer as JSON in the format of the library `tokenizers`."""
    return self._library.to_str()

  @classmethod
  def from_text(cls, text: str) -> 'Tokenizer':
    """Undoes `to_text`. Files of other programs do as well if they are of a byte-level BPE with this order of ids.

    Raises:
      ValueError: the text is something else.
    """
    try:
      content = json.loads(tokenizers.Tokenizer.from_str(text).to_str())  # with all fields, whatever version wrote it
    except Exception as error:  # the library raises nothing more specific
      raise ValueError(f'no tokenizer in the format of the library tokenizers ({" ".join(str(error).split())})') from None
    model, split = content['model'], content['pre_tokenizer']
    changes = ('dropout', 'continuing_subword_prefix', 'end_of_word_suffix', 'byte_fallback', 'ignore_merges')
    splits = [json.loads(known.__getstate__()) for known in (_SPLIT, _SPLIT_OF_LIBRARY)]
    if model['type'] != 'BPE' or content['normalizer'] or split not in splits or any(model[key] for key in changes):
      raise ValueError('not a byte-level BPE that splits text as GPT-2 does, without normalizer')
    ids = model['vocab']
    tokens = sorted(ids, key=ids.get)
    complete = list(ids.values()) == list(range(len(ids))) and all(
      ids.get(token['content']) == token['id'] for token in content['added_tokens']
    )
    ours = split == splits[0]  # then tokens without an id may follow <mask>
    if not complete or tokens[:4] != _SPECIAL or _MASK not in (tokens if ours else tokens[-1:]):
      raise ValueError(f'its ids must be 0, 1, ... in the order of fairseq: {" ".join(_SPECIAL)}, tokens, {_MASK}')
    return cls(tokens, [tuple(pair) for pair in model['merges']])

  def _encode_stretch(self, text: str) -> bytes:
    ids = np.array(self._library.encode(text).ids, np.int32)
    ids[ids >= self.size] = UNK
    ids = ids.tobytes()
    if len(text) <= _LONGEST_KNOWN:
      if len(self._known) >= _MOST_KNOWN:
        self._known.clear()
      self._known[text] = ids
    return ids

  def __getstate__(self) -> dict:
    return self.__dict__ | {'_known': {}}


def framed(*texts: np.ndarray) -> np.ndarray:
  """Ids int32 [n] of a text as models take it, <s> A </s>, or of a pair, <s> A </s> </s> B </s>.

  Args:
    texts: ids int32 of A or of A and B; two special symbols are added to each.
  """
  ids = [_BEGIN, texts[0], _END]
  for text in texts[1:]:
    ids += [_END, text, _END]
  return np.concatenate(ids)


def padded(rows: list[np.ndarray], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Several texts in one array: ids int32 [rows, `length` or that of the longest], and the length of each, int32 [rows]."""
  lengths = np.array([len(row) for row in rows], np.int32)
  tokens = np.full((len(rows), length or lengths.max(initial=1)), PAD, np.int32)
  for row, ids in enumerate(rows):
    tokens[row, : len(ids)] = ids
  return tokens, lengths


def read_tokenizer(path) -> Tokenizer:
  """Reads GPT-2's files in a folder (encoder.json, vocab.bpe and, for RoBERTa's ids, dict.txt), or a tokenizer.json.

  Without dict.txt the symbols are in the order of encoder.json.

  Args:
    path: the folder of either, or the file tokenizer.json.

  Raises:
    InputError: a file is missing or is not what it should be.
  """
  path = Path(path).expanduser()
  if (path / 'encoder.json').exists() or (path / 'vocab.bpe').exists():
    return _read_gpt2(path)
  if path.is_dir():
    path /= 'tokenizer.json'
    if not path.exists():
      raise InputError(f'{path.parent}: has no tokenizer: neither encoder.json and vocab.bpe nor tokenizer.json')
  text = _read(path)
  try:
    return Tokenizer.from_text(text)
  except ValueError as error:
    raise InputError(f'{path}: {error}; give a tokenizer.json, or a folder with encoder.json and vocab.bpe') from None


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
  """Trains a tokenizer with `size` ids: all bytes, the merges most frequent in the texts, and what it takes to fill it up.

  Raises:
    InputError: `size` has no room for the bytes and the special symbols.
    ValueError: as `Tokenizer.encode`.
  """
  if size < _SMALLEST:
    raise InputError(
      f'config.model.vocab_size: {size}: a trained tokenizer has at least {_SMALLEST} entries: 256 bytes,'
      f' {", ".join(_SPECIAL)} and {_MASK}'
    )
  room = size - len(_SPECIAL) - 1
  library = tokenizers.Tokenizer(models.BPE())
  library.pre_tokenizer = _SPLIT
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(vocab_size=room, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
  library.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
  model = json.loads(library.to_str())['model']
  tokens = sorted(model['vocab'], key=model['vocab'].get)
  filler = [f'madeupword{number:04d}' for number in range(room - len(tokens))]
  return Tokenizer([*_SPECIAL, *tokens, *filler, _MASK], [tuple(pair) for pair in model['merges']])


def _pieces(text: str):
  """Yields a text in pieces that are short where that changes nothing, see _CUT."""
  start = 0
  while start < len(text):
    cut = _CUT.search(text, start + _PIECE)
    end = cut.start() if cut else len(text)
    piece = text[start:end]
    if len(piece.encode()) > _LONGEST_STRETCH:
      longest = max(len(stretch.encode()) for stretch in _STRETCH.findall(piece))
      if longest > _LONGEST_STRETCH:
        raise ValueError(
          f'{longest / 1e6:.1f} MB in one stretch, without white space between words, after character {start}:'
          f' at most {_LONGEST_STRETCH / 1e6:.0f} MB can be encoded; break it up'
        )
    yield piece
    start = end


def _read_gpt2(folder: Path) -> Tokenizer:
  ids = _read_encoder(folder / 'encoder.json')
  merges = _read_merges(folder / 'vocab.bpe', ids)
  tokens = sorted(ids, key=ids.get)
  dictionary = folder / 'dict.txt'
  order = _read_dictionary(dictionary, {str(ids[token]): token for token in tokens}) if dictionary.exists() else tokens
  return Tokenizer([*_SPECIAL, *order, _MASK, *sorted(ids.keys() - order, key=ids.get)], merges)


def _read_encoder(path: Path) -> dict[str, int]:
  """Token -> GPT-2's id of it."""

  def unique(pairs: list) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
      raise ValueError('an entry comes twice')
    return found

  try:
    ids = json.loads(_read(path), object_pairs_hook=unique)
  except ValueError as error:
    raise InputError(f'{path}: is not a JSON object of tokens and their ids ({error})') from None
  if not isinstance(ids, dict) or not ids or any(type(id_) is not int or id_ < 0 for id_ in ids.values()):
    raise InputError(f'{path}: is not a JSON object of tokens and their ids, whole numbers from 0')
  if len(set(ids.values())) < len(ids):
    raise InputError(f'{path}: two tokens have the same id')
  if reserved := sorted(token for token in ids if token in (*_SPECIAL, _MASK) or _FILLER.fullmatch(token)):
    raise InputError(f"{path}: {reserved[0]!r} is a symbol of fairseq, which has its own id for it; give GPT-2's file")
  return ids


def _read_merges(path: Path, ids: dict[str, int]) -> list[tuple[str, str]]:
  header, *lines = _read_lines(path)
  if not header.startswith('#version'):
    raise InputError(f"{path}: line 1: {header[:40]!r}, not '#version: 0.2', with which these files begin")
  merges, merged = {}, set()
  for number, line in enumerate(lines, 2):
    pair = tuple(line.split(' '))
    result = ''.join(pair)
    if len(pair) != 2 or not all(pair):
      reason = 'is not two tokens with a space between'
    elif missing := [token for token in (*pair, result) if token not in ids]:
      reason = f'needs the token {missing[0]!r}, which encoder.json does not have'
    elif pair in merges:
      reason = 'comes twice'
    elif result in merged:  # the library then merges in another order than GPT-2
      reason = f'makes {result!r}, which a line before it merges already; sort the lines'
    else:
      merges[pair] = None
      merged.update(pair)
      continue
    raise InputError(f'{path}: line {number}: {line[:40]!r} {reason}')
  return list(merges)


def _read_dictionary(path: Path, tokens: dict[str, str]) -> list[str]:
  """The tokens in the order of dict.txt, which calls them by their ids in decimal."""
  order = {}
  for number, line in enumerate(_read_lines(path), 1):
    symbol, _, count = line.rstrip().rpartition(' ')
    token = symbol if _FILLER.fullmatch(symbol) else tokens.get(symbol)
    if not count.isdecimal() or not symbol:
      reason = f'{line[:40]!r} is not an id of encoder.json and its count'
    elif token is None:
      reason = f'{symbol[:40]!r} is no id of encoder.json, nor madeupwordNNNN; give the dict.txt that belongs to it'
    elif token in order:
      reason = f'{symbol!r} comes twice'
    else:
      order[token] = None
      continue
    raise InputError(f'{path}: line {number}: {reason}')
  return list(order)


def _read_lines(path: Path) -> list[str]:
  return _read(path).removesuffix('\n').split('\n')


def _read(path: Path) -> str:
  try:
    return path.read_text('utf-8')
  except OSError as error:
    raise InputError(f'{path}: cannot be read: {error.strerror}') from None
  except UnicodeDecodeError as error:
    raise InputError(f'{path}: is not UTF-8 (byte {error.start})') from None
