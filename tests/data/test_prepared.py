"""Prepared corpora: the stream is what the text says, whoever makes it and however often it is interrupted."""

import hashlib
import json
import os
import pickle
import re
import threading
import time

import numpy as np
import pytest

from d2v_jax.config import default_config
from d2v_jax.data import prepared, text_corpora
from d2v_jax.data.prepared import open_text, prepare
from d2v_jax.data.text_corpora import open_corpora
from d2v_jax.data.tokenizer import BOS, EOS, read_tokenizer, train_tokenizer
from d2v_jax.errors import InputError, RunError

SIZE = 300  # entries of the tokenizers
VERSE = 'The day was long and bright,\nthe wind was low;\nand all the long night through\n\nwe heard the river go.\n'


def config_of(source, cache='', **data):
  config = default_config('text')
  config.model.vocab_size = SIZE
  config.data.update(source=str(source), cache=str(cache), block_tokens=16, workers=0)
  config.data.update(data)
  return config


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  """A folder with a tokenizer."""
  folder = tmp_path_factory.mktemp('tokenizer')
  (folder / 'tokenizer.json').write_text(train_tokenizer([VERSE], SIZE).to_text())
  return folder


@pytest.fixture
def corpus(tmp_path):
  """`folder:` with 12 kB to train on and 2 kB for the test."""
  for part, count in (('train', 40), ('valid', 6)):
    text = ''.join(f'{VERSE}Number {number} it was.\n' * 3 for number in range(count))
    folder = tmp_path / 'corpus' / part
    folder.mkdir(parents=True)
    (folder / 'a.txt').write_text(text[: len(text) // 3])
    (folder / 'b.txt').write_text(text[len(text) // 3 :])
  return f'folder:{tmp_path / "corpus"}'


@pytest.fixture
def small_units(monkeypatch):
  monkeypatch.setattr(text_corpora, '_UNIT', 1000)


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != '.lock'}


def stream_of(folder, part='train', dtype='<u2'):
  return np.fromfile(folder / f'{part}.bin', dtype).tolist()


def refusal(call, *arguments):
  with pytest.raises(InputError) as error:
    call(*arguments)
  assert '\n' not in str(error.value)
  return str(error.value)


# The stream.


@pytest.mark.parametrize(
  ('lines', 'expected'),
  [
    ('sentences', [['The day was long', 'and bright,'], ['the wind'], ['was low;'], ['a'], ['b']]),
    ('wrapped', [['The day was long and bright,'], ['the wind'], ['was low;'], ['a b'], ['c']]),
  ],
)
def test_stream_of_a_small_corpus(lines, expected, tokenizer, tmp_path):
  (tmp_path / 'books').mkdir()
  (tmp_path / 'books' / '1.txt').write_bytes(b'\n The day was long \r\nand bright,\r\n\r\n \r\nthe wind\n\nwas low;')
  tail = 'a\n\nb\n' if lines == 'sentences' else 'a\n  b\n\nc\n'
  (tmp_path / 'books' / '2.txt').write_text(tail)
  about, _ = prepare(config_of(f'folder:{tmp_path / "books"}', tokenizer=str(tokenizer), lines=lines), tmp_path / 'out')
  encode = read_tokenizer(tokenizer).encode
  stream = []
  for document in expected:
    for sentence in document:
      stream += [*encode(sentence), EOS]
    stream.append(EOS)
  assert stream_of(tmp_path / 'out') == stream
  made = about['parts']['train']
  assert made['tokens'] == len(stream) and made['bytes'] == 2 * len(stream)
  assert made['documents'] == len(expected) and made['sentences'] == sum(map(len, expected))


def test_blocks(corpus, tokenizer, tmp_path):
  config = config_of(corpus, tmp_path / 'cache', tokenizer=str(tokenizer))
  blocks = open_text(config, 'train')
  (folder,) = (tmp_path / 'cache').iterdir()
  stream = stream_of(folder)
  assert len(blocks) == len(stream) // 15 > 100 and blocks.classes == ()
  again = pickle.loads(pickle.dumps(blocks))
  for source in (blocks, again, pickle.loads(pickle.dumps(again))):
    for index in (0, 7, len(blocks) - 1):
      tokens = source.read(index)['tokens']
      assert tokens.dtype == np.int32 and tokens.tolist() == [BOS, *stream[index * 15 : index * 15 + 15]]
    with pytest.raises(IndexError):
      source.read(len(blocks))
  assert len(pickle.dumps(again)) < len(pickle.dumps(blocks.tokenizer)) + 2000, 'the stream itself is in the pickle'
  assert blocks.tokenizer.decode(blocks.read(0)['tokens']).startswith('The day was long')
  assert blocks.name(3) == f'{folder / "train.bin"} block 3'
  assert len(open_text(config, 'test')) == len(stream_of(folder, 'test')) // 15


def test_long_lines_are_tokenised_as_if_they_were_not_cut(tokenizer, tmp_path, monkeypatch):
  words = ' '.join(f'wind {number} was "low"; naïve: 北風 don\'t' for number in range(400))
  (tmp_path / 'line').write_text(words)
  (tmp_path / 'wrapped').write_text(words.replace(' ', '\n'))
  expected = [*read_tokenizer(tokenizer).encode(words), EOS, EOS]
  monkeypatch.setattr(text_corpora, '_UNIT', 2000)
  monkeypatch.setattr(text_corpora, '_LONGEST', 100)
  for name in ('line', 'wrapped'):
    out = tmp_path / f'{name}.out'
    prepare(config_of(f'folder:{tmp_path / name}', tokenizer=str(tokenizer), lines='wrapped'), out)
    assert stream_of(out) == expected, name


def test_a_tokenizer_is_trained_on_the_train_part(corpus, tmp_path):
  about, _ = prepare(config_of(corpus), tmp_path / 'out')
  tokenizer = read_tokenizer(tmp_path / 'out')
  assert tokenizer.size == about['vocab_size'] == SIZE and tokenizer.fingerprint == about['tokenizer']
  assert len(tokenizer.encode('The day was long and bright')) < len('The day was long and bright') / 2
  assert tokenizer.decode(stream_of(tmp_path / 'out', 'test')).startswith('The day was long')


def test_many_entries_take_four_bytes(corpus, tmp_path):
  config = config_of(corpus, tmp_path / 'cache')
  config.model.vocab_size = 65_537
  blocks = open_text(config, 'train')
  (folder,) = (tmp_path / 'cache').iterdir()
  assert blocks.read(2)['tokens'].tolist() == [BOS, *stream_of(folder, dtype='<u4')[30:45]]


def test_the_sample_for_a_tokenizer_is_bounded_and_from_everywhere(corpus, small_units, monkeypatch):
  train = open_corpora(corpus)['train']
  everything = ''.join(piece.text for unit in train.units for piece in train.read(unit, False))
  assert ''.join(prepared._sample(train, False)) == everything
  monkeypatch.setattr(prepared, '_TRAINED_ON', 3000)
  some = ''.join(prepared._sample(train, False))
  assert 2500 < len(some) < 4500
  numbers = [int(number) for number in re.findall(r'Number (\d+)', some)]
  assert max(np.diff([0, *numbers, 40])) <= 6, 'parts of the corpus are not in the sample'


# Workers, interruptions.


def test_worker_processes_give_the_same_bytes(corpus, tokenizer, small_units, tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'cpu_count', lambda: 3)
  config = config_of(corpus, tokenizer=str(tokenizer))
  prepare(config, tmp_path / 'one', workers=1)
  prepare(config, tmp_path / 'three', workers=3)
  assert contents(tmp_path / 'one') == contents(tmp_path / 'three')
  assert set(contents(tmp_path / 'one')) == {'train.bin', 'test.bin', 'tokenizer.json', 'prepared.json'}


def test_what_a_worker_finds_wrong_is_one_line(corpus, tokenizer, small_units, tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'cpu_count', lambda: 2)
  path = tmp_path / 'corpus' / 'train' / 'b.txt'
  path.write_bytes(path.read_bytes() + b'\xe9')
  config = config_of(corpus, tokenizer=str(tokenizer), workers=2)
  assert f'{path}: byte 0xe9 at offset' in refusal(prepare, config, tmp_path / 'out')


def test_a_killed_worker_is_an_error_and_no_hang(corpus, tokenizer, small_units, tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'cpu_count', lambda: 2)
  monkeypatch.setattr(prepared, '_Tokenise', Deadly)
  config = config_of(corpus, tokenizer=str(tokenizer), workers=2)
  with pytest.raises(RunError, match='a worker process died'):
    prepare(config, tmp_path / 'out')


class Deadly:
  """In place of what a worker does."""

  def __init__(self, *arguments):
    pass

  def __call__(self, unit):
    os._exit(9)


class Killed(BaseException):
  pass


def test_any_interruption_ends_with_the_same_bytes(corpus, tmp_path, monkeypatch):
  """The power fails at every place where something has just reached the disk, and what was not yet there is half there."""
  monkeypatch.setattr(text_corpora, '_UNIT', 3000)
  config = config_of(corpus)
  prepare(config, tmp_path / 'whole')
  expected, fsync, replace = contents(tmp_path / 'whole'), os.fsync, os.replace
  places = 0

  def at(place):
    """Counts; raises at that place."""
    nonlocal places
    places += 1
    if places == place:
      raise Killed

  def interrupted(after):
    monkeypatch.setattr(os, 'fsync', lambda number: (fsync(number), at(after)))
    monkeypatch.setattr(os, 'replace', lambda *paths: (at(after), replace(*paths), at(after)))
    try:
      prepare(config, out)
    except Killed:
      return True
    finally:
      monkeypatch.setattr(os, 'fsync', fsync)
      monkeypatch.setattr(os, 'replace', replace)
    return False

  def leave_halves():
    for name in ('train.bin.partial', 'test.bin.partial', 'journal.jsonl'):
      if (out / name).exists():
        with open(out / name, 'ab') as file:
          file.write(b'{"train": {"un' if name == 'journal.jsonl' else b'\xff' * 33)

  out, stop = tmp_path / 'out', 0
  while True:
    places, stop = 0, stop + 1
    if not interrupted(stop):
      break
    leave_halves()
    places = 0
    if interrupted(6):
      leave_halves()
    prepare(config, out)
    assert contents(out) == expected, f'interrupted at {stop}'
    for path in out.iterdir():
      path.unlink()
  assert stop > 20 and contents(out) == expected


def test_it_goes_on_where_it_stopped(corpus, tokenizer, small_units, tmp_path, monkeypatch):
  config = config_of(corpus, tokenizer=str(tokenizer))
  work, done = prepared._Tokenise.__call__, []

  def some(self, unit):
    if len(done) == 5:
      raise Killed
    done.append(unit)
    return work(self, unit)

  monkeypatch.setattr(prepared._Tokenise, '__call__', some)
  with pytest.raises(Killed):
    prepare(config, tmp_path / 'out')
  monkeypatch.setattr(prepared._Tokenise, '__call__', lambda self, unit: (done.append(unit), work(self, unit))[1])
  _, speed = prepare(config, tmp_path / 'out')
  units = [unit for corpus in open_corpora(corpus).values() for unit in corpus.units]
  assert done == units and len(units) > 10 and speed > 0
  _, speed = prepare(config, tmp_path / 'out')
  assert done == units and speed == 0
  # A partial file that is shorter than the journal says, as after a failure of the disk: what is missing is made again.
  monkeypatch.setattr(prepared._Tokenise, '__call__', some)
  done.clear()
  with pytest.raises(Killed):
    prepare(config, tmp_path / 'other')
  partial = tmp_path / 'other' / 'train.bin.partial'
  os.truncate(partial, partial.stat().st_size - 101)
  monkeypatch.setattr(prepared._Tokenise, '__call__', work)
  prepare(config, tmp_path / 'other')
  assert contents(tmp_path / 'other') == contents(tmp_path / 'out')


@pytest.mark.parametrize('change', ['corpus', 'tokenizer', 'lines'])
def test_a_begun_folder_of_something_else_starts_anew(change, corpus, tokenizer, small_units, tmp_path, monkeypatch):
  config = config_of(corpus)
  monkeypatch.setattr(prepared._Tokenise, '__call__', lambda self, unit: [][unit.size])
  with pytest.raises((IndexError, TypeError)):
    prepare(config, tmp_path / 'out')
  monkeypatch.undo()
  (tmp_path / 'out' / 'train.bin.partial').write_bytes(b'\0' * 999)
  if change == 'corpus':
    (tmp_path / 'corpus' / 'train' / 'c.txt').write_text('There is more.')
  config.data.update({'tokenizer': {'tokenizer': str(tokenizer)}, 'lines': {'lines': 'wrapped'}}.get(change, {}))
  prepare(config, tmp_path / 'out')
  prepare(config, tmp_path / 'new')
  assert contents(tmp_path / 'out') == contents(tmp_path / 'new')


# The cache.


def test_the_cache_tells_corpora_tokenizers_and_options_apart(corpus, tokenizer, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  cache = tmp_path / 'xdg' / 'd2v_jax'
  config = config_of(corpus)
  open_text(config, 'train')
  (first,) = cache.iterdir()
  before = first.stat().st_mtime_ns, contents(first)
  open_text(config, 'test')
  config.data.block_tokens = 32
  open_text(config, 'train')
  assert (first.stat().st_mtime_ns, contents(first)) == before and len(list(cache.iterdir())) == 1
  config.data.lines = 'wrapped'
  open_text(config, 'train')
  config.data.tokenizer = str(tokenizer)
  open_text(config, 'train')
  (tmp_path / 'corpus' / 'train' / 'a.txt').write_text(VERSE * 9)
  open_text(config, 'train')
  assert len(list(cache.iterdir())) == 4


def test_two_processes_do_not_harm_each_other(corpus, tokenizer, tmp_path):
  config = config_of(corpus, tmp_path / 'cache', tokenizer=str(tokenizer))
  expected = contents_of_cache(config, tmp_path / 'cache')
  (folder,) = (tmp_path / 'cache').iterdir()
  for name in expected:
    (folder / name).unlink()
  found = []
  opening = [threading.Thread(target=lambda: found.append(open_text(config, 'train'))) for _ in range(3)]
  with prepared._locked(folder):
    for thread in opening:
      thread.start()
    time.sleep(0.3)
    assert not found and not contents(folder)
  for thread in opening:
    thread.join()
  assert len(found) == 3 and contents(folder) == expected


def contents_of_cache(config, cache):
  open_text(config, 'train')
  (folder,) = cache.iterdir()
  return contents(folder)


def test_no_test_part(tokenizer, tmp_path):
  (tmp_path / 'book').write_text(VERSE * 10)
  config = config_of(f'folder:{tmp_path / "book"}', tmp_path / 'cache', tokenizer=str(tokenizer))
  assert len(open_text(config, 'train')) > 10
  assert 'no test part' in refusal(open_text, config, 'test')
  (folder,) = (tmp_path / 'cache').iterdir()
  config.data.source = f'prepared:{folder}'
  assert len(open_text(config, 'train')) > 10
  assert f'prepared:{folder} has no test part' in refusal(open_text, config, 'test')


# What is refused.


def test_text_that_is_none_or_too_short(tokenizer, tmp_path):
  (tmp_path / 'blank').write_text(' \n\t\r\n \n')
  config = config_of(f'folder:{tmp_path / "blank"}', tmp_path / 'cache', tokenizer=str(tokenizer))
  assert f'folder:{tmp_path / "blank"} holds no text, only white space' in refusal(open_text, config, 'train')
  (tmp_path / 'short').write_text('A word.')
  config.data.source = f'folder:{tmp_path / "short"}'
  message = refusal(open_text, config, 'train')
  assert 'fewer than one block (15)' in message and 'config.data.block_tokens' in message
  config.data.block_tokens = 3
  assert len(open_text(config, 'train')) > 0


def test_a_tokenizer_of_another_size(corpus, tokenizer, tmp_path):
  config = config_of(corpus, tmp_path / 'cache', tokenizer=str(tokenizer))
  config.model.vocab_size = 1000
  for message in (refusal(open_text, config, 'train'), refusal(prepare, config, tmp_path / 'out')):
    assert 'config.model.vocab_size: 1000' in message and f'{SIZE} entries' in message
    assert f'set config.model.vocab_size={SIZE}' in message
  assert not (tmp_path / 'cache').exists() and not (tmp_path / 'out').exists()
  assert 'is not KIND:PLACE' in refusal(open_text, config_of('prepared:'), 'train')
  config.data.tokenizer = str(tmp_path / 'nowhere')
  assert str(tmp_path / 'nowhere') in refusal(open_text, config, 'train')


@pytest.fixture
def folder(corpus, tokenizer, tmp_path):
  prepare(config_of(corpus, tokenizer=str(tokenizer)), tmp_path / 'prepared')
  return tmp_path / 'prepared'


def test_a_prepared_folder(folder, tokenizer):
  for given in ('', str(tokenizer)):
    blocks = open_text(config_of(f'prepared:{folder}', tokenizer=given), 'train')
    assert blocks.tokenizer.fingerprint == read_tokenizer(tokenizer).fingerprint
    assert blocks.read(1)['tokens'].tolist() == [BOS, *stream_of(folder)[15:30]]


def test_another_tokenizer_or_vocabulary_is_refused(folder, tmp_path):
  config = config_of(f'prepared:{folder}')
  config.model.vocab_size = 500
  message = refusal(open_text, config, 'train')
  assert 'config.model.vocab_size: 500' in message and f'set config.model.vocab_size={SIZE}' in message
  (tmp_path / 'other.json').write_text(train_tokenizer(['Something else altogether, else, else.'], SIZE).to_text())
  message = refusal(open_text, config_of(f'prepared:{folder}', tokenizer=str(tmp_path / 'other.json')), 'train')
  assert f'config.data.tokenizer: that of {tmp_path / "other.json"} is not the one that prepared {folder}' in message
  (folder / 'tokenizer.json').write_bytes((tmp_path / 'other.json').read_bytes())
  message = refusal(open_text, config_of(f'prepared:{folder}'), 'train')
  assert f'{folder / "tokenizer.json"}: has the fingerprint' in message and f'delete {folder}' in message


def change(path, edit):
  path.write_bytes(edit(path.read_bytes()))


def set_field(**fields):
  return lambda text: json.dumps(json.loads(text) | fields).encode()


@pytest.mark.parametrize(
  ('name', 'edit', 'parts'),
  [
    ('train.bin', lambda old: old[:-2], ('train.bin: has', 'bytes, prepared.json says')),
    ('train.bin', lambda old: old + b'\0', ('train.bin: has', 'bytes, prepared.json says')),
    ('train.bin', lambda old: old[:50] + b'\0' + old[51:], ('train.bin: was changed', 'hash')),
    ('train.bin', None, ('train.bin: does not exist',)),
    ('tokenizer.json', lambda old: old[: len(old) // 2], ('tokenizer.json: cannot be read',)),
    ('tokenizer.json', None, ('tokenizer.json: cannot be read',)),
    ('prepared.json', lambda old: old[:-3], ('prepared.json: is not as it was written',)),
    ('prepared.json', set_field(parts=3), ('prepared.json: is not as it was written',)),
    ('prepared.json', set_field(version=99), ('is of version 99', 'prepare it again')),
    ('prepared.json', lambda old: old.replace(b'"tokens": ', b'"tokens": 1'), ('prepared.json:', 'do not take')),
    ('prepared.json', None, ('has no prepared.json', 'python -m d2v_jax.prepare')),
  ],
)
def test_a_damaged_folder_is_refused(name, edit, parts, folder):
  if edit is None:
    (folder / name).unlink()
  else:
    change(folder / name, edit)
  message = refusal(open_text, config_of(f'prepared:{folder}'), 'train')
  for part in (str(folder), *parts):
    assert part in message, message


def test_an_unfinished_folder_says_so(corpus, tmp_path, monkeypatch):
  monkeypatch.setattr(prepared._Tokenise, '__call__', lambda self, unit: [][unit.size])
  with pytest.raises((IndexError, TypeError)):
    prepare(config_of(corpus), tmp_path / 'out')
  assert 'is not finished; run the command' in refusal(open_text, config_of(f'prepared:{tmp_path / "out"}'), 'train')


def test_large_files_are_hashed_by_the_command_only(folder, corpus, tokenizer, monkeypatch):
  monkeypatch.setattr(prepared, '_CHECKED', 100)
  change(folder / 'train.bin', lambda old: b'\xff\xff' + old[2:])
  blocks = open_text(config_of(f'prepared:{folder}'), 'train')
  with pytest.raises(ValueError, match=f'there is a token 65535, the tokenizer has {SIZE} entries'):
    blocks.read(0)
  assert 'was changed' in refusal(prepare, config_of(corpus, tokenizer=str(tokenizer)), folder)


def test_a_folder_to_write_into_that_holds_something_else(folder, corpus, tokenizer, tmp_path):
  config, before = config_of(corpus, tokenizer=str(tokenizer)), contents(folder)
  other = config.copy_and_resolve_references()
  other.data.lines = 'wrapped'
  message = refusal(prepare, other, folder)
  assert f'--output: {folder} holds what was prepared from {corpus} with other lines' in message and 'new folder' in message
  other.data.update(lines='sentences', tokenizer='')
  assert 'with another tokenizer' in refusal(prepare, other, folder)
  (tmp_path / 'corpus' / 'train' / 'a.txt').write_text('Changed.')
  assert 'with other files' in refusal(prepare, config, folder)
  assert contents(folder) == before
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.txt').write_text('x')
  assert f'--output: {tmp_path / "mine"} holds something else (thesis.txt' in refusal(prepare, config, tmp_path / 'mine')
  assert set(contents(tmp_path / 'mine')) == {'thesis.txt'} and not (tmp_path / 'mine' / '.lock').exists()
  assert 'is not a directory' in refusal(prepare, config, tmp_path / 'mine' / 'thesis.txt')
  assert 'is prepared already' in refusal(prepare, config_of(f'prepared:{folder}'), tmp_path / 'new')


def test_a_place_that_cannot_be_written(corpus, tokenizer, tmp_path, monkeypatch):
  def full(number):
    raise OSError(28, 'No space left on device')

  config = config_of(corpus, tmp_path / 'cache', tokenizer=str(tokenizer))
  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(RunError, match=r'--output: .*/out: cannot be written \(No space left on device\)'):
    prepare(config, tmp_path / 'out')
  with pytest.raises(RunError, match=r'config\.data\.cache: .*/cache/.*: cannot be written'):
    open_text(config, 'train')
  monkeypatch.undo()
  prepare(config, tmp_path / 'out')
  made = json.loads((tmp_path / 'out' / 'prepared.json').read_text())['parts']['train']
  assert made['sha256'] == hashlib.sha256((tmp_path / 'out' / 'train.bin').read_bytes()).hexdigest()
