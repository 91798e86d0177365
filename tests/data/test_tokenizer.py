"""The tokenizer: fairseq's ids on any text, where each token is from, files and training, and what must be refused."""

import itertools
import json
import os
import pickle
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import regex
import tokenizers

from d2v_jax.data import tokenizer as module
from d2v_jax.data.tokenizer import BOS, EOS, PAD, UNK, Tokenizer, read_tokenizer, train_tokenizer
from d2v_jax.errors import InputError

GPT2 = Path(os.environ.get('D2V_DATA_DIR', Path(__file__).parents[3] / 'shared' / 'data')) / 'text' / 'gpt2_bpe'
needs_gpt2 = pytest.mark.skipif(not GPT2.is_dir(), reason=f"GPT-2's vocabulary, optional, is not in {GPT2}")

PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

# What GPT-2 writes for each byte: itself where Latin-1 prints it, else the next character from U+0100 on.
PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTED]
SYMBOLS = {byte: chr(byte) for byte in PRINTED} | {byte: chr(256 + i) for i, byte in enumerate(OTHERS)}

MERGES = ['Ġ t', 'h e', 'Ġt he', 'i n', 'r e', "' s", 'l l', 'Ġ Ġ', 'ĠĠ ĠĠ', 'Ċ Ċ', 'Ã ©', 'ð Ł', 'ðŁ ĳ', 'a a', 'aa aa',
          'a n', 'an d', 'Ġ and', 'Ġ S', '1 2', '. .', '.. .', '. Ĝ', '< s', 'â Ģ', 'âĢ į', 'į ð', 'Ġ <']  # fmt: skip

HARD = [
  "I'm sure they've said it's 'twas; I'LL, WE'D, DON'T and '' 's's 't'tis",
  'tabs\t\tand\ttabs \t mixed\n\n\nlines\r\nof Windows\n \n  \n   x',
  ' ' * 37 + 'a' + ' ' * 64 + '\n' + ' ' * 5,
  '   leading and trailing   ',
  'separators \x1c\x1d x\x1ey\x1f z\x1c \x1d\x1e\x1f 1\x1c2 .\x1d. \x85next \x0b\x0c\x00\x7f',
  'no\xa0break \xa0 \xa0\xa0 x\xa0 \xa0y\u2007\u202f1 ideographic\u3000 \u3000space \u2028 \u2029\u205f',
  'zero\u200bwidth\u200c\u200djoiner \u2060 \ufeffbom \ufeff soft\xadhyphen \u180e',
  '👩\u200d👩\u200d👧\u200d👦 👍🏽 🇩🇪🇫🇷 ❤\ufe0f 🏴\U000e0067\U000e0062\U000e007f 1\ufe0f\u20e3',
  'e\u0301 cafe\u0301 caf\xe9 a\u0300\u0301\u0302 \u0301 \u0301x ก็ हिन्दी מְנֻקָּד ﷺ',
  '日本語のテキスト。中文、標點。 한국어 텍스트',
  '\u0661\u0662\u0663 x\u0967\u0968 ½ ² ⅷ Ⅷ 1,234.5e-6 \U0001d7ce\U0001d7cf 五 ①a 12aa12',
  '<s> <pad></s> <unk><mask> <|endoftext|> madeupword0000 ĠtheĊ',
  'Ã©\x80 \U0010ffff\ufffd\ufffe\ue000 … — “q” \u2018s \u2019s \xb4s ß İ ǅ \u017ft',
]


class Reference:
  """GPT-2's encoding as it is told: the pattern, then the merge of the lowest rank, everywhere, until there is none."""

  def __init__(self, encoder: dict, merges: list[str], dictionary: list[str] | None):
    self._ranks = {tuple(line.split()): rank for rank, line in enumerate(merges)}
    order = dictionary or [str(id_) for id_ in range(len(encoder))]
    ids = {symbol: 4 + line for line, symbol in enumerate(order)}
    self._ids = {token: ids.get(str(id_), UNK) for token, id_ in encoder.items()}

  def __call__(self, text: str) -> list[int]:
    return [self._ids[token] for word in PATTERN.findall(text) for token in self._tokens(word)]

  def _tokens(self, word: str) -> list[str]:
    tokens = [SYMBOLS[byte] for byte in word.encode()]
    while len(tokens) > 1:
      first, second = min(itertools.pairwise(tokens), key=lambda pair: self._ranks.get(pair, np.inf))
      if (first, second) not in self._ranks:
        break
      merged = []
      for token in tokens:
        if token == second and merged and merged[-1] == first:
          merged[-1] = first + second + '\0'  # not to be merged again in this round
        else:
          merged.append(token)
      tokens = [token.rstrip('\0') for token in merged]
    return tokens


def write_files(folder, merges=MERGES, dictionary=None):
  """GPT-2's files with a few merges; returns the reference that belongs to them."""
  tokens = [SYMBOLS[byte] for byte in PRINTED + OTHERS] + [''.join(line.split()) for line in merges] + ['<|endoftext|>']
  encoder = {token: id_ for id_, token in enumerate(tokens)}
  (folder / 'encoder.json').write_text(json.dumps(encoder))
  (folder / 'vocab.bpe').write_text('\n'.join(['#version: 0.2', *merges, '']))
  if dictionary is not None:
    (folder / 'dict.txt').write_text(''.join(f'{symbol} {1000 - line}\n' for line, symbol in enumerate(dictionary)))
  return Reference(encoder, merges, dictionary)


def shuffled_ids():
  ids = [str(id_) for id_ in range(256 + len(MERGES) + 1)]
  random.Random(1).shuffle(ids)
  return ids


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """(tokenizer, reference) of a few merges, with a dict.txt: entries in another order, some missing, some filled in."""
  folder = tmp_path_factory.mktemp('small')
  ids = [id_ for id_ in shuffled_ids() if id_ not in ('65', '258')]  # 'b' and 'Ġthe'
  reference = write_files(folder, dictionary=[*ids[:100], 'madeupword0000', *ids[100:], 'madeupword0001'])
  return read_tokenizer(folder), reference


@pytest.fixture(scope='module')
def gpt2():
  merges = (GPT2 / 'vocab.bpe').read_text().split('\n')[1:-1]
  dictionary = [line.split()[0] for line in (GPT2 / 'dict.txt').read_text().splitlines()]
  return read_tokenizer(GPT2), Reference(json.loads((GPT2 / 'encoder.json').read_text()), merges, dictionary)


@pytest.fixture(params=['small', pytest.param('gpt2', marks=needs_gpt2)])
def both(request):
  return request.getfixturevalue(request.param)


def library_of(tokenizer):
  return tokenizers.Tokenizer.from_str(tokenizer.to_text())


def message_of(path):
  with pytest.raises(InputError) as error:
    read_tokenizer(path)
  assert '\n' not in str(error.value)
  return str(error.value)


# Ids.


@needs_gpt2
def test_roberta(gpt2):
  tokenizer, _ = gpt2
  assert tokenizer.size == 50_265
  assert tokenizer.encode('Hello world!').tolist() == [31414, 232, 328]
  assert [tokenizer.token(id_) for id_ in (BOS, PAD, EOS, UNK, 50_264)] == ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
  assert [tokenizer.token(id_) for id_ in (31414, 232, 50_261)] == ['Hello', ' world', 'madeupword0000']


@pytest.mark.parametrize('text', HARD, ids=range(len(HARD)))
def test_ids_are_those_of_fairseq(both, text):
  tokenizer, reference = both
  for _ in range(2):  # the second time from what is known
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.tolist() == reference(text)


def test_ids_of_random_text(both):
  """Strings of what is hard, in any order, and of any code points."""
  tokenizer, reference = both
  draw = random.Random(0)
  parts = [*' \t\n\r\x1c\x1f\x85\xa0\u2003\u3000\u200b\u200d\u0301', *"'sStTaAdbe12½٣.<>", *'👍🏽中']
  parts += ['  ', 'the', ' the', "'ll"]
  known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ('Cn', 'Cs')]
  texts = [''.join(draw.choices(parts, k=draw.randrange(20))) for _ in range(5000)]
  texts += [''.join(draw.choice(draw.choice((known, parts))) for _ in range(10)) for _ in range(1000)]
  for text, ids in zip(texts, map(tokenizer.encode, texts), strict=True):
    assert ids.tolist() == reference(text), ascii(text)
    assert ids.tolist() == tokenizer.encode(text).tolist()


def test_every_code_point_is_split_as_by_fairseq(small):
  """What a match contains depends on whether a character is a letter, a number, white space or something else."""
  split = library_of(small[0]).pre_tokenizer.pre_tokenize_str
  current = all(regex.match(r'[\p{L}\p{N}]', new) for new in '\u0c5c\U00011de0\u0558\U00012550')  # Unicode 17 and 18
  codes = [*range(0xD800), *range(0xE000, 0x40000), *range(0x40000, 0x110000, 61)]  # the rest is unassigned or private
  for block in range(0, len(codes), 1024):
    characters = map(chr, codes[block : block + 1024])
    text = ''.join(f'a{c}1{c}\n' for c in characters if current or unicodedata.category(c) != 'Cn')
    found, expected = [span for _, span in split(text)], [match.span() for match in PATTERN.finditer(text)]
    assert found == expected, {text[start:end] for start, end in set(found) ^ set(expected)}


def test_order_without_dictionary(tmp_path):
  reference = write_files(tmp_path)
  tokenizer = read_tokenizer(str(tmp_path))
  assert tokenizer.size == 4 + 256 + len(MERGES) + 1 + 1
  assert tokenizer.encode('!').tolist() == [4] and tokenizer.token(tokenizer.size - 1) == '<mask>'
  for text in HARD:
    assert tokenizer.encode(text).tolist() == reference(text)


def test_entries_that_dict_lacks_are_unknown(small):
  tokenizer, _ = small
  assert tokenizer.size == 4 + (256 + len(MERGES) + 1 - 2) + 2 + 1
  # ' the' is merged though it has no id, and so is what goes on from there.
  assert tokenizer.encode('b the').tolist() == [UNK, UNK]
  assert tokenizer.encode_with_offsets('b the')[0].tolist() == [UNK, UNK]
  assert (tokenizer.token(104), tokenizer.token(tokenizer.size - 2)) == ('madeupword0000', 'madeupword0001')


def test_bytes_that_encoder_lacks_are_unknown(tmp_path):
  (tmp_path / 'encoder.json').write_text('{"a": 0, "b": 1, "ab": 2}')
  (tmp_path / 'vocab.bpe').write_text('#version: 0.2\na b\n')
  ids, offsets = read_tokenizer(tmp_path).encode_with_offsets('abcé')
  assert ids.tolist() == [6, UNK, UNK, UNK]
  assert offsets.tolist() == [[0, 2], [2, 3], [3, 4], [3, 4]]


def test_special_symbols_never_come_from_text(both):
  tokenizer, _ = both
  ids = tokenizer.encode('<s><pad></s><unk><mask> <mask> madeupword0000 <|endoftext|>')
  fillers = [id_ for id_ in range(tokenizer.size) if tokenizer.token(id_).startswith('madeupword')]
  assert len(fillers) in (2, 3)
  assert ids.min() > UNK and ids.max() < tokenizer.size - 1 and not set(ids.tolist()) & set(fillers)


# Offsets, and text again.


@pytest.mark.parametrize('text', [*HARD, ''], ids=range(len(HARD) + 1))
def test_offsets(both, text):
  tokenizer, reference = both
  ids, offsets = tokenizer.encode_with_offsets(text)
  assert ids.tolist() == reference(text)
  assert offsets.dtype == np.int64 and offsets.shape == (len(ids), 2)
  # Each token covers the characters that its bytes are of.
  of_byte = [index for index, character in enumerate(text) for _ in character.encode()]
  tokens = [token for word in PATTERN.findall(text) for token in reference._tokens(word)]
  starts = np.cumsum([0, *map(len, tokens)])
  assert offsets.tolist() == [[of_byte[start], of_byte[end - 1] + 1] for start, end in itertools.pairwise(starts)]


def test_offsets_of_parts_of_characters(small):
  _, offsets = small[0].encode_with_offsets('é 👍 e\u0301')
  # é, the space, two parts of 👍 and then each byte of ' e' and the accent
  assert offsets.tolist() == [[0, 1], [1, 2], [2, 3], [2, 3], [3, 4], [4, 5], [5, 6], [5, 6]]


@pytest.mark.parametrize('text', [*HARD, '', ' \x1c\t'], ids=range(len(HARD) + 2))
def test_texts_between_special_symbols(small, text):
  """White space at the ends is left out, and offsets are those in the whole text."""
  tokenizer, second = small[0], '\u3000b é\n'
  own, spans = tokenizer.encode_with_offsets(text.strip())
  spans = (spans + len(text) - len(text.lstrip())).tolist()
  ids, offsets = tokenizer.encode_framed(text)
  assert ids.dtype == np.int32 and offsets.dtype == np.int64
  assert ids.tolist() == [BOS, *own, EOS] and offsets.tolist() == [[0, 0], *spans, [0, 0]]
  other = tokenizer.encode('b é').tolist()
  ids, offsets = tokenizer.encode_framed(text, second)
  assert ids.tolist() == [BOS, *own, EOS, EOS, *other, EOS]
  assert offsets[: len(own) + 3].tolist() == [[0, 0], *spans, [0, 0], [0, 0]]
  assert offsets[len(own) + 3 :].tolist() == [[1, 2], [2, 3], [3, 4], [0, 0]]
  ids, offsets = tokenizer.encode_framed(second, text)
  assert ids.tolist() == [BOS, *other, EOS, EOS, *own, EOS] and offsets[7 - 1 :].tolist() == [*spans, [0, 0]]


def test_texts_in_one_array():
  rows = [np.array([5, 6], np.int32), np.array([7], np.int32), np.array([], np.int32)]
  for length, rest in ((None, []), (4, [PAD, PAD])):
    tokens, lengths = module.padded(rows, length)
    assert tokens.dtype == lengths.dtype == np.int32 and lengths.tolist() == [2, 1, 0]
    assert tokens.tolist() == [[5, 6, *rest], [7, PAD, *rest], [PAD, PAD, *rest]]


@pytest.mark.parametrize('text', HARD, ids=range(len(HARD)))
def test_decode_undoes_encode(both, text):
  tokenizer, _ = both
  text = text.replace('b', 'c').replace(' the', ' teh')  # which the small one lacks
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert tokenizer.decode([BOS, PAD, *ids.tolist(), UNK, EOS, tokenizer.size - 1]) == text
  assert tokenizer.decode(tokenizer.encode('é 👍')[:-1]).endswith('\ufffd')
  assert tokenizer.decode([]) == ''


def test_tokens_to_look_at(small):
  tokenizer, _ = small
  looks = lambda text: [tokenizer.token(id_) for id_ in tokenizer.encode(text)]
  assert looks(' and\x1céa\n\n') == [' and', '\\x1c', 'é', 'a', '\\n\\n']
  assert looks('👍') == ['\ufffd', '\ufffd']


# Long text.


@pytest.mark.parametrize('length', [1, 7, 100])
def test_cutting_changes_nothing(both, monkeypatch, length):
  tokenizer, reference = both
  draw = random.Random(length)
  text = ''.join(''.join(draw.sample(HARD, len(HARD))) + draw.choice(['', ' ', '\xa0 ', ' \x1c', '\n']) for _ in range(20))
  whole = tokenizer.encode_with_offsets(text)
  assert whole[0].tolist() == reference(text)
  monkeypatch.setattr(module, '_PIECE', length)
  assert len(list(module._pieces(text))) > len(text) / (length + 150)
  for found, expected in zip(tokenizer.encode_with_offsets(text), whole, strict=True):
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('character', ['a', ' ', '中'])
def test_too_long_without_a_place_to_cut(small, character):
  stretch = character * (17_000_000 // len(character.encode()))
  for function in (small[0].encode, small[0].encode_with_offsets, lambda text: train_tokenizer([text], 300)):
    with pytest.raises(ValueError, match=r'17\.0 MB in one stretch, without white space .* at most 16 MB'):
      function('some words before ' + stretch + ' and after')


def test_long_stretches_are_allowed_where_they_can_be_cut(small, monkeypatch):
  monkeypatch.setattr(module, '_LONGEST_STRETCH', 100)
  monkeypatch.setattr(module, '_PIECE', 150)
  text = ' '.join(['x' * 90] * 10)
  assert small[0].decode(small[0].encode(text)) == text
  with pytest.raises(ValueError, match='in one stretch'):
    small[0].encode(text + 'x' * 20)


@pytest.mark.slow
@needs_gpt2
def test_line_of_50_megabytes():
  """Takes little memory beyond the text, its ids and the words known."""
  program = (
    'import resource\n'
    'from d2v_jax.data.tokenizer import read_tokenizer\n'
    f'tokenizer = read_tokenizer({str(GPT2)!r})\n'
    'line = " ".join(f"word{number}, é {number % 977}" for number in range(200_000)) * 16\n'
    'before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
    'ids = tokenizer.encode(line)\n'
    'print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, len(line.encode()), len(ids))\n'
  )
  megabytes, size, tokens = map(float, run(program).split())
  assert megabytes < 500 and size > 50e6 and tokens > 10e6


def test_characters_that_are_not_unicode_are_refused(small):
  for function in (small[0].encode, small[0].encode_with_offsets):
    with pytest.raises(ValueError, match='surrogates not allowed'):
      function('a\ud800b')


# Saved, sent and compared.


def test_saved_tokenizer_is_the_same(both):
  tokenizer, _ = both
  copies = [Tokenizer.from_text(tokenizer.to_text()), pickle.loads(pickle.dumps(tokenizer))]
  for copy in copies:
    assert (copy.size, copy.fingerprint, copy.to_text()) == (tokenizer.size, tokenizer.fingerprint, tokenizer.to_text())
    for text in HARD:
      np.testing.assert_array_equal(copy.encode(text), tokenizer.encode(text))


def test_library_reads_what_is_saved(tmp_path):
  write_files(tmp_path, dictionary=[*shuffled_ids(), 'madeupword0000'])
  tokenizer = read_tokenizer(tmp_path)
  library = library_of(tokenizer)
  for text in HARD:
    assert library.encode(text).ids == tokenizer.encode(text).tolist()
    assert library.decode(library.encode(text).ids) == text
  assert library.get_vocab_size() == tokenizer.size and library.token_to_id('<mask>') == tokenizer.size - 1


def test_what_is_known_does_not_travel(small):
  before = len(pickle.dumps(small[0]))
  small[0].encode(' '.join(map(str, range(2000))))
  assert len(pickle.dumps(small[0])) == before


def test_known_words_are_bounded(small, monkeypatch):
  monkeypatch.setattr(module, '_MOST_KNOWN', 50)
  copy = pickle.loads(pickle.dumps(small[0]))
  text = ' '.join(map(str, range(1000))) + 'x' * 1000
  np.testing.assert_array_equal(copy.encode(text), small[0].encode(text))
  assert len(copy._known) <= 50 and max(map(len, copy._known)) <= 64


def test_fingerprint_follows_the_ids(tmp_path):
  def fingerprint(merges=MERGES, dictionary=None):
    write_files(tmp_path, merges, dictionary)
    found = read_tokenizer(tmp_path).fingerprint
    (tmp_path / 'dict.txt').unlink(missing_ok=True)
    return found

  ids = [str(id_) for id_ in range(256 + len(MERGES) + 1)]
  plain = fingerprint()
  assert plain == fingerprint(dictionary=ids)  # the same ids
  others = {
    fingerprint(MERGES[:-1]),
    fingerprint(dictionary=[ids[1], ids[0], *ids[2:]]),
    fingerprint(dictionary=ids[:-1]),
    fingerprint(dictionary=[*ids, 'madeupword0000']),
  }
  assert len(others) == 4 and plain not in others
  write_files(tmp_path)
  (tmp_path / 'vocab.bpe').write_text('\n'.join(['#version: 0.2', MERGES[1], MERGES[0], *MERGES[2:]]))
  assert read_tokenizer(tmp_path).fingerprint != plain
  # The same words in another process, and whatever order Python's hashes give.
  write_files(tmp_path)
  program = f'from d2v_jax.data.tokenizer import read_tokenizer; print(read_tokenizer({str(tmp_path)!r}).fingerprint)'
  assert {run(program, seed) for seed in ('1', '2')} == {plain}


def run(program, seed='0'):
  environment = os.environ | {'PYTHONHASHSEED': seed}
  done = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True, check=True)
  return done.stdout.strip()


def test_read_saved(tmp_path, small):
  tokenizer, _ = small
  (tmp_path / 'tokenizer.json').write_text(tokenizer.to_text())
  for path in (tmp_path, tmp_path / 'tokenizer.json'):
    assert read_tokenizer(path).fingerprint == tokenizer.fingerprint


ADDED = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False) | {'special': True}


def foreign(small, **changes):
  """A tokenizer.json as other programs write it for RoBERTa: with added tokens and the library's own split."""
  content = json.loads(small[0].to_text())
  model = content['model']
  model['vocab'] = {token: id_ for token, id_ in model['vocab'].items() if id_ < small[0].size}
  model['merges'] = [' '.join(pair) for pair in model['merges'] if ''.join(pair) in model['vocab']]
  content['added_tokens'] = [ADDED | {'id': small[0].size - 1, 'content': '<mask>', 'lstrip': True}]
  content['pre_tokenizer'] = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True}
  content['post_processor'] = {'type': 'RobertaProcessing', 'sep': ['</s>', 2], 'cls': ['<s>', 0]}
  content['post_processor'] |= {'trim_offsets': True, 'add_prefix_space': False}
  for key, value in changes.items():
    (model if key in model else content)[key] = value
  return json.dumps(content)


def test_tokenizers_of_other_programs(small):
  tokenizer = Tokenizer.from_text(foreign(small))
  assert tokenizer.size == small[0].size
  assert tokenizer.encode('caf <mask>').tolist() == small[0].encode('caf <mask>').tolist()


@pytest.mark.parametrize(
  ('changes', 'reason'),
  [
    ({'normalizer': {'type': 'Lowercase'}}, 'without normalizer'),
    ({'pre_tokenizer': {'type': 'Whitespace'}}, 'splits text as GPT-2'),
    ({'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True}}, 'splits text as GPT-2'),
    ({'ignore_merges': True}, 'byte-level BPE'),
    ({'vocab': {'<s>': 0, '<pad>': 1, '</s>': 2, '<unk>': 3, '<mask>': 4, 'a': 5}, 'merges': []}, 'order of fairseq'),
    ({'vocab': {'<pad>': 0, '<s>': 1, '</s>': 2, '<unk>': 3, 'a': 4, '<mask>': 5}, 'merges': []}, 'order of fairseq'),
    ({'vocab': {'<s>': 0, '<pad>': 1, '</s>': 2, '<unk>': 3, 'a': 5, '<mask>': 6}, 'merges': []}, 'order of fairseq'),
    ({'vocab': {}, 'merges': [], 'added_tokens': []}, 'order of fairseq'),
    ({'added_tokens': [ADDED | {'id': 5000, 'content': '<new>'}]}, 'order of fairseq'),
    ({'merges': ['nothing like_this']}, 'no tokenizer in the format'),
  ],
)
def test_other_tokenizers_are_refused(small, tmp_path, changes, reason):
  (tmp_path / 'tokenizer.json').write_text(foreign(small, **changes))
  message = message_of(tmp_path)
  assert reason in message and str(tmp_path / 'tokenizer.json') in message


# Training.


TEXTS = [f'The {animal} said to the {other}: "it\'s <unk> and <mask>, madeupword0000!"\n\n  Él — 中文 👍.' * 3
         for animal, other in itertools.product(['fox', 'goose', 'hen', 'lion'], repeat=2)]  # fmt: skip


def test_training():
  tokenizer = train_tokenizer(iter(TEXTS), 500)
  assert tokenizer.size == 500
  tokens = [library_of(tokenizer).id_to_token(id_) for id_ in range(500)]
  assert len(set(tokens)) == 500 and set(SYMBOLS.values()) <= set(tokens)
  assert tokens[:4] == ['<s>', '<pad>', '</s>', '<unk>'] and tokens[-1] == '<mask>'
  assert ' goose' in map(tokenizer.token, range(500))
  fillers = [token for token in tokens if token.startswith('madeupword0')]
  assert fillers == [f'madeupword{number:04d}' for number in range(len(fillers))] and fillers
  for text in [*TEXTS, *HARD]:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and set(map(tokenizer.token, ids)).isdisjoint({*tokens[:4], '<mask>', *fillers})
  assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0]) / 3
  assert len(train_tokenizer(['seen once'], 300).encode('seen once')) == 9  # what comes once is not worth a token
  smallest = train_tokenizer(TEXTS, 261)
  assert smallest.size == 261 and len(smallest.encode('the é')) == 6


def test_training_is_deterministic():
  program = f'from d2v_jax.data.tokenizer import train_tokenizer; print(train_tokenizer({TEXTS!r}, 450).fingerprint)'
  trained = train_tokenizer(TEXTS, 450)
  assert {run(program, seed) for seed in ('1', '2')} == {trained.fingerprint}
  assert Tokenizer.from_text(trained.to_text()).fingerprint == trained.fingerprint
  assert train_tokenizer(TEXTS[:5], 450).fingerprint != trained.fingerprint


def test_training_needs_room_for_bytes():
  with pytest.raises(InputError, match=r'config\.model\.vocab_size: 260: .* at least 261'):
    train_tokenizer(TEXTS, 260)


# Mistakes in files.


def test_missing_files(tmp_path):
  assert str(tmp_path / 'none') in message_of(tmp_path / 'none')
  assert str(tmp_path) in message_of(tmp_path) and 'encoder.json and vocab.bpe nor tokenizer.json' in message_of(tmp_path)
  write_files(tmp_path)
  for name in ('encoder.json', 'vocab.bpe'):
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    assert f'{tmp_path / name}: cannot be read: No such file' in message_of(tmp_path)
    (tmp_path / name).write_bytes(content)
  assert 'encoder.json: no tokenizer in the format' in message_of(tmp_path / 'encoder.json')


@pytest.mark.parametrize('name', ['encoder.json', 'vocab.bpe', 'dict.txt'])
def test_files_that_are_not_utf8(tmp_path, name):
  write_files(tmp_path, dictionary=shuffled_ids())
  (tmp_path / name).write_bytes('schön'.encode('latin-1'))
  assert f'{tmp_path / name}: is not UTF-8 (byte 3)' in message_of(tmp_path)


@pytest.mark.parametrize(
  ('content', 'reason'),
  [
    ('', 'is not a JSON object'),
    ('{"a": 0', 'is not a JSON object'),
    ('["a", "b"]', 'is not a JSON object'),
    ('{}', 'is not a JSON object'),
    ('{"a": "0"}', 'whole numbers'),
    ('{"a": true}', 'whole numbers'),
    ('{"a": 0.5}', 'whole numbers'),
    ('{"a": -1}', 'whole numbers'),
    ('{"a": 0, "b": 0}', 'same id'),
    ('{"a": 0, "a": 1}', 'comes twice'),
    ('{"<s>": 0, "a": 1}', "'<s>' is a symbol of fairseq"),
    ('{"madeupword0000": 0, "a": 1}', 'symbol of fairseq'),
  ],
)
def test_bad_encoder(tmp_path, content, reason):
  write_files(tmp_path)
  (tmp_path / 'encoder.json').write_text(content)
  message = message_of(tmp_path)
  assert f'{tmp_path / "encoder.json"}: ' in message and reason in message


@pytest.mark.parametrize(
  ('content', 'reason'),
  [
    ('', 'line 1: '),
    ('h e\n', "line 1: 'h e', not '#version"),
    ('#version: 0.2\nh e\nhe\n', "line 3: 'he' is not two tokens"),
    ('#version: 0.2\nh e r\n', 'line 2: '),
    ('#version: 0.2\nh e\n\ni n\n', "line 3: '' is not two"),
    ('#version: 0.2\nh\te\n', 'line 2: '),
    ('#version: 0.2\nh q\n', "line 2: 'h q' needs the token 'hq'"),
    ('#version: 0.2\nh e\nh e\n', "line 3: 'h e' comes twice"),
    ('#version: 0.2\nĠt he\nh e\n', "line 3: 'h e' makes 'he', which a line before it merges already"),
  ],
)
def test_bad_merges(tmp_path, content, reason):
  write_files(tmp_path)
  (tmp_path / 'vocab.bpe').write_text(content)
  message = message_of(tmp_path)
  assert f'{tmp_path / "vocab.bpe"}: ' in message and reason in message


@pytest.mark.parametrize(
  ('content', 'reason'),
  [
    ('', 'line 1: '),
    ('e 12\nt 11\n', "line 1: 'e' is no id of encoder.json"),
    ('1 12\n99999 1\n', "line 2: '99999' is no id"),
    ('1 12\n01 1\n', "line 2: '01' is no id"),
    ('1 12\n<mask> 1\n', "line 2: '<mask>' is no id"),
    ('1 12\n2\n', "line 2: '2' is not an id of encoder.json and its count"),
    ('1 12\n2 many\n', 'line 2: '),
    ('1 12\n\n2 1\n', 'line 2: '),
    ('1 12\n2 11\n1 10\n', "line 3: '1' comes twice"),
    ('madeupword0000 0\nmadeupword0000 0\n', "line 2: 'madeupword0000' comes twice"),
  ],
)
def test_bad_dictionary(tmp_path, content, reason):
  write_files(tmp_path)
  (tmp_path / 'dict.txt').write_text(content)
  message = message_of(tmp_path)
  assert f'{tmp_path / "dict.txt"}: ' in message and reason in message
