"""Prepared corpora: text as one stream of tokens on disk, made once, and read in blocks.

In the stream each sentence is its tokens and EOS, and after the last one of a document comes another EOS. A prepared folder
has `train.bin` and perhaps `test.bin` (the stream, little-endian uint16, or uint32 where the tokenizer has more than 65,536
entries), `tokenizer.json` and, written last, `prepared.json`, which says what it was made of and the size and hash of each.
Until then there are `train.bin.partial` and `journal.jsonl`, by which a preparation that was interrupted goes on.
"""

import collections
import contextlib
import fcntl
import functools
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from absl import logging

from d2v_jax.data.places import directory, no_test_part
from d2v_jax.data.text_corpora import open_corpora
from d2v_jax.data.tokenizer import BOS, EOS, Tokenizer, read_tokenizer, train_tokenizer
from d2v_jax.errors import InputError, RunError

_VERSION = 1  # of what is written, and of how text becomes tokens
_CHECKED = 256 << 20  # bytes up to which a file is hashed before it is used
_TRAINED_ON = 64 << 20  # characters that a tokenizer is trained on, at most
_REPORT_SECONDS = 10.0


class TextBlocks:
  """Blocks of a prepared stream, by index; can be pickled, and opens the file when something is read.

  Block i is BOS and the tokens [i * (block_tokens - 1), (i + 1) * (block_tokens - 1)) of the stream, wherever sentences and
  documents end. What is left after the last whole block is not used.

  Args:
    path: the file of the stream.
    tokens: of the stream.
    block_tokens: of a block, with its BOS.
    tokenizer: the `Tokenizer` that made them.
  """

  classes = ()

  def __init__(self, path: Path, tokens: int, block_tokens: int, tokenizer: Tokenizer):
    self._path, self._tokens, self._block_tokens = path, tokens, block_tokens
    self.tokenizer = tokenizer

  def __len__(self) -> int:
    return self._tokens // (self._block_tokens - 1)

  def read(self, index: int) -> dict:
    """{'tokens': int32 [block_tokens]}. Raises ValueError where the file holds what the tokenizer does not have."""
    each, index = self._block_tokens - 1, range(len(self))[index]
    block = np.empty(self._block_tokens, np.int32)
    block[0], block[1:] = BOS, self._stream[index * each : (index + 1) * each]
    if not 0 <= block.min() <= block.max() < self.tokenizer.size:
      raise ValueError(f'there is a token {block.max()}, the tokenizer has {self.tokenizer.size} entries')
    return {'tokens': block}

  def name(self, index: int) -> str:
    return f'{self._path} block {int(index)}'

  @functools.cached_property
  def _stream(self) -> np.ndarray:
    return np.memmap(self._path, _dtype(self.tokenizer.size), 'r', shape=(self._tokens,))

  def __getstate__(self) -> dict:
    return {name: value for name, value in self.__dict__.items() if name != '_stream'}


def open_text(config, split: str) -> TextBlocks:
  """Opens `config.data.source` for pretraining on text, and prepares it before that where it is not `prepared:DIRECTORY`.

  What is prepared lies in a folder of `config.data.cache`, or else of `~/.cache/d2v_jax`, whose name tells corpus, tokenizer
  and options; another process that wants the same waits.

  Args:
    config: the whole config; `data` and `model.vocab_size` are read.
    split: 'train' or 'test'.

  Raises:
    InputError: the source, the tokenizer or what lies there is wrong, or not what the config says.
    RunError: the cache cannot be written.
  """
  kind, _, place = config.data.source.partition(':')
  if kind == 'prepared' and place:
    return _open_prepared(config, directory('prepared', place), split)
  job = _Job(config, _wanted_tokenizer(config))
  if split not in job.corpora:
    raise no_test_part(config.data.source)
  cache = config.data.cache or os.path.join(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'd2v_jax')
  name = re.sub(r'[^\w.-]+', '-', os.path.basename(place.rstrip('/')))[:40]
  folder_of = lambda job: Path(cache).expanduser() / f'{kind}-{name}-{job.key[:16]}'
  folder = folder_of(job)
  if job.tokenizer is not None:  # perhaps the one that was trained on this corpus, by the run that now goes on
    trained = folder_of(_Job(config, None))
    if (trained / 'prepared.json').exists() and _about(trained)['tokenizer'] == job.tokenizer.fingerprint:
      folder, job = trained, _Job(config, None)
  with _reporting(f'config.data.cache: {folder}'):
    job.run(folder, config.data.workers)
  return _open_prepared(config, folder, split)


def prepare(config, output: str | os.PathLike, workers: int | None = None) -> tuple[dict, float]:
  """Prepares `config.data.source` in the folder `output`, goes on with it, or checks that it is complete.

  Args:
    config: the whole config; `data` and `model.vocab_size` are read.
    output: a new folder, or one that was begun, or finished, with the same corpus, tokenizer and options.
    workers: processes; None: `config.data.workers`. Up to 1: no others than this.

  Returns:
    (what `prepared.json` says, tokens per second of this call; 0.0 where nothing was left to do).

  Raises:
    InputError: the source or the tokenizer is wrong, or the folder holds something else or what was changed.
    RunError: the folder cannot be written, or a worker process died.
  """
  if config.data.source.startswith('prepared:'):
    raise InputError(f'config.data.source: {config.data.source} is prepared already; name what it shall be made of')
  job, folder = _Job(config, _wanted_tokenizer(config)), Path(output).expanduser()
  _claim(folder, job)
  with _reporting(f'--output: {folder}'):
    speed = job.run(folder, config.data.workers if workers is None else workers)
  about = _about(folder)
  tokenizer = _tokenizer_of(folder, about)
  for part in about['parts']:
    _check_stream(folder, part, about, tokenizer, always=True)
  return about, speed


def _open_prepared(config, folder: Path, split: str) -> TextBlocks:
  """Opens a part of a prepared folder, with everything about it checked that takes no long time."""
  about = _about(folder)
  if split not in about['parts']:
    raise no_test_part(f'prepared:{folder}') if split == 'test' else _damaged(folder, 'prepared.json', 'has no train part')
  tokenizer = _tokenizer_of(folder, about)
  if (wanted := _wanted_tokenizer(config)) and wanted.fingerprint != tokenizer.fingerprint:
    raise InputError(
      f'config.data.tokenizer: that of {config.data.tokenizer or config.init_from} is not the one that prepared {folder}:'
      f' {wanted.size} entries, fingerprint {wanted.fingerprint}, there {tokenizer.size}, {tokenizer.fingerprint}; take the'
      ' same, or prepare again'
    )
  if about['lines'] != config.data.lines:
    logging.warning('config.data.lines: %s is not used, %s was prepared with %s', config.data.lines, folder, about['lines'])
  if tokenizer.size != config.model.vocab_size:
    raise InputError(
      f'config.model.vocab_size: {config.model.vocab_size}, but {folder} was prepared with a tokenizer of {tokenizer.size}'
      f' entries; set config.model.vocab_size={tokenizer.size}, or prepare again'
    )
  _check_stream(folder, split, about, tokenizer)
  blocks = TextBlocks(folder / f'{split}.bin', about['parts'][split]['tokens'], config.data.block_tokens, tokenizer)
  if not len(blocks):
    raise InputError(
      f'config.data.source: {folder}: the {split} part has {about["parts"][split]["tokens"]} tokens, fewer than one block'
      f' ({config.data.block_tokens - 1}); give more text, or a smaller config.data.block_tokens'
    )
  return blocks


# --- what is there already


def _about(folder: Path) -> dict:
  path = folder / 'prepared.json'
  try:
    about = json.loads(path.read_text())
    version = about['version']
    [about['lines'], *((part['tokens'], part['bytes'], part['sha256']) for part in about['parts'].values())]
  except FileNotFoundError:
    unfinished = (folder / 'journal.jsonl').exists()
    reason = 'is not finished; run the command that prepares it again, it goes on' if unfinished else 'has no prepared.json'
    raise InputError(
      f'config.data.source: prepared:{folder}: {reason} (python -m d2v_jax.prepare makes such folders)'
    ) from None
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    raise _damaged(folder, 'prepared.json', 'is not as it was written') from None
  if version != _VERSION:
    raise InputError(f'config.data.source: prepared:{folder}: is of version {version}, not {_VERSION}; prepare it again')
  return about


def _tokenizer_of(folder: Path, about: dict) -> Tokenizer:
  try:
    tokenizer = read_tokenizer(folder)
  except InputError as error:
    raise _damaged(folder, 'tokenizer.json', f'cannot be read ({error})') from None
  if tokenizer.fingerprint != about['tokenizer']:
    raise _damaged(
      folder, 'tokenizer.json', f'has the fingerprint {tokenizer.fingerprint}, prepared.json says {about["tokenizer"]}'
    )
  return tokenizer


def _check_stream(folder: Path, part: str, about: dict, tokenizer: Tokenizer, always: bool = False):
  """Compares the file of a part with what prepared.json says: its size, and its hash if it is small or `always`."""
  path, expected = folder / f'{part}.bin', about['parts'][part]
  if expected['tokens'] * _dtype(tokenizer.size).itemsize != expected['bytes']:
    raise _damaged(folder, 'prepared.json', f'{expected["tokens"]} tokens do not take {expected["bytes"]} bytes')
  if not path.exists():
    raise _damaged(folder, path.name, 'does not exist')
  if (size := path.stat().st_size) != expected['bytes']:
    raise _damaged(folder, path.name, f'has {size} bytes, prepared.json says {expected["bytes"]}')
  if (always or size < _CHECKED) and _sha256(path) != expected['sha256']:
    raise _damaged(folder, path.name, 'was changed: its hash is another than prepared.json says')


def _damaged(folder: Path, file: str, reason: str) -> InputError:
  return InputError(f'{folder / file}: {reason}; restore it, or delete {folder} and prepare it again')


def _sha256(path: Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _dtype(size: int) -> np.dtype:
  """Of ids on disk, for a tokenizer of that many entries."""
  return np.dtype('<u2' if size <= 1 << 16 else '<u4')


def _wanted_tokenizer(config) -> Tokenizer | None:
  from d2v_jax.checkpoints import weights  # here: it imports JAX, and worker processes do without

  return weights.tokenizer_of(config)


# --- making it


class _Job:
  """What shall be prepared: corpora and options, before the first of it is read.

  Attributes:
    corpora: part -> corpus.
    tokenizer: what makes the tokens; None: one that is trained on the corpus.
    header: what decides every byte that is written; the journal begins with it.
    key: hash of that.
  """

  def __init__(self, config, tokenizer: Tokenizer | None):
    self.corpora = open_corpora(config.data.source, config.data.tfds_dir)
    self._source, self._size, self._wrapped = config.data.source, config.model.vocab_size, config.data.lines == 'wrapped'
    self.tokenizer = tokenizer
    if self.tokenizer and self.tokenizer.size != self._size:
      raise InputError(
        f'config.model.vocab_size: {self._size}, but the tokenizer of {config.data.tokenizer or config.init_from} has'
        f' {self.tokenizer.size} entries; set config.model.vocab_size={self.tokenizer.size}, or give another'
      )
    self.header = {
      'version': _VERSION,
      'corpus': {part: corpus.identity for part, corpus in self.corpora.items()},
      'made_with': self.tokenizer.fingerprint if self.tokenizer else f'a trained tokenizer of {self._size} entries',
      'lines': config.data.lines,
    }
    self.key = hashlib.sha256(json.dumps(self.header).encode()).hexdigest()

  def run(self, folder: Path, workers: int) -> float:
    """Prepares what is not there yet; returns tokens per second, 0.0 where all was there. Raises InputError, RunError."""
    from d2v_jax.report.writers import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
      if (folder / 'prepared.json').exists():
        _claim(folder, self)  # another process may have been here first, with another corpus
        (folder / 'journal.jsonl').unlink(missing_ok=True)  # the last that is done before
        return 0.0
      start, journal = time.monotonic(), _Journal(folder, self.header)
      before = sum(journal.last(part)['tokens'] for part in self.corpora)
      tokenizer = self._tokenizer_in(folder)
      parts = {part: self._write(folder, part, tokenizer, journal, workers) for part in self.corpora}
      about = self.header | {'source': self._source, 'tokenizer': tokenizer.fingerprint, 'vocab_size': tokenizer.size}
      write_atomically(folder / 'prepared.json', json.dumps(about | {'parts': parts}, indent=2).encode())
      journal.remove()
    return (sum(part['tokens'] for part in parts.values()) - before) / (time.monotonic() - start)

  def _tokenizer_in(self, folder: Path) -> Tokenizer:
    """The tokenizer of the folder; it is trained, if need be, and written where it is not there yet."""
    from d2v_jax.report.writers import write_atomically

    if (folder / 'tokenizer.json').exists():  # beside a journal with our header: made for it
      return read_tokenizer(folder)
    tokenizer = self.tokenizer
    if tokenizer is None:
      corpus = self.corpora['train']
      logging.info('%s: training a tokenizer of %d entries', corpus.name, self._size)
      tokenizer = train_tokenizer(_sample(corpus, self._wrapped), self._size)
    write_atomically(folder / 'tokenizer.json', tokenizer.to_text().encode())
    return tokenizer

  def _write(self, folder: Path, part: str, tokenizer: Tokenizer, journal: '_Journal', workers: int) -> dict:
    """Writes the stream of a part, from where the journal says; returns what `prepared.json` says of it."""
    path, partial, corpus = folder / f'{part}.bin', folder / f'{part}.bin.partial', self.corpora[part]
    if path.exists():
      counts = journal.last(part)
    else:
      dtype = _dtype(tokenizer.size)
      counts = journal.last(part, partial.stat().st_size // dtype.itemsize if partial.exists() else 0)
      went_on = f', goes on after {counts["units"]} of {len(corpus.units)} pieces of work' if counts['units'] else ''
      logging.info('%s: %d files or documents, %.1f MB%s', corpus.name, len(corpus), corpus.size / 1e6, went_on)
      with open(partial, 'ab') as file:
        file.truncate(counts['tokens'] * dtype.itemsize)
        tokenise = _Tokenise(corpus, tokenizer, self._wrapped)
        results = _in_processes(tokenise, corpus.units[counts['units'] :], workers)
        for ids, found in _reported(results, corpus, counts['units']):
          file.write(ids.astype(dtype).tobytes())
          file.flush()
          os.fsync(file.fileno())
          counts = {name: count + found[name] for name, count in counts.items()}
          journal.add(part, counts)
      if not counts['tokens']:
        raise InputError(f'config.data.source: {corpus.name} holds no text, only white space')
      os.replace(partial, path)
    del counts['units']
    return counts | {'bytes': path.stat().st_size, 'sha256': _sha256(path)}


class _Journal:
  """How far a preparation is: a header, and a line for every unit whose tokens are on disk, that counts all up to it.

  Where there is no journal with this header, opening it starts anew and removes what another one left.
  """

  def __init__(self, folder: Path, header: dict):
    self._path, head = folder / 'journal.jsonl', json.dumps(header).encode()
    lines = self._path.read_bytes().split(b'\n')[:-1] if self._path.exists() else []  # after the last LF: half-written
    if lines[:1] != [head]:
      if lines:
        logging.warning('%s was begun with another corpus, tokenizer or options: it starts anew', folder)
      lines = []
      for path in [self._path, *folder.glob('*.bin'), *folder.glob('*.bin.partial'), folder / 'tokenizer.json']:
        path.unlink(missing_ok=True)
    self._rows = [json.loads(line) for line in lines[1:]]
    self._file = open(self._path, 'ab')  # noqa: SIM115
    self._file.truncate(sum(len(line) + 1 for line in lines))
    if not lines:
      self._append(head)

  def last(self, part: str, tokens: int | None = None) -> dict:
    """What a part has: 'units', 'tokens', 'sentences' and 'documents'; of at most so many tokens."""
    counts = dict.fromkeys(('units', 'tokens', 'sentences', 'documents'), 0)
    found = [row[part] for row in self._rows if part in row and (tokens is None or row[part]['tokens'] <= tokens)]
    return found[-1] if found else counts

  def add(self, part: str, counts: dict):
    self._append(json.dumps({part: counts}).encode())

  def remove(self):
    self._file.close()
    self._path.unlink()

  def _append(self, line: bytes):
    self._file.write(line + b'\n')
    self._file.flush()
    os.fsync(self._file.fileno())


class _Tokenise:
  """Unit -> (its ids int32 [n], what they are: counts). Travels to the workers."""

  def __init__(self, corpus, tokenizer: Tokenizer, wrapped: bool):
    self._corpus, self._tokenizer, self._wrapped = corpus, tokenizer, wrapped

  def __call__(self, unit) -> tuple[np.ndarray, dict]:
    ids, sentences, documents = [np.empty(0, np.int32)], 0, 0
    for piece in self._corpus.read(unit, self._wrapped):
      ids += [self._tokenizer.encode(piece.text), np.full(piece.ends_sentence + piece.ends_document, EOS, np.int32)]
      sentences += piece.ends_sentence
      documents += piece.ends_document
    ids = np.concatenate(ids)
    return ids, {'units': 1, 'tokens': len(ids), 'sentences': sentences, 'documents': documents}


def _sample(corpus, wrapped: bool):
  """Yields text from all over a corpus, at most about _TRAINED_ON characters: the beginnings of at most 256 units."""
  chosen = corpus.units[:: -(-len(corpus.units) // 256)]
  for unit in chosen:
    left = _TRAINED_ON // len(chosen)
    for piece in corpus.read(unit, wrapped):
      yield piece.text
      left -= len(piece.text)
      if left <= 0:
        break


def _reported(results, corpus, first: int):
  """Yields the results of all units from `first` on, and logs from time to time how far that is."""
  from d2v_jax.report.progress import format_duration

  skipped = done = sum(unit.size for unit in corpus.units[:first])
  start = last = time.monotonic()
  for unit, result in zip(corpus.units[first:], results):
    yield result
    done, now = done + unit.size, time.monotonic()
    if now - last >= _REPORT_SECONDS and done < corpus.size:
      last, speed = now, (done - skipped) / (now - start)
      logging.info(
        '%s: %.1f of %.1f MB (%.0f%%) | %.2f MB/s | ETA %s',
        *(corpus.name, done / 1e6, corpus.size / 1e6, 100 * done / corpus.size, speed / 1e6),
        format_duration((corpus.size - done) / speed),
      )


def _in_processes(function, items: list, workers: int):
  """Yields function(item) of each item, in order, by at most so many worker processes; up to 1: by none but this one."""
  workers = min(workers, len(items), os.cpu_count() or 1)
  if workers <= 1:
    yield from map(function, items)
    return
  context = multiprocessing.get_context('spawn')
  end_seen, end = context.Pipe(duplex=False)
  pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(function, end_seen))
  pending = collections.deque()
  try:
    for item in items:
      pending.append(pool.submit(_work, item))
      if len(pending) > 2 * workers:  # results wait for those before them; no more than these
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  except BrokenProcessPool:
    raise RunError(
      f'a worker process died while text was prepared: out of memory? run again with fewer of them (now {workers}:'
      ' config.data.workers), it goes on where it stopped'
    ) from None
  finally:
    end.close()
    pool.shutdown(cancel_futures=True)
    end_seen.close()


def _start_worker(function, end_seen):
  """Signals to stop go to the main process. When that closes its end of the pipe, or is killed, the worker ends at once."""
  global _function
  _function = function
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # each worker is one of many
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)

  def end_with_parent():
    multiprocessing.connection.wait([end_seen])
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()


def _work(item):
  return _function(item)


def _claim(folder: Path, job: _Job):
  """Raises InputError for a folder to write into that holds something else."""
  if folder.exists() and not folder.is_dir():
    raise InputError(f'--output: {folder} is not a directory; give a new one')
  names = {path.name for path in folder.iterdir()} if folder.exists() else set()
  if 'prepared.json' in names:
    about = _about(folder)
    if differing := [name for name, value in job.header.items() if about.get(name) != value]:
      meaning = {'corpus': 'other files (or other sizes or times of change)', 'made_with': 'another tokenizer'}
      raise InputError(
        f'--output: {folder} holds what was prepared from {about.get("source")} with'
        f' {", ".join(meaning.get(name, f"other {name}") for name in differing)}; give a new folder, or delete that one'
      )
  elif 'journal.jsonl' not in names and (others := sorted(names - {'.lock'})):
    raise InputError(f'--output: {folder} holds something else ({others[0]}, ...); give a new folder')


@contextlib.contextmanager
def _locked(folder: Path):
  """Only one process at a time is inside, of all that share the folder."""
  with open(folder / '.lock', 'wb') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.info('%s is being prepared by another process; waiting for it', folder)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


@contextlib.contextmanager
def _reporting(where: str):
  """Files that cannot be written end the run in one line."""
  try:
    yield
  except OSError as error:
    raise RunError(
      f'{where}: cannot be written ({error.strerror}); make room, or give another place. Run again, it goes on'
    ) from error
