"""Tables of sentences: what their rows become, what is refused and by which line, and GLUE's own files."""

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from d2v_jax.config import default_config
from d2v_jax.data.sentences import open_table, open_tests, open_unlabelled
from d2v_jax.data.sources import _take
from d2v_jax.data.tokenizer import BOS, EOS, train_tokenizer
from d2v_jax.errors import InputError

GLUE = Path(os.environ.get('D2V_DATA_DIR', Path(__file__).parents[3] / 'shared' / 'data')) / 'text' / 'glue'


class Letters:
  """A tokenizer whose tokens are characters: 4 + code point."""

  def encode(self, text):
    if text == 'much too long':
      raise ValueError('is too long')
    return np.array([4 + ord(letter) for letter in text], np.int32)

  def decode(self, ids):
    return ''.join({0: '<s>', 2: '</s>'}.get(id_) or chr(id_ - 4) for id_ in ids.tolist())


def config_of(place, kind='classification', max_positions=512, **data):
  config = default_config('text', 'sentence')
  config.data.update({'source': f'tsv:{place}', **data})
  config.sentence.kind, config.model.max_positions = kind, max_positions
  return config


def opened(place, split='train', **options):
  return open_table(config_of(place, **options), split, Letters())


def message_of(place, split='train', open_=open_table, **options):
  with pytest.raises(InputError) as error:
    if open_ is open_table:
      opened(place, split, **options)
    else:
      open_(config_of(place, **options), Letters())
  assert '\n' not in str(error.value)
  return str(error.value)


def write(path, *rows, header='sentence\tlabel', end='\n'):
  path.write_bytes(end.join([*([header] if header else []), *rows, '']).encode())
  return path


def decoded(table):
  return [table.tokenizer.decode(table.read(index)['tokens']) for index in range(len(table))]


def labels_of(table):
  return [table.read(index)['label'] for index in range(len(table))]


PAIR = {'text_columns': ('a', 'b'), 'label_column': 'y'}


# Rows


def test_single_sentences(tmp_path):
  write(tmp_path / 'train.tsv', 'a bad film \t0', 'Fine.\t1', '\t0')
  write(tmp_path / 'dev.tsv', '1\tgood', header='label\tsentence')
  train, dev = opened(tmp_path), opened(tmp_path, 'test')
  assert decoded(train) == ['<s>a bad film</s>', '<s>Fine.</s>', '<s></s>'] and decoded(dev) == ['<s>good</s>']
  assert labels_of(train) == [0, 1, 0] and labels_of(dev) == [1]
  assert train.labels == train.classes == dev.labels == ('0', '1')
  assert [train.texts(index) for index in range(3)] == [('a bad film ',), ('Fine.',), ('',)]
  assert train.name(0) == f'{tmp_path}/train.tsv:2' and dev.name(0) == f'{tmp_path}/dev.tsv:2'
  assert train.lengths.dtype == np.int64 and list(train.lengths) == [12, 7, 2]
  assert train.cut == 0 and len(train) == 3
  example = train.read(1)
  assert example['tokens'].dtype == np.int32 and type(example['label']) is int


def test_pairs_in_columns_of_any_order(tmp_path):
  write(tmp_path / 'train.tsv', 'x\tyes\tsecond\tfirst', 'x\tno\t\tß', header='id\ty\tb\ta')
  table = opened(tmp_path / 'train.tsv', **PAIR)
  assert decoded(table) == ['<s>first</s></s>second</s>', '<s>ß</s></s></s>']
  assert table.texts(0) == ('first', 'second') and labels_of(table) == [1, 0] and table.labels == ('no', 'yes')


def test_without_a_header_columns_are_numbers(tmp_path):
  write(tmp_path / 'train.tsv', 'gj04\t1\t\tIt is.', 'gj04\t0\t*\tIs it', 'x\t0\t\tIs', 'x\t1\t\tIt', header='')
  table = opened(tmp_path, header=False, text_columns=('3',), label_column='1')
  assert decoded(table)[:2] == ['<s>It is.</s>', '<s>Is it</s>'] and labels_of(table) == [1, 0, 0, 1]
  assert table.name(0) == f'{tmp_path}/train.tsv:1'


def test_regression(tmp_path):
  write(tmp_path / 'train.tsv', 'a\t3.6', 'b\t0', 'c\t-1e-3')
  table = opened(tmp_path, kind='regression')
  assert table.labels == table.classes == ()
  labels = labels_of(table)
  assert labels == [np.float32(3.6), 0, np.float32(-1e-3)] and {label.dtype for label in labels} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
  'labels, expected',
  [
    (['10', '9', '-1', '+2'], ('-1', '+2', '9', '10')),
    (['10', '9', 'x'], ('10', '9', 'x')),
    (['1.0', '0.5'], ('0.5', '1.0')),
    (['1', '01', '0'], ('0', '01', '1')),
    (['entailment', 'Neutral', 'é'], ('Neutral', 'entailment', 'é')),
  ],
)
def test_order_of_labels(tmp_path, labels, expected):
  write(tmp_path / 'train.tsv', *(f'text\t{label}' for label in labels * 2))
  table = opened(tmp_path)
  assert table.labels == expected
  assert [table.labels[label] for label in labels_of(table)] == labels * 2


def test_only_line_feeds_end_lines_and_quotes_are_text(tmp_path):
  texts = ['"a lone quote', "it''s", 'b\x0bc\x0cd\x1ce\x85f\u2028g\u2029h\ri', 'ends in \u3000', '\ufeffno mark here']
  rows = [f'{text}\t{number % 2}' for number, text in enumerate(texts)]
  for end in ('\n', '\r\n'):
    write(tmp_path / 'train.tsv', *rows, end=end)
    for content in ((tmp_path / 'train.tsv').read_bytes(), (tmp_path / 'train.tsv').read_bytes().removesuffix(end.encode())):
      (tmp_path / 'train.tsv').write_bytes(b'\xef\xbb\xbf' + content)
      table = opened(tmp_path)
      assert [table.texts(index)[0] for index in range(len(table))] == texts
      assert decoded(table) == [f'<s>{text.strip()}</s>' for text in texts] and table.labels == ('0', '1')


@pytest.mark.parametrize(
  'first, second, limit, kept',
  [
    (3, 4, 11, (3, 4)),
    (9, 2, 11, (5, 2)),
    (2, 9, 11, (2, 5)),
    (9, 8, 11, (4, 3)),
    (5, 4, 11, (4, 3)),
    (4, 4, 11, (4, 3)),
    (4, 9, 12, (4, 4)),
    (3, 9, 11, (3, 4)),
    (0, 9, 11, (0, 7)),
    (9, 0, 10, (6, 0)),
  ],
)
def test_long_pairs_lose_the_end_of_the_longer_side(tmp_path, first, second, limit, kept):
  a, b = 'abcdefghi'[:first], 'ABCDEFGHI'[:second]
  write(tmp_path / 'train.tsv', f'{a}\t{b}\t0', 'x\ty\t1', header='a\tb\ty')
  table = opened(tmp_path, max_positions=limit, **PAIR)
  assert decoded(table)[0] == f'<s>{a[: kept[0]]}</s></s>{b[: kept[1]]}</s>'
  assert table.texts(0) == (a, b) and table.lengths[0] <= limit and table.cut == (first + second + 4 > limit)


def test_what_is_cut_is_counted_and_warned_of_once(tmp_path, caplog):
  write(tmp_path / 'train.tsv', 'abcdef\t0', 'abc\t1', 'abcd\t0', 'abcdefghi\t1')
  table = opened(tmp_path, max_positions=6)
  assert decoded(table) == ['<s>abcd</s>', '<s>abc</s>', '<s>abcd</s>', '<s>abcd</s>'] and table.cut == 2
  warnings = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
  assert len(warnings) == 1 and '2 of 4 rows' in warnings[0] and 'config.model.max_positions' in warnings[0]
  assert table.take([1, 3]).cut == 1
  assert list(opened(tmp_path, bucket_tokens=(4, 7)).lengths) == [7, 5, 6, 7]  # nothing is longer than a batch


def test_many_rows_and_parts_of_them(tmp_path):
  """More rows than are tokenized at once, of all lengths; and a part keeps what belongs to each row."""
  rng = np.random.default_rng(0)
  pairs = [('x' * rng.integers(30), 'y' * rng.integers(30)) for _ in range(20_000)]
  labels = rng.integers(2, size=len(pairs))
  write(tmp_path / 'train.tsv', *(f'{a}\t{b}\t{y}' for (a, b), y in zip(pairs, labels)), header='a\tb\ty')
  table = opened(tmp_path, **PAIR)
  expected = [f'<s>{a}</s></s>{b}</s>' for a, b in pairs]
  assert decoded(table) == expected and list(table.lengths) == [len(a) + len(b) + 4 for a, b in pairs]
  chosen = rng.permutation(len(pairs))[:500]
  part = pickle.loads(pickle.dumps(_take(table, chosen)))
  assert len(part) == 500 and decoded(part) == [expected[index] for index in chosen]
  assert list(part.lengths) == list(table.lengths[chosen]) and labels_of(part) == list(labels[chosen])
  assert [part.texts(index) for index in range(500)] == [pairs[index] for index in chosen]
  assert part.name(7) == f'{tmp_path}/train.tsv:{chosen[7] + 2}' and part.labels == table.labels
  assert list(part.take(part.lengths > 40).lengths) == [length for length in part.lengths if length > 40]


class Constant:
  def encode(self, text):
    return np.full(15, 9, np.int32)


def test_400_000_rows_take_seconds_and_little_room(tmp_path):
  (tmp_path / 'train.tsv').write_text('a\tb\ty\n' + 'How do I learn it?\tIs it hard to learn?\t0\nWhy?\tWho?\t1\n' * 200_000)
  start = time.perf_counter()
  table = open_table(config_of(tmp_path, **PAIR), 'train', Constant())
  content = pickle.dumps(table)
  assert time.perf_counter() - start < 20 and len(table) == 400_000
  assert len(content) < 400_000 * (34 * 4 + 80)


# Several files


def test_test_parts_and_their_labels(tmp_path):
  write(tmp_path / 'train.tsv', 'a\tno', 'b\tyes', 'c\tmaybe')
  write(tmp_path / 'dev.tsv', 'd\tyes')
  write(tmp_path / 'dev_mismatched.tsv', 'e\tno', 'f\tmaybe')
  tests = open_tests(config_of(tmp_path, test_files=('dev.tsv', 'dev_mismatched.tsv')), Letters())
  assert list(tests) == ['dev', 'dev_mismatched'] and decoded(tests['dev_mismatched']) == ['<s>e</s>', '<s>f</s>']
  assert labels_of(tests['dev']) == [2] and labels_of(tests['dev_mismatched']) == [1, 0]
  assert {table.labels for table in tests.values()} == {('maybe', 'no', 'yes')}
  first = opened(tmp_path, 'test', test_files=('dev_mismatched.tsv', 'dev.tsv'))
  assert first.name(0) == f'{tmp_path}/dev_mismatched.tsv:2'
  write(tmp_path / 'dev.tsv', 'd\tno', 'd\tYes')
  message = message_of(tmp_path, 'test')
  assert message.startswith(f'{tmp_path}/dev.tsv:3: ') and "'Yes'" in message and "'maybe', 'no', 'yes'" in message
  assert message_of(tmp_path, open_=open_tests) == message
  assert 'config.data.test_files' in message_of(tmp_path, open_=open_tests, test_files=('dev.tsv', 'more/dev.tsv'))


def test_without_labels(tmp_path):
  write(tmp_path / 'train.tsv', 'a\tno', 'b\tyes')
  write(tmp_path / 'test.tsv', '0\tc', '1\td', header='index\tsentence')
  for place in (tmp_path, tmp_path / 'train.tsv'):
    assert open_unlabelled(config_of(place), Letters()) is None
    table = open_unlabelled(config_of(place, predict_file='test.tsv'), Letters())
    assert decoded(table) == ['<s>c</s>', '<s>d</s>'] and labels_of(table) == [-1, -1] and table.labels == ()
  table = open_unlabelled(config_of(tmp_path, kind='regression', predict_file='test.tsv'), Letters())
  assert np.isnan(labels_of(table)).all() and table.read(0)['label'].dtype == np.float32
  (tmp_path / 'lines.txt').write_text('one\n\nthree\n')  # one column: an empty line is an empty text
  lines = {'predict_file': 'lines.txt', 'header': False, 'text_columns': ('0',)}
  assert decoded(open_unlabelled(config_of(tmp_path, **lines), Letters())) == ['<s>one</s>', '<s></s>', '<s>three</s>']


def test_a_file_has_no_test_part(tmp_path):
  write(tmp_path / 'train.tsv', 'a\tno', 'b\tyes')
  write(tmp_path / 'dev.tsv', 'a\tno')
  for place, options in ((tmp_path / 'train.tsv', {}), (tmp_path, {'test_files': ()})):
    for open_ in (open_table, open_tests):
      assert 'config.data.holdout' in message_of(place, 'test', open_, **options)


# What is refused


def test_missing_files(tmp_path):
  write(tmp_path / 'trian.tsv', 'a\t0')
  write(tmp_path / 'readme.txt')
  (tmp_path / 'train').mkdir()
  holds = "holds 'readme.txt', 'train', 'trian.tsv'"
  message = message_of(tmp_path)
  assert message.startswith(f'config.data.train_file: {tmp_path}/train.tsv does not exist') and holds in message
  message = message_of(tmp_path / 'train.tsv')
  assert message.startswith(f'config.data.source: {tmp_path}/train.tsv does not exist') and holds in message
  assert 'is not a file' in message_of(tmp_path, train_file='train') and holds in message_of(tmp_path, train_file='train')
  message = message_of(tmp_path, 'test', train_file='trian.tsv', kind='regression')
  assert message.startswith(f'config.data.test_files: {tmp_path}/dev.tsv does not exist') and holds in message
  message = message_of(tmp_path, open_=open_unlabelled, predict_file='none/test.tsv')
  assert 'config.data.predict_file' in message and f'{tmp_path}/none does not exist either' in message
  assert "holds 'x00.tsv'" in message_of(tmp_path / 'many' / 'y', **many_files(tmp_path / 'many')) and 'and 10 more' in (
    message_of(tmp_path / 'many' / 'y')
  )


def many_files(folder):
  folder.mkdir()
  for number in range(30):
    write(folder / f'x{number:02}.tsv')
  return {}


@pytest.mark.parametrize(
  'options, expected',
  [
    ({'text_columns': ('sentense',)}, ['config.data.text_columns', "'sentense'", "'sentence', 'label'", 'did you mean']),
    ({'label_column': 'score'}, ['config.data.label_column', "'score'", "'sentence', 'label'"]),
    ({'text_columns': ('0',)}, ['config.data.text_columns', "'0'", 'by the first line']),
    ({'header': False}, ['config.data.label_column', "'label'", "by number, as config.data.header=False, '0', '1'"]),
    ({'header': False, 'label_column': '1'}, ['config.data.text_columns', "'sentence'", 'by number, as config.data.header']),
    ({'header': False, 'label_column': '1', 'text_columns': ('2',)}, ["'2'", "'0', '1'"]),
    ({'text_columns': ('sentence', 'sentence2')}, ["only 'sentence' of the pair ('sentence', 'sentence2')", "'label'"]),
    ({'text_columns': ('sentence1', 'sentence2')}, ["'sentence1'"]),
  ],
)
def test_missing_columns(tmp_path, options, expected):
  path = write(tmp_path / 'train.tsv', 'a\t0', 'b\t1')
  message = message_of(tmp_path, **options)
  assert all(part in message for part in [*expected, str(path)])


def test_a_column_twice(tmp_path):
  write(tmp_path / 'train.tsv', 'a\tb\t1', 'a\tb\t0', header='sentence\tsentence\tlabel')
  assert "2 columns 'sentence'" in message_of(tmp_path)


@pytest.mark.parametrize(
  'rows, line, found',
  [
    (['a\t0', 'b', 'c\t1'], 3, 'found 1 columns, needed 2 as in line 1; 1 of 3 rows'),
    (['a\t0', 'b\tc\t1', 'c\t1', 'd'], 3, 'found 3 columns, needed 2 as in line 1; 2 of 4 rows'),
    (['a\t0', 'c\t1', '', ''], 4, 'found 1 columns, needed 2'),
    (['a\t0', 'c\t1\t'], 3, 'found 3 columns'),
  ],
)
def test_rows_of_the_wrong_width(tmp_path, rows, line, found):
  path = write(tmp_path / 'train.tsv', *rows)
  message = message_of(tmp_path)
  assert message.startswith(f'{path}:{line}: {found}') and "awk -F'\\t' 'NF == 2'" in message


@pytest.mark.parametrize('kind', ['classification', 'regression'])
@pytest.mark.parametrize('label', ['', ' '])
def test_empty_labels(tmp_path, kind, label):
  path = write(tmp_path / 'train.tsv', 'a\t0', f'b\t{label}', 'c\t1')
  assert message_of(tmp_path, kind=kind).startswith(f"{path}:3: the label (column 'label') is empty")


@pytest.mark.parametrize('label', ['nan', 'inf', '-Infinity', '1e39', 'good', '1,5'])
def test_labels_that_are_no_numbers(tmp_path, label):
  path = write(tmp_path / 'train.tsv', 'a\t0', f'b\t{label}', 'c\tnan')
  message = message_of(tmp_path, kind='regression')
  assert message.startswith(f'{path}:3: ') and repr(label) in message and 'finite number' in message


def test_one_class(tmp_path):
  write(tmp_path / 'train.tsv', 'a\tsame', 'b\tsame')
  assert "only the label 'same'" in message_of(tmp_path)


@pytest.mark.parametrize('content', [b'', b'\n', b'\xef\xbb\xbf', b'sentence\tlabel', b'sentence\tlabel\r\n'])
def test_empty_tables(tmp_path, content):
  (tmp_path / 'train.tsv').write_bytes(content)
  assert ('has no rows' if b'label' in content else 'is empty') in message_of(tmp_path)
  assert 'is empty' in message_of(tmp_path, header=False) or b'label' in content


def test_bytes_that_are_not_text(tmp_path):
  path = tmp_path / 'train.tsv'
  path.write_bytes(b'\xef\xbb\xbfsentence\tlabel\ncaf\xe9\t1\n')
  assert message_of(tmp_path).startswith(f'{path}:2: byte 0xe9 at offset 21 is not UTF-8')
  path.write_bytes(b'sentence\tlabel\n\xed\xa0\x80\t1\n')  # a lone surrogate
  assert f'{path}:2: byte 0xed at offset 15' in message_of(tmp_path)
  path.write_bytes(b'sentence\tlabel\na\0b\t1\n')
  assert f'{path}: NUL byte at offset 16' in message_of(tmp_path)
  path.write_bytes('sentence\tlabel\na\t1\n'.encode('utf-16'))
  assert 'UTF-16' in message_of(tmp_path)


def test_a_text_that_has_no_tokens_is_named(tmp_path):
  write(tmp_path / 'train.tsv', *['a\t0', 'b\t1'] * 6000, 'much too long\t0')
  assert message_of(tmp_path) == f'{tmp_path}/train.tsv:12002: is too long'


def test_a_header_read_as_a_row_is_warned_of(tmp_path, caplog):
  write(tmp_path / 'train.tsv', 'a\t0', 'b\t1', 'c\t0', 'd\t1')
  options = {'text_columns': ('0',), 'label_column': '1', 'header': False}
  assert opened(tmp_path, **options).labels == ('0', '1', 'label')
  assert 'config.data.header=True' in caplog.text
  caplog.clear()
  write(tmp_path / 'train.tsv', 'a\t0', 'b\t1', 'c\t0', header='')
  opened(tmp_path, **options)
  assert not caplog.text


def test_with_a_real_tokenizer(tmp_path):
  texts = ['It is.', ' it wasn\'t "so" ', '<s> é 漢', '']
  write(tmp_path / 'train.tsv', *(f'{text}\t{number % 2}' for number, text in enumerate(texts)))
  tokenizer = train_tokenizer(texts, 300)
  table = pickle.loads(pickle.dumps(open_table(config_of(tmp_path), 'train', tokenizer)))
  for index, text in enumerate(texts):
    tokens = table.read(index)['tokens']
    assert (tokens[0], tokens[-1]) == (BOS, EOS) and tokens[1:-1].tolist() == tokenizer.encode(text.strip()).tolist()
    assert table.tokenizer.decode(tokens) == text.strip()


# Real files, where they are.


@pytest.mark.skipif(not GLUE.is_dir(), reason=f'the optional data sets are not in {GLUE}')
@pytest.mark.parametrize(
  'task, counts, labels, options',
  [
    ('CoLA', (8551, 1043), ('0', '1'), {'header': False, 'text_columns': ('3',), 'label_column': '1'}),
    ('SST-2', (67_349, 872), ('0', '1'), {}),
    ('RTE', (1244, 139), ('entailment', 'not_entailment'), {'text_columns': ('sentence1', 'sentence2')}),
    (
      'STS-B',
      (3749, 1000),
      (),
      {'text_columns': ('sentence1', 'sentence2'), 'label_column': 'score', 'kind': 'regression'},
    ),
  ],
)
def test_glue(task, counts, labels, options, caplog):
  tables = [
    opened(GLUE / task, split, max_positions=2000, bucket_tokens=(64, 2000), **options) for split in ('train', 'test')
  ]
  assert tuple(map(len, tables)) == counts and not caplog.text
  for table in tables:
    assert table.labels == labels and 20 < table.lengths.mean() < 600
    found = np.array([table.read(index)['label'] for index in range(len(table))])
    assert (found >= 0).all() and found.max() == (len(labels) - 1 if labels else 5)
    for index in range(0, len(table), 97):
      assert all(text.strip() and '\t' not in text for text in table.texts(index))
  first = {
    'CoLA': ("Our friends won't buy this analysis, let alone the next one we propose.",),
    'SST-2': ('when are bears bears and ',),
    'STS-B': ('Two green and white trains sitting on the tracks.', 'Two green and white trains on tracks.'),
  }
  assert tables[0].texts(0) == first.get(task, tables[0].texts(0))
  if task == 'RTE':
    tests = open_tests(config_of(GLUE / task, test_files=('dev.tsv', 'test.tsv'), **options), Letters())
    assert [len(table) for table in tests.values()] == [139, 1384]
