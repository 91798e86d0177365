"""Corpora of text: what the user has, cut into units of work, and the sentences and documents of each unit.

A corpus has
  `name`                  for messages;
  `identity`              hash of what it is made of: names, sizes and times of change; nothing is read for it;
  `size`                  bytes of text (of records about that many), and `len(corpus)` files or documents;
  `units`                 list of `Unit`s of about 4 MB, in order; the same ones whoever lists them;
  `read(unit, wrapped)`   yields the `Piece`s of a unit. Raises InputError for what is not text in UTF-8.
Where units begin does not change what a file's pieces are, taken together: a unit looks back to find out whether it begins
inside a line and inside a document. Corpora can be pickled (worker processes get a copy) and hold no open files.
"""

import ast
import functools
import hashlib
import inspect
import itertools
import json
import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from d2v_jax.data.places import SPLIT_NAMES, directory, walk
from d2v_jax.errors import InputError

_UNIT = 4 << 20  # bytes of text that a worker reads at once
_WINDOW = 1 << 16  # bytes before the end of a unit in which it may be cut, and that a unit looks back
_LONGEST = 1 << 16  # characters of a piece

# A unit ends, best first, after a blank line, a line, a word (before a single space, where byte-level BPE cuts the text too)
# or a character.
_CUTS = [
  re.compile(cut, re.DOTALL)
  for cut in (rb'.*\n[ \t\r]*\n(?=.)', rb'.*\n(?=.)', rb'.*[!-~\x80-\xff](?= [!-~\x80-\xff])', rb'.*(?=[^\x80-\xbf])')
]
_WORD_END = re.compile(r'.*\S(?= \S)', re.DOTALL)


class Piece(NamedTuple):
  """Some text, and what is over after it. A long sentence comes in several pieces, and one of them may be empty."""

  text: str
  ends_sentence: bool
  ends_document: bool


class Unit(NamedTuple):
  """What is read at once."""

  parts: tuple  # of files: (file, first byte, the one after the last) for each; of documents: first, the one after the last
  size: int  # bytes


def open_corpora(source: str, tfds_dir: str = '') -> dict:
  """Opens `config.data.source` for pretraining on text: {'train': corpus} or {'train': corpus, 'test': corpus}.

  Args:
    source: KIND:PLACE. `folder:` a directory with *.txt files at any depth, whose parts are told by names of directories or
      by the first or last word of file names (train/, valid/, wiki.train.txt); what has no such name is for training, unless
      other files are. Or one file of any name. `arrayrecord:` and `tfds:` have a document under `text` in each record.
      `sample:python` is the English of the Python installation.
    tfds_dir: where prepared TFDS data sets lie; '': the default of TFDS.

  Raises:
    InputError: the source or what lies there is wrong.
  """
  kind, _, place = source.partition(':')
  if kind not in _OPENERS or not place:
    raise InputError(
      f'config.data.source: {source!r} is not KIND:PLACE with a KIND of {", ".join(_OPENERS)}, or prepared, for text'
    )
  return _OPENERS[kind](place, tfds_dir)


def pieces(text: str, wrapped: bool, in_line: bool = False, in_document: bool = False, at_end: bool = True):
  """Yields the `Piece`s of a text.

  A line that is not blank is a sentence, stripped; blank lines and the end of the text end a document.

  Args:
    text: lines, ended by LF or CR LF.
    wrapped: all lines up to a blank one are one sentence, joined by spaces.
    in_line: the text begins inside a line, after something that is not blank.
    in_document: the text begins inside a document.
    at_end: the text goes up to the end of the file; otherwise its last line may go on after it.
  """
  lines = text.split('\n')
  open_lines = []  # of the sentence, if wrapped
  for number, line in enumerate(lines):
    goes_on = in_line and number == 0
    whole = at_end or number < len(lines) - 1
    line = line.rstrip() if goes_on else line.strip()
    if line or goes_on:
      if not wrapped:
        yield from _cut_long(line, whole, False)
      else:
        open_lines.append(f' {line}' if in_document and not goes_on else line)
      in_document = True
    elif in_document and whole:
      yield from _cut_long(''.join(open_lines), wrapped, True)
      open_lines, in_document = [], False
  if at_end and in_document:
    yield from _cut_long(''.join(open_lines), wrapped, True)
  elif open_lines:
    yield from _cut_long(''.join(open_lines), False, False)


def _cut_long(text: str, ends_sentence: bool, ends_document: bool):
  start = 0
  while len(text) - start > _LONGEST:
    word = _WORD_END.match(text, start, start + _LONGEST)
    stop = word.end() if word else start + _LONGEST
    yield Piece(text[start:stop], False, False)
    start = stop
  yield Piece(text[start:], ends_sentence, ends_document)


def read_lines(place: str):
  """Yields (file, number of the line from 1, line without its end) of all lines that are not blank, files in order of names.

  Args:
    place: a directory with *.txt files at any depth, or one file of any name.

  Raises:
    InputError: there are no files, or one cannot be read or is not text in UTF-8.
  """
  root, paths = _files(place)
  for path in paths:
    name = os.fsdecode(os.path.join(os.fsencode(root), path))
    try:
      data = Path(name).read_bytes()
    except OSError as error:
      raise InputError(f'{name}: {error.strerror}') from None
    for number, line in enumerate(_decode(data, name, 0).removeprefix('\ufeff').split('\n'), 1):
      if line.strip():
        yield name, number, line.removesuffix('\r')


class FileCorpus:
  """Text files below a root, one after the other.

  Args:
    name: see the module.
    root: directory.
    paths: of the files below it, as bytes: file names need not be valid text.
  """

  def __init__(self, name: str, root: Path, paths: list[bytes]):
    self.name = name
    self._root, self._paths = os.fsencode(root.absolute()), np.array(paths)
    self._stats = _stats(self._root, paths)
    self.identity = _hash([os.fsdecode(path) for path in paths], self._stats.tolist())
    self.size = int(self._stats[:, 0].sum())
    if not self.size:
      raise InputError(f'config.data.source: {name} holds no text: all of its {len(paths)} files are empty')

  def __len__(self) -> int:
    return len(self._paths)

  @functools.cached_property
  def units(self) -> list[Unit]:
    units, parts, filled = [], [], 0
    for file, size in enumerate(self._stats[:, 0].tolist()):
      start = 0
      while start < size:
        stop = size if size - start <= _UNIT else self._cut(file, start)
        if filled and filled + stop - start > _UNIT:
          units.append(Unit(tuple(parts), filled))
          parts, filled = [], 0
        parts.append((file, start, stop))
        start, filled = stop, filled + stop - start
    return [*units, Unit(tuple(parts), filled)]

  def read(self, unit: Unit, wrapped: bool):
    for file, start, stop in unit.parts:
      text = _decode(self._bytes(file, start, stop), self._name(file), start)
      if start == 0:
        text = text.removeprefix('\ufeff')
      yield from pieces(text, wrapped, *self._context(file, start), at_end=bool(stop == self._stats[file, 0]))

  def _cut(self, file: int, start: int) -> int:
    """Where the unit that begins at `start` ends: at most _UNIT bytes later."""
    first = max(start, start + _UNIT - _WINDOW)
    window = self._bytes(file, first, start + _UNIT + 1)  # its last byte is seen, but not in the unit
    found = (cut.match(window) for cut in _CUTS)
    return next((first + match.end() for match in found if match and match.end()), start + _UNIT)

  def _context(self, file: int, start: int) -> tuple[bool, bool]:
    """Whether `start` is (inside a line, inside a document), by what is before it."""
    if start == 0:
      return False, False
    before = self._bytes(file, max(start - _WINDOW, 0), start).decode('utf-8-sig', errors='ignore')
    *_, previous, line = ['', '', *before.split('\n')]
    in_line = bool(line.strip())
    return in_line, in_line or bool(previous.strip())

  def _name(self, file: int) -> str:
    return os.fsdecode(os.path.join(self._root, self._paths[file]))

  def _bytes(self, file: int, start: int, stop: int) -> bytes:
    try:
      with open(self._name(file), 'rb', buffering=0) as opened:
        found = os.fstat(opened.fileno())
        if [found.st_size, found.st_mtime_ns] != self._stats[file].tolist():
          raise InputError(f'{self._name(file)}: was changed while it was read; run again')
        return os.pread(opened.fileno(), stop - start, start)
    except OSError as error:
      raise InputError(f'{self._name(file)}: {error.strerror}') from None


class DocumentCorpus:
  """Documents by index.

  Args:
    name, identity: see the module.
    documents: has `len`, `documents[index]` (bytes) and `documents.name(index)`, for messages.
  """

  def __init__(self, name: str, identity: str, documents):
    self.name, self.identity, self._documents = name, identity, documents

  def __len__(self) -> int:
    return len(self._documents)

  @functools.cached_property
  def size(self) -> int:
    return round(len(self) * self._mean_size)

  @functools.cached_property
  def units(self) -> list[Unit]:
    count = max(round(_UNIT / self._mean_size), 1)
    bounds = [*range(0, len(self), count), len(self)]
    return [Unit((first, stop), round((stop - first) * self._mean_size)) for first, stop in itertools.pairwise(bounds)]

  @functools.cached_property
  def _mean_size(self) -> float:
    """Bytes, of some documents."""
    some = range(0, len(self), max(len(self) // 64, 1))
    return max(sum(len(self._documents[index]) for index in some) / max(len(some), 1), 1)

  def read(self, unit: Unit, wrapped: bool):
    for index in range(*unit.parts):
      text = _decode(self._documents[index], self._documents.name(index), 0)
      yield from pieces(text.removeprefix('\ufeff'), wrapped)


def _stats(root: bytes, paths: list[bytes]) -> np.ndarray:
  """int64 [N, 2]: bytes, and nanoseconds of the last change, of files below a root. Raises InputError."""
  stats = []
  for path in paths:
    try:
      found = os.stat(os.path.join(root, path))
    except OSError as error:
      raise InputError(f'{os.fsdecode(os.path.join(root, path))}: {error.strerror}') from None
    stats.append((found.st_size, found.st_mtime_ns))
  return np.array(stats, np.int64).reshape(-1, 2)


def _hash(*values) -> str:
  return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _decode(data: bytes, name: str, offset: int) -> str:
  """Text of bytes that begin at `offset` of what `name` says. Raises InputError."""
  if (place := data.find(0)) >= 0:
    raise InputError(
      f'{name}: byte 0 at offset {offset + place} is not text in UTF-8 (UTF-16, or no text at all?); convert it: iconv -f'
      ' UTF-16 -t UTF-8, or take it away'
    )
  try:
    return data.decode()
  except UnicodeDecodeError as error:
    place, byte = error.start, data[error.start]
  if not data[:place].isascii():
    guess, advice = 'damaged?', 'mend it, or leave such bytes out: iconv -c -f UTF-8 -t UTF-8'
  elif offset + place == 0 and data[:2] in (b'\xff\xfe', b'\xfe\xff'):
    guess, advice = 'UTF-16?', 'convert it: iconv -f UTF-16 -t UTF-8'
  elif byte < 0xA0:
    guess, advice = 'Windows-1252?', 'convert it: iconv -f CP1252 -t UTF-8'
  else:
    guess, advice = 'Latin-1?', 'convert it: iconv -f LATIN1 -t UTF-8'
  near = data[max(place - 12, 0) : place + 12]
  raise InputError(f'{name}: byte {byte:#04x} at offset {offset + place} is not UTF-8 ({guess}), in {near}; {advice}')


# --- what there is

_PART_NAMES = frozenset(name for names in SPLIT_NAMES.values() for name in names)


def _open_folder(place: str, tfds_dir: str) -> dict:
  del tfds_dir
  name, (root, paths) = f'folder:{place}', _files(place)
  if Path(place).expanduser().is_file():
    return {'train': FileCorpus(name, root, paths)}
  names = [_split_name(path) for path in paths]
  of_train = [path for path, found in zip(paths, names) if found in SPLIT_NAMES['train']]
  unnamed = [path for path, found in zip(paths, names) if found is None]
  test_name = next((found for found in SPLIT_NAMES['test'] if found in names), None)
  if not of_train and not unnamed:
    raise InputError(f'config.data.source: {name} has text to test on ({test_name}), but none to train on')
  if of_train and unnamed:
    logging.warning(
      '%s: %d files whose names do not say "train" are not used; the first: %s', name, len(unnamed), os.fsdecode(unnamed[0])
    )
  parts = {'train': of_train or unnamed, 'test': [path for path, found in zip(paths, names) if found and found == test_name]}
  return {part: FileCorpus(f'{name}, {part} part', root, found) for part, found in parts.items() if found}


def _files(place: str) -> tuple[Path, list[bytes]]:
  """A directory, and what is to be read below it: all *.txt at any depth, or the one file that was named."""
  path = Path(place).expanduser()
  if path.is_file():
    return path.parent, [os.fsencode(path.name)]
  root = directory('folder', place)
  paths = sorted(path for path in walk(root) if path.lower().endswith(b'.txt'))
  if not paths:
    raise InputError(
      f'config.data.source: {root.absolute()} holds no *.txt files at any depth; a file of another name is read if it is'
      ' named itself'
    )
  return root, paths


def _split_name(path: bytes) -> str | None:
  """Which of the names of a part a file has: as the name of a directory it is in, or as its first or last word.

  Words in between do not count: of a book, "train" may be in the title.
  """
  *folders, file = os.fsdecode(path).lower().split('/')
  words = [word for word in re.split(r'[\W\d_]+', file.rpartition('.')[0]) if word] or ['']
  return next((word for word in (*folders, words[0], words[-1]) if word in _PART_NAMES), None)


def _open_array_records(place: str, tfds_dir: str) -> dict:
  from d2v_jax.data.records import array_record_files

  del tfds_dir
  parts = {part: array_record_files(place, part) for part in ('train', 'test')}
  return {part: _of_records(f'arrayrecord:{place}', *found) for part, found in parts.items() if found}


def _open_tfds(place: str, tfds_dir: str) -> dict:
  from d2v_jax.data.tfds_source import tfds_files

  parts = {part: tfds_files(place, part, tfds_dir, 'text') for part in ('train', 'test')}
  return {part: _of_records(f'tfds:{place}', *found) for part, found in parts.items() if found}


def _of_records(name: str, files, features) -> DocumentCorpus:
  if 'text' not in features:
    raise InputError(f"config.data.source: {name} has no feature 'text'; it has {', '.join(sorted(features)) or 'none'}")
  shards = [(os.path.basename(file), first, count) for file, first, count in files.shards]
  stats = _stats(b'', [os.fsencode(file) for file, _, _ in files.shards])
  return DocumentCorpus(name, _hash(shards, stats.tolist()), _RecordTexts(files))


class _RecordTexts:
  """The feature `text` of records; several values are lines."""

  def __init__(self, files):
    self._files, self.name = files, files.name

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> bytes:
    from d2v_jax.data.records import parse_features

    try:
      features = parse_features(self._files[index])
    except Exception as error:  # readers of records raise many kinds
      raise InputError(f'{self.name(index)}: the record cannot be read: {error}') from None
    text = features.get('text')
    if text is None or not text.is_bytes:
      raise InputError(f"{self.name(index)}: the record has no bytes under 'text'; it has {', '.join(sorted(features))}")
    return b'\n'.join(text.values())


# --- sample:python

_HOLD_OUT = 20  # every so manyth document is for the test
_SKIPPED = ('test', 'tests', 'encodings', 'idlelib', 'lib2to3', 'turtledemo', 'site-packages', 'dist-packages')
_ITEM = r'(?:[-*+•]|\d+[.)])\s+'  # the mark of a list


def _open_sample(place: str, tfds_dir: str) -> dict:
  del tfds_dir
  if place != 'python':
    raise InputError(f'config.data.source: sample:{place} does not exist; the sample of text is sample:python')
  root = sysconfig.get_path('stdlib')
  paths = []
  for folder, folders, files in os.walk(root):
    folders[:] = [name for name in folders if name not in _SKIPPED]
    paths += [os.path.relpath(os.path.join(folder, file), root) for file in files if file.endswith('.py')]
  paths.sort()
  if not paths:
    raise InputError(
      f'config.data.source: sample:python: {root} holds no *.py files, this Python is installed without its sources; use'
      ' folder:DIRECTORY'
    )
  stats = _stats(os.fsencode(root), [os.fsencode(path) for path in paths])
  identity = _hash(sys.version, paths, stats.tolist())
  return {
    part: DocumentCorpus(f'sample:python, {part} part', _hash(part, identity), _PythonTexts(root, paths, part == 'test'))
    for part in ('train', 'test')
  }


class _PythonTexts:
  """English of the standard library: docstrings, one document for each file, and the help topics of the language.

  Documents are paragraphs of plain prose, a line each; of several equal ones only the first is there.
  """

  def __init__(self, root: str, paths: list[str], is_test: bool):
    self._root, self._paths, self._is_test = root, paths, is_test

  def __len__(self) -> int:
    return len(self._documents)

  def __getitem__(self, index: int) -> bytes:
    return self._documents[index][1].encode()

  def name(self, index: int) -> str:
    return self._documents[index][0]

  @functools.cached_property
  def _documents(self) -> list[tuple[str, str]]:
    documents = _python_documents(self._root, tuple(self._paths))
    is_held_out = lambda number: number % _HOLD_OUT == _HOLD_OUT - 1
    return [document for number, document in enumerate(documents) if is_held_out(number) == self._is_test]


@functools.cache
def _python_documents(root: str, paths: tuple[str, ...]) -> list[tuple[str, str]]:
  """(name, text) of all documents."""
  documents, seen = [], set()
  for path in paths:
    for name, texts in _texts_of(os.path.join(root, path)):
      found = list(dict.fromkeys(paragraph for text in texts for paragraph in _prose(text) if paragraph not in seen))
      seen.update(found)
      if found:
        documents.append((name, '\n'.join(found)))
  return documents


def _texts_of(path: str):
  """Yields (name, texts) of each document that a Python file has: its docstrings, or the help topics."""
  try:
    with open(path, 'rb') as file:
      tree = ast.parse(file.read())
  except (OSError, SyntaxError, ValueError):
    return
  if path.endswith(os.path.join('pydoc_data', 'topics.py')):
    topics = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    yield from ((f'{path}:{name}', [text]) for name, text in sorted(ast.literal_eval(topics).items()))
    return
  documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
  nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
  nodes.sort(key=lambda node: getattr(node, 'lineno', 0))
  yield path, [ast.get_docstring(node) or '' for node in nodes]


def _prose(text: str):
  """Yields the paragraphs and list items that are sentences, unwrapped: no code, tables, lists of names or one-liners."""
  for paragraph in re.split(rf'\n\s*\n|\n(?=\s*{_ITEM})', inspect.cleandoc(text)):
    indents = {len(line) - len(line.lstrip()) for line in paragraph.split('\n')[1:]}
    paragraph = re.sub(f'^{_ITEM}', '', ' '.join(paragraph.split()))
    plain = len(re.findall(r'[^\W\d_]|[ ,.;:\'\u2019"()-]', paragraph))
    is_sentence = paragraph.count(' ') >= 7 and re.search(r'[.:!?][)"\']*$', paragraph)
    if len(indents) < 2 and is_sentence and plain >= 0.9 * len(paragraph) and '>>>' not in paragraph:
      yield paragraph


_OPENERS = {'folder': _open_folder, 'arrayrecord': _open_array_records, 'tfds': _open_tfds, 'sample': _open_sample}
