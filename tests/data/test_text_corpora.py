"""Text on disk: sentences and documents are told apart right wherever it is cut; what is wrong is refused in one line."""

import json
import os
import pickle

import pytest

from d2v_jax.data import text_corpora
from d2v_jax.data.records import encode_features
from d2v_jax.data.text_corpora import Piece, open_corpora, pieces
from d2v_jax.errors import InputError
from tests.data.test_records import WRITERS, write_array_record

TEXT = '\ufeff\n  \n One  ends here. \r\nTwo naïve wörds\r\n\t\r\n\nÄ-word-that-is-cut 第一行 .\n\n\n  third document\nlast'
SENTENCES = 'One  ends here.|Two naïve wörds||Ä-word-that-is-cut 第一行 .||third document|last||'
WRAPPED = 'One  ends here. Two naïve wörds||Ä-word-that-is-cut 第一行 .||third document last||'


def spelled(found):
  """Pieces as one text, with a bar where a sentence ends, and one where a document does."""
  return ''.join(piece.text + '|' * (piece.ends_sentence + piece.ends_document) for piece in found)


def read(corpus, wrapped=False):
  return [piece for unit in corpus.units for piece in corpus.read(unit, wrapped)]


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def message_of(source):
  with pytest.raises(InputError) as error:
    for corpus in open_corpora(str(source)).values():
      read(corpus)
  assert '\n' not in str(error.value)
  return str(error.value)


# Sentences and documents.


def test_sentences_and_documents():
  text = TEXT.removeprefix('\ufeff')
  assert spelled(pieces(text, wrapped=False)) == SENTENCES
  assert spelled(pieces(text, wrapped=True)) == WRAPPED
  assert list(pieces('a\nb\n', False)) == [Piece('a', True, False), Piece('b', True, False), Piece('', False, True)]
  assert list(pieces('a\nb\n', True)) == [Piece('a b', True, True)]
  for wrapped in (False, True):
    assert spelled(pieces('a\n\nb', wrapped)) == spelled(pieces('\n\na\n \n\nb\n\n', wrapped)) == 'a||b||'
    assert list(pieces('', wrapped)) == list(pieces(' \n\r\n\t\n', wrapped)) == []


@pytest.mark.parametrize(('wrapped', 'expected'), [(False, SENTENCES), (True, WRAPPED)])
def test_where_units_are_cut_changes_nothing(wrapped, expected, tmp_path, monkeypatch):
  write(tmp_path / 'a.txt', TEXT)
  write(tmp_path / 'b.TXT', 'one more file')
  write(tmp_path / 'empty.txt', '')
  expected += 'one more file||'
  assert spelled(read(open_corpora(f'folder:{tmp_path}')['train'], wrapped)) == expected
  cut_at = set()
  for size in range(8, 160):
    monkeypatch.setattr(text_corpora, '_UNIT', size)
    corpus = pickle.loads(pickle.dumps(open_corpora(f'folder:{tmp_path}')['train']))
    assert spelled(read(corpus, wrapped)) == expected, f'units of {size} bytes'
    assert max(unit.size for unit in corpus.units) <= size
    assert sum(unit.size for unit in corpus.units) == corpus.size
    cut_at |= {stop for unit in corpus.units for file, _, stop in unit.parts if file == 0}
  assert len(cut_at) > 20, 'the text was hardly cut'
  monkeypatch.setattr(text_corpora, '_UNIT', 4)
  assert spelled(read(open_corpora(f'folder:{write(tmp_path / "mark", TEXT[:2] + "ab")}')['train'], wrapped)) == 'ab||'


def test_units_end_where_it_matters_least(tmp_path, monkeypatch):
  monkeypatch.setattr(text_corpora, '_UNIT', 20)
  monkeypatch.setattr(text_corpora, '_WINDOW', 15)
  stops = lambda text: [
    stop for unit in open_corpora(f'folder:{write(tmp_path / "a", text)}')['train'].units for _, _, stop in unit.parts
  ]
  assert stops('12345678\n\n12\n56\n9012345')[0] == 10  # after the blank line, though there is a later line end
  assert stops('12345678\n012\n56\n9 12345')[0] == 16
  assert stops('12 4 6\n8 01234 67890 2')[0] == 7
  assert stops('12 4 6 8 01234 67890 2')[0] == 14
  assert stops('ü' * 9 + 'ab' + 'ü' * 9)[0] == 20
  assert stops('a' + 'ü' * 19)[0] == 19


def test_one_long_line_is_read_in_small_parts(tmp_path):
  path = write(tmp_path / 'line', b'word and ' * 6_000_000)  # 54 MB
  corpus = open_corpora(f'folder:{path}')['train']
  assert max(unit.size for unit in corpus.units) <= 4 << 20 and sum(unit.size for unit in corpus.units) == corpus.size
  found = list(corpus.read(corpus.units[1], False))
  assert max(len(piece.text) for piece in found) <= 1 << 16 and not any(piece.ends_sentence for piece in found)
  text = ''.join(piece.text for piece in found)
  assert len(text) == corpus.units[1].size and set(text.split()) == {'word', 'and'}
  last = list(corpus.read(corpus.units[-1], False))
  assert last[-1].ends_document and sum(piece.ends_sentence for piece in last) == 1


def test_long_sentences_come_in_pieces():
  text = 'ab ' * 50_000 + 'a' * 200_000 + ' end'
  found = list(pieces(text, False))
  assert spelled(found) == text + '||' and max(len(piece.text) for piece in found) <= 1 << 16
  assert all(piece.text.startswith(' ab') for piece in found[1:3]), 'words are cut before their space'


# Folders and their parts.


@pytest.mark.parametrize(
  ('files', 'train', 'test'),
  [
    (('a.txt', 'deep/b.TXT', 'c.text', '.hidden.txt'), 'a.txt deep/b.TXT', ''),
    (('train/a.txt', 'train/test.txt', 'valid/a.txt', 'test/a.txt', 'b.txt'), 'train/a.txt train/test.txt', 'valid/a.txt'),
    (('wiki.train.txt', 'wiki.valid.txt', 'wiki.test.txt', 'README.txt'), 'wiki.train.txt', 'wiki.valid.txt'),
    (('train-0.txt', 'train-1.txt', 'x_TEST.txt'), 'train-0.txt train-1.txt', 'x_TEST.txt'),
    (('books/a.txt', 'wiki/valid.txt', 'protest.txt'), 'books/a.txt protest.txt', 'wiki/valid.txt'),
  ],
)
def test_parts_of_a_folder(files, train, test, tmp_path):
  for name in files:
    write(tmp_path / name, name)
  corpora = open_corpora(f'folder:{tmp_path}')
  names = {part: ' '.join(sorted(piece.text for piece in read(corpus) if piece.text)) for part, corpus in corpora.items()}
  assert names == {'train': train} | ({'test': test} if test else {})


def test_identity_is_names_sizes_and_times(tmp_path):
  path = write(tmp_path / 'a' / 'x.txt', 'text')
  identity = lambda folder='a': open_corpora(f'folder:{tmp_path / folder}')['train'].identity
  first = identity()
  assert identity() == first
  os.utime(path, (1, 1))
  second = identity()
  assert second != first
  path.write_text('texts')
  os.utime(path, (1, 1))
  third = identity()
  assert third not in (first, second)
  (tmp_path / 'a').rename(tmp_path / 'b')
  assert identity('b') == third, 'a corpus may be moved'
  (tmp_path / 'b' / 'x.txt').rename(tmp_path / 'b' / 'y.txt')
  assert identity('b') != third


@pytest.mark.parametrize('source', ['', 'folder', 'folder:', 'floder:x', 'cifar:x'])
def test_malformed_sources_are_refused(source):
  assert 'is not KIND:PLACE' in message_of(source) and 'folder, arrayrecord, tfds, sample' in message_of(source)


def test_places_without_text_are_named(tmp_path):
  assert 'does not exist' in message_of(f'folder:{tmp_path}/none')
  assert f'{tmp_path} holds no *.txt files' in message_of(f'folder:{tmp_path}')
  write(tmp_path / 'a.txt', '')
  assert 'holds no text: all of its 1 files are empty' in message_of(f'folder:{tmp_path}')
  write(tmp_path / 'sub' / 'test' / 'a.txt', 'x')
  assert 'none to train on' in message_of(f'folder:{tmp_path}/sub')
  (tmp_path / 'sub' / 'broken.txt').symlink_to(tmp_path / 'nowhere')
  assert f'{tmp_path}/sub/broken.txt: No such file' in message_of(f'folder:{tmp_path}/sub')
  assert 'the sample of text is sample:python' in message_of('sample:english')


# What is no text.


@pytest.mark.parametrize(
  ('content', 'parts'),
  [
    ('caffè'.encode('latin-1') + b' nero', ('byte 0xe8 at offset 4', 'Latin-1?', r"b'caff\xe8 nero'", 'iconv -f LATIN1')),
    (b'it\x92s', ('byte 0x92 at offset 2', 'Windows-1252?', 'iconv -f CP1252')),
    ('è vero'.encode() + b' \xe8', ('byte 0xe8 at offset 8', 'damaged?', 'iconv -c')),
    ('日本'.encode('utf-16'), ('byte 0xff at offset 0', 'UTF-16?', 'iconv -f UTF-16')),
    ('text'.encode('utf-16'), ('byte 0 at offset 3', 'UTF-16', 'iconv -f UTF-16')),
    (b'PK\x03\x04\x00', ('byte 0 at offset 4', 'no text at all?')),
    (b'good line\n' * 1000 + b'\xe9', ('byte 0xe9 at offset 10000', 'Latin-1?')),
    (b'a' * 9999 + b'\x00', ('byte 0 at offset 9999',)),
  ],
)
def test_what_is_not_utf8_is_named_by_file_and_offset(content, parts, tmp_path, monkeypatch):
  monkeypatch.setattr(text_corpora, '_UNIT', 3000)
  write(tmp_path / 'a.txt', 'fine')
  path = write(tmp_path / 'b.txt', content)
  message = message_of(f'folder:{tmp_path}')
  for part in (str(path), *parts):
    assert part in message, message


def test_a_file_that_changes_under_way_is_noticed(tmp_path):
  path = write(tmp_path / 'a.txt', 'some text')
  corpus = open_corpora(f'folder:{path}')['train']
  path.write_text('other text')
  with pytest.raises(InputError, match=r'a\.txt: was changed while it was read'):
    read(corpus)
  path.unlink()
  with pytest.raises(InputError, match=r'a\.txt: No such file'):
    read(corpus)


# Records.


def test_array_records(tmp_path, monkeypatch):
  monkeypatch.setattr(text_corpora, '_UNIT', 20)
  texts = ['first line\nsecond', 'another document', 'third', '\ufefffourth\n\nfifth']
  records = [encode_features({'text': text, 'label': [number]}) for number, text in enumerate(texts)]
  write_array_record(tmp_path / 'x-train.array_record-0', records[:3])
  write_array_record(tmp_path / 'x-train.array_record-1', records[3:])
  corpora = open_corpora(f'arrayrecord:{tmp_path}')
  assert list(corpora) == ['train']
  corpus = pickle.loads(pickle.dumps(corpora['train']))
  assert len(corpus.units) > 1
  assert spelled(read(corpus)) == 'first line|second||another document||third||fourth||fifth||'
  assert spelled(read(corpus, wrapped=True)) == 'first line second||another document||third||fourth||fifth||'
  write_array_record(tmp_path / 'x-validation.array_record', records[:1])
  again = open_corpora(f'arrayrecord:{tmp_path}')
  assert spelled(read(again['test'])) == 'first line|second||' and again['train'].identity == corpus.identity
  write_array_record(tmp_path / 'x-train.array_record-1', records[:2])
  assert open_corpora(f'arrayrecord:{tmp_path}')['train'].identity != corpus.identity


def test_records_that_are_wrong_are_named(tmp_path):
  good, source = encode_features({'text': 'good'}), f'arrayrecord:{tmp_path}'
  path = tmp_path / 'train.array_record'
  write_array_record(path, [good, encode_features({'text': b'caf\xe9'})])
  message = message_of(source)
  assert f'{path}:1: byte 0xe9 at offset 3 is not UTF-8 (Latin-1?)' in message
  write_array_record(path, [good, good, encode_features({'text': b'a\0b'})])
  assert f'{path}:2: byte 0 at offset 1' in message_of(source)
  write_array_record(path, [good, encode_features({'title': 'x'})])
  assert f"{path}:1: the record has no bytes under 'text'; it has title" in message_of(source)
  write_array_record(path, [good, encode_features({'text': [1, 2]})])
  assert f"{path}:1: the record has no bytes under 'text'" in message_of(source)
  write_array_record(path, [good, b'something else'])
  assert f'{path}:1: the record cannot be read: not a tf.train.Example' in message_of(source)
  write_array_record(path, [encode_features({'image': b'x'})])
  assert "has no feature 'text'; it has image" in message_of(source)


@pytest.mark.parametrize('file_format', WRITERS)
def test_tfds(file_format, tmp_path):
  pytest.importorskip('tensorflow_datasets')
  folder, package = tmp_path / 'books' / '1.0.0', 'tensorflow_datasets.core.features'
  folder.mkdir(parents=True)
  features = {
    'title': {'pythonClassName': f'{package}.text_feature.Text', 'text': {}},
    'text': {'pythonClassName': f'{package}.text_feature.Text', 'text': {}},
  }
  write_features = lambda found: (folder / 'features.json').write_text(
    json.dumps({'pythonClassName': f'{package}.features_dict.FeaturesDict', 'featuresDict': {'features': found}})
  )
  write_features(features)
  splits, template = [], '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
  for name, count in {'train': 3, 'validation': 1}.items():
    records = [encode_features({'title': 'no', 'text': f'{name}\n{number}'}) for number in range(count)]
    WRITERS[file_format](folder / f'books-{name}.{file_format}-00000-of-00001', records)
    splits.append({'name': name, 'shardLengths': [str(count)], 'numBytes': '1', 'filepathTemplate': template})
  info = {'name': 'books', 'version': '1.0.0', 'fileFormat': file_format, 'splits': splits}
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  corpora = open_corpora('tfds:books', str(tmp_path))
  assert spelled(read(corpora['train'])) == 'train|0||train|1||train|2||'
  assert spelled(read(pickle.loads(pickle.dumps(corpora['test'])))) == 'validation|0||'
  assert spelled(read(open_corpora('tfds:books:train[1:2]', str(tmp_path))['train'])) == 'train|1||'
  assert corpora['train'].identity != open_corpora('tfds:books:train[1:2]', str(tmp_path))['train'].identity
  write_features({'title': features['title']})
  with pytest.raises(InputError, match="has no feature 'text'; it has title"):
    open_corpora('tfds:books', str(tmp_path))


# Lines of their own.


def test_lines_of_files(tmp_path):
  second = write(tmp_path / 'b.TXT', TEXT)
  first = write(tmp_path / 'a' / 'deep' / 'x.txt', 'a\x0cb\u2028c\rd\n\n \u3000\nlast')
  write(tmp_path / 'c.md', 'not read')
  write(tmp_path / 'empty.txt', '')
  texts = {
    3: ' One  ends here. ',
    4: 'Two naïve wörds',
    7: 'Ä-word-that-is-cut 第一行 .',
    10: '  third document',
    11: 'last',
  }
  lines = [(str(second), *line) for line in texts.items()]
  assert list(text_corpora.read_lines(str(second))) == lines
  found = [(str(first), 1, 'a\x0cb\u2028c\rd'), (str(first), 4, 'last'), *lines]
  assert list(text_corpora.read_lines(str(tmp_path))) == found
  assert [text for *_, text in text_corpora.read_lines(str(tmp_path / 'c.md'))] == ['not read']


def test_lines_that_cannot_be_read(tmp_path):
  def message():
    with pytest.raises(InputError) as error:
      list(text_corpora.read_lines(str(tmp_path)))
    return str(error.value)

  assert f'config.data.source: {tmp_path} holds no *.txt files' in message()
  path = write(tmp_path / 'x.txt', b'fine\ncaf\xe9')
  assert message().startswith(f'{path}: byte 0xe9 at offset 8 is not UTF-8')
  write(path, b'a\0')
  assert message().startswith(f'{path}: byte 0 at offset 1 ')
  path.unlink()
  path.symlink_to('nowhere')
  assert message() == f'{path}: No such file or directory'


# The sample.


def test_english_of_the_python_installation():
  corpora = open_corpora('sample:python')
  sentences = {part: [piece.text for piece in read(corpus) if piece.text] for part, corpus in corpora.items()}
  size = {part: sum(map(len, texts)) for part, texts in sentences.items()}
  assert size['train'] > 500_000 and 0.01 < size['test'] / size['train'] < 0.3
  assert not set(sentences['train']) & set(sentences['test'])
  assert not any('>>>' in text or len(text.split()) < 8 for texts in sentences.values() for text in texts)
  everything = ' '.join(sentences['train'] + sentences['test'])
  assert everything.count(' the ') > 10_000
  assert 'The "assert" statement'.lower() in everything.lower() or 'Assert statements are' in everything
  again = open_corpora('sample:python')
  assert [again[part].identity for part in again] == [corpora[part].identity for part in corpora]
  assert again['train'].identity != again['test'].identity


def test_the_sample_needs_the_sources_of_the_library(tmp_path, monkeypatch):
  monkeypatch.setattr(text_corpora.sysconfig, 'get_path', lambda name: str(tmp_path))
  assert f'sample:python: {tmp_path} holds no *.py files' in message_of('sample:python')
  write(tmp_path / 'broken.py', 'def :')
  write(tmp_path / 'test' / 'x.py', '"""Tests are not read, however many good words they have."""')
  for number in range(20):
    doc = f'"""Number {number} says what it does in quite a few words.\n\n  >>> f()\n  1\n"""'
    write(tmp_path / f'm{number:02d}.py', f'{doc}\ndef f():\n  """Short."""\n')
  corpora = open_corpora('sample:python')
  expected = [f'Number {number} says what it does in quite a few words.' for number in range(20)]
  assert [piece.text for piece in read(corpora['train']) if piece.text] == expected[:19]
  assert [piece.text for piece in read(corpora['test']) if piece.text] == expected[19:]
