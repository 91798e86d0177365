"""The `tsv` source: sentence tasks from tab-separated tables, GLUE's files among them as they come.

A table is UTF-8 text. A line, ended by \\n or \\r\\n and nothing else, is a row; tabs part its columns, and there is no
quoting: a lone " is text. With `config.data.header` the first line names the columns; without, they are called 0, 1, 2, ...
All rows have as many columns as the first line, so that a tab or a line break inside a text is found and does not shift what
is read. Nothing is skipped: what is damaged is refused by file and line.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from absl import logging

from d2v_jax.data.places import no_test_part
from d2v_jax.data.tokenizer import Tokenizer, framed
from d2v_jax.errors import InputError
from d2v_jax.report.progress import reported

_SHOWN = 20  # names listed in a message


@dataclasses.dataclass(frozen=True, eq=False)
class SentenceTable:
  """Rows of a table by index: a sentence or a pair of them, and its label. It can be pickled, and holds no open files.

  Attributes:
    path: the file.
    first_line: line of its first row.
    tokens: int32, those of all rows of the file.
    texts_of_columns: for each text column those of all rows of the file.
    targets: labels of all rows of the file: int32 numbers of `labels`, -1 for none; of a regression float32, NaN for none.
    shortened: bool, which rows of the file had more tokens than the model has positions and were cut.
    rows: int64 [N], which rows of the file these are, from 0.
    labels, classes: the names of the labels in the order of their numbers; () for a regression and without labels.
    tokenizer: what made the tokens.
  """

  path: str
  first_line: int
  tokens: '_Joined'
  texts_of_columns: tuple['_Joined', ...]
  targets: np.ndarray
  shortened: np.ndarray
  rows: np.ndarray
  labels: tuple[str, ...]
  tokenizer: Tokenizer

  def __len__(self) -> int:
    return len(self.rows)

  def read(self, index: int) -> dict:
    """{'tokens': int32 [n], 'label': int, or np.float32 of a regression}: <s> A </s>, or <s> A </s> </s> B </s>."""
    row = self.rows[index]
    label = self.targets[row]
    return {'tokens': self.tokens[row], 'label': int(label) if label.dtype == np.int32 else label}

  def name(self, index: int) -> str:
    """FILE:line, lines counted from 1."""
    return f'{self.path}:{self.first_line + self.rows[index]}'

  def texts(self, index: int) -> tuple[str, ...]:
    """The text or both texts of a row as they are in the file, whole even if their tokens were cut."""
    return tuple(column[self.rows[index]] for column in self.texts_of_columns)

  @property
  def lengths(self) -> np.ndarray:
    """int64 [N], tokens of each row, <s> and </s> included."""
    return np.diff(self.tokens.starts)[self.rows]

  @property
  def cut(self) -> int:
    """How many rows were cut to the model's positions."""
    return int(self.shortened[self.rows].sum())

  @property
  def classes(self) -> tuple[str, ...]:
    return self.labels

  def take(self, indices) -> 'SentenceTable':
    """The rows of these indices (or of a mask), in that order."""
    return dataclasses.replace(self, rows=self.rows[indices])


def open_table(config, split: str, tokenizer: Tokenizer) -> SentenceTable:
  """Opens the train part of `config.data.source`, or the first of its test parts.

  `tsv:FILE` is a train part alone; `tsv:DIRECTORY` holds `config.data.train_file` and `config.data.test_files`. The classes
  are the distinct labels of the train part, sorted; as numbers, where all are integers.

  Args:
    config: the whole config; `data`, `sentence.kind` and `model.max_positions` are read.
    split: 'train' or 'test'.
    tokenizer: makes the tokens. White space at both ends of a text is left out of its tokens.

  Raises:
    InputError: a file, a column, a row or a label is missing or wrong.
  """
  if split == 'train':
    train = _train_part(config)
    return _tokenized(config, train, tokenizer, _label_names(config, train))
  path = _test_paths(config)[0]
  return _tokenized(config, _Table('test_files', path, config.data.header), tokenizer, _label_names(config))


def open_tests(config, tokenizer: Tokenizer) -> dict[str, SentenceTable]:
  """Opens all test parts, by the names of their files without suffix. As `open_table`."""
  paths = _test_paths(config)
  if len({path.stem for path in paths}) < len(paths):
    raise InputError(
      f'config.data.test_files: {tuple(config.data.test_files)}: two files have the same name but for folder and suffix,'
      ' and their scores would too; rename one'
    )
  labels = _label_names(config)
  return {path.stem: _tokenized(config, _Table('test_files', path, config.data.header), tokenizer, labels) for path in paths}


def open_unlabelled(config, tokenizer: Tokenizer) -> SentenceTable | None:
  """Opens `config.data.predict_file`, in the folder of the train part; None where none is named. It needs no labels."""
  if not config.data.predict_file:
    return None
  root = _root(config)
  path = (root if root.is_dir() else root.parent) / config.data.predict_file
  return _tokenized(config, _Table('predict_file', path, config.data.header), tokenizer, None)


def _root(config) -> Path:
  return Path(config.data.source.partition(':')[2]).expanduser()


def _train_part(config) -> '_Table':
  root = _root(config)
  if root.is_dir():
    return _Table('train_file', root / config.data.train_file, config.data.header)
  return _Table('source', root, config.data.header)


def _test_paths(config) -> list[Path]:
  root = _root(config)
  if not config.data.test_files or root.is_file():
    raise no_test_part(config.data.source)
  return [root / name for name in config.data.test_files]


class _Table:
  """The lines of a file, checked, and its columns by name. `field`, of config.data, is what named the file."""

  def __init__(self, field: str, path: Path, header: bool):
    self.path, self._header = path, header
    self._lines = _lines(field, path)
    self.names = self._lines[0].split('\t')
    self.first_line = 1
    if header:
      del self._lines[0]
      self.first_line = 2
    else:
      self.names = [str(number) for number in range(len(self.names))]
    if not self._lines:
      raise InputError(
        f'{path.absolute()}: the table has no rows after its header; config.data.header=False if that is a row'
      )
    self._check_width()

  def __len__(self) -> int:
    return len(self._lines)

  def column(self, field: str, name: str) -> list[str]:
    """What all rows have in a column that config.data.`field` names. Raises InputError."""
    found = self.names.count(name)
    if not found:
      nearest = difflib.get_close_matches(name, self.names, 1)
      hint = f'; did you mean {nearest[0]!r}?' if nearest else ''
      how = 'by the first line' if self._header else 'by number, as config.data.header=False'
      raise InputError(
        f'config.data.{field}: {self.path.absolute()} has no column {name!r}; its columns are, {how},'
        f' {_listed(self.names)}{hint}'
      )
    if found > 1:
      raise InputError(
        f'config.data.{field}: {self.path.absolute()} has {found} columns {name!r}; rename all but one in its first line'
      )
    place = self.names.index(name)
    return [line.split('\t')[place] for line in self._lines]

  def error(self, row: int, message: str) -> InputError:
    return InputError(f'{self.path.absolute()}:{self.first_line + row}: {message}')

  def _check_width(self):
    needed = len(self.names)
    widths = np.fromiter((line.count('\t') + 1 for line in self._lines), np.int64, len(self._lines))
    wrong = np.flatnonzero(widths != needed)
    if len(wrong):
      raise self.error(
        wrong[0],
        f'found {widths[wrong[0]]} columns, needed {needed} as in line 1; {len(wrong)} of {len(self)} rows have too few or'
        ' too many (is there a tab or a line break inside a text?); mend them, or leave them out:'
        f" awk -F'\\t' 'NF == {needed}' OLD > NEW",
      )


def _lines(field: str, path: Path) -> list[str]:
  """The lines of a file, at least one. Raises InputError."""
  where = path.absolute()
  if not path.is_file():
    is_ = 'is not a file' if path.exists() else 'does not exist'
    folder = where.parent
    holds = _listed(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else 'does not exist either'
    raise InputError(f'config.data.{field}: {where} {is_}; {folder} {"holds " * folder.is_dir()}{holds}')
  try:
    content = path.read_bytes()
  except OSError as error:
    raise InputError(f'config.data.{field}: {where}: {error.strerror}') from None
  if (offset := content.find(b'\0')) >= 0:
    raise InputError(f'{where}: NUL byte at offset {offset}; a table is text in UTF-8 (UTF-16? save it as UTF-8)')
  try:
    text = content.decode()
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    raise InputError(
      f'{where}:{line}: byte 0x{content[error.start]:02x} at offset {error.start} is not UTF-8; save the table as UTF-8'
    ) from None
  text = text.removeprefix('\ufeff').replace('\r\n', '\n').removesuffix('\n')
  if not text:
    raise InputError(f'{where}: the table is empty')
  return text.split('\n')


def _listed(names: list[str]) -> str:
  rest = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return (', '.join(_quoted(name) for name in names[:_SHOWN]) or 'nothing') + rest


def _quoted(text: str) -> str:
  return repr(text if len(text) <= 60 else text[:60] + '...')


def _label_names(config, train: _Table | None = None) -> tuple[str, ...]:
  """The names of the classes in order, by config.sentence.labels or else by the train part; () for a regression."""
  if config.sentence.kind == 'regression':
    return ()
  if config.sentence.labels:
    return tuple(config.sentence.labels)
  train = train or _train_part(config)
  found = _label_texts(config, train)
  names = sorted(set(found))
  if all(re.fullmatch(r'[+-]?[0-9]{1,18}', name) for name in names):
    names.sort(key=int)
  if len(names) < 2:
    raise InputError(
      f'config.data.label_column: {train.path.absolute()} has only the label {_quoted(names[0])}; a classification needs at'
      " least two; config.sentence.kind='regression' for numbers"
    )
  if not config.data.header and found.count(found[0]) == 1:
    logging.warning(
      '%s: only its first line has the label %s; if that is a header, set config.data.header=True', train.path, found[0]
    )
  return tuple(names)


def _label_texts(config, table: _Table) -> list[str]:
  texts = table.column('label_column', config.data.label_column)
  for row, text in enumerate(texts):
    if not text or text.isspace():
      raise table.error(row, f'the label (column {config.data.label_column!r}) is empty')
  return texts


def _targets(config, table: _Table, labels: tuple[str, ...] | None) -> np.ndarray:
  """int32 or float32 [M]; `labels` None: there are none."""
  regression = config.sentence.kind == 'regression'
  if labels is None:
    return np.full(len(table), np.nan, np.float32) if regression else np.full(len(table), -1, np.int32)
  texts = _label_texts(config, table)
  if regression:
    with np.errstate(over='ignore'):  # beyond float32 is infinite
      targets = np.array([_number(text) for text in texts]).astype(np.float32)
    wrong, allowed = ~np.isfinite(targets), 'a finite number'
  else:
    numbers = {name: number for number, name in enumerate(labels)}
    targets = np.array([numbers.get(text, -1) for text in texts], np.int32)
    wrong, allowed = targets < 0, f'one of those of the training: {_listed(labels)}'
  if wrong.any():
    row = int(wrong.argmax())
    raise table.error(row, f'the label (column {config.data.label_column!r}) is {_quoted(texts[row])}, not {allowed}')
  return targets


def _number(text: str) -> float:
  try:
    return float(text)
  except ValueError:
    return np.nan


def _tokenized(config, table: _Table, tokenizer, labels: tuple[str, ...] | None) -> SentenceTable:
  names = tuple(config.data.text_columns)
  has = [name for name in names if name in table.names]
  if len(names) == 2 and len(has) == 1:
    raise InputError(
      f'config.data.text_columns: {table.path.absolute()} has only {has[0]!r} of the pair {names}; its columns are'
      f' {_listed(table.names)}'
    )
  columns = [table.column('text_columns', name) for name in names]
  targets = _targets(config, table, labels)
  limit = min(config.model.max_positions, max(config.data.bucket_tokens))
  tokens, lengths, shortened = bytearray(), [], []
  for row, texts in enumerate(reported(zip(*columns), len(table), f'tokenizing {table.path}, rows')):
    try:
      sides = [tokenizer.encode(text.strip()) for text in texts]
    except ValueError as error:
      raise table.error(row, str(error)) from None
    ids = framed(*sides)
    shortened.append(len(ids) > limit)
    if shortened[-1]:
      ids = framed(*_fit(sides, limit))
    tokens += ids.tobytes()
    lengths.append(len(ids))
  found = SentenceTable(
    path=str(table.path),
    first_line=table.first_line,
    tokens=_Joined(np.frombuffer(tokens, np.int32), _starts(lengths)),
    texts_of_columns=tuple(_Joined(''.join(column), _starts([len(text) for text in column])) for column in columns),
    targets=targets,
    shortened=np.array(shortened),
    rows=np.arange(len(table)),
    labels=labels or (),
    tokenizer=tokenizer,
  )
  if found.cut:
    logging.warning(
      '%s: %d of %d rows have more than %d tokens (config.model.max_positions, config.data.bucket_tokens) and are cut',
      *(table.path, found.cut, len(found), limit),
    )
  return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Joined:
  """Many arrays or strings as one long one and where each starts: compact, and with a worker process in no time."""

  whole: np.ndarray | str
  starts: np.ndarray  # int64 [M + 1], the last one is the end

  def __getitem__(self, row: int):
    return self.whole[self.starts[row] : self.starts[row + 1]]


def _starts(lengths: Iterable[int]) -> np.ndarray:
  return np.concatenate([[0], np.cumsum(lengths)])


def _fit(sides: list[np.ndarray], limit: int) -> list[np.ndarray]:
  """What to keep of a text or a pair, so that it fits `limit` with its special symbols.

  The longer text of a pair is cut, down to the length of the other; then both alike, and an odd one stays with the first.
  """
  room = limit - 2 * len(sides)
  if len(sides) == 1:
    return [sides[0][:room]]
  first, second = sides
  return [first[: max(room - len(second), room - room // 2)], second[: max(room - len(first), room // 2)]]
