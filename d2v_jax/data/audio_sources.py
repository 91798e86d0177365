"""Sources of speech: clips by index, from files as they lie on disk, or from whatever else holds recordings.

A clip is a part of a recording. Recordings are an object with
  `decode(item, start, stop)`  float32 [n] at 16 kHz of some frames; raises ValueError;
  `name(item)`                 the file, or file and record;
  `frames`, `rates`            int64 [M], at the recording's own rate and in Hz; 0 where it is unreadable;
  `unreadable`                 item -> reason.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import logging

from d2v_jax.data import audio
from d2v_jax.data.audio import SAMPLE_RATE
from d2v_jax.data.places import SPLIT_NAMES, directory, no_test_part, walk
from d2v_jax.errors import InputError
from d2v_jax.report.progress import reported

EXTENSIONS = ('.wav', '.flac', '.ogg', '.oga', '.opus', '.mp3', '.aif', '.aiff', '.aifc', '.au', '.caf', '.w64', '.sph')
_THREADS = 16
_BLOCK = 64  # items a thread takes at once


@dataclasses.dataclass(frozen=True)
class AudioSource:
  """Clips by index. It can be pickled, and holds no open files.

  Attributes:
    recordings: see the module.
    items: int64 [N], the recording of each clip.
    starts, stops: int64 [N], first frame and the one after the last, at the recording's own rate.
    texts: list of N str, '' where there is no transcript or an empty one.
    has_text: bool [N], whether there is a transcript, be it empty.
    groups: int64 [N], the speaker or recording that a clip shares with others, or None.
    dropped: reason -> number of clips left out by `usable`.
    classes: (), there are no labels.
  """

  recordings: object
  items: np.ndarray
  starts: np.ndarray
  stops: np.ndarray
  texts: list[str]
  has_text: np.ndarray
  groups: np.ndarray | None = None
  dropped: dict[str, int] = dataclasses.field(default_factory=dict)
  classes = ()

  def __len__(self) -> int:
    return len(self.items)

  def read(self, index: int) -> dict:
    """{'audio': float32 [n] at 16 kHz as recorded, 'text': str, 'label': -1}. Raises ValueError."""
    item = int(self.items[index])
    if item in self.recordings.unreadable:
      raise ValueError(self.recordings.unreadable[item])
    wave = self.recordings.decode(item, int(self.starts[index]), int(self.stops[index]))
    return {'audio': wave, 'text': self.texts[index], 'label': -1}

  def name(self, index: int) -> str:
    """The recording, and @start-stop in seconds where the clip is only a part of it."""
    item, start, stop = int(self.items[index]), int(self.starts[index]), int(self.stops[index])
    frames, rate = int(self.recordings.frames[item]), int(self.recordings.rates[item])
    part = '' if (start, stop) == (0, frames) else f'@{start / rate:.2f}-{stop / rate:.2f}'
    return self.recordings.name(item) + part

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """int64 [N], samples at 16 kHz; 0 where the recording is unreadable."""
    return audio.resampled_length(self.stops - self.starts, np.maximum(self.recordings.rates[self.items], 1))

  def take(self, indices) -> 'AudioSource':
    """The clips of these indices (or of a mask), in that order."""
    indices = np.arange(len(self))[indices]
    arrays = {name: getattr(self, name)[indices] for name in ('items', 'starts', 'stops', 'has_text')}
    groups = None if self.groups is None else self.groups[indices]
    return dataclasses.replace(self, **arrays, texts=[self.texts[index] for index in indices], groups=groups)


class FileAudio:
  """Recordings that are files. Paths are one fixed-width array: a million of them go to a worker in no time.

  Args:
    root: directory, as bytes: file names need not be valid text.
    paths: of the files, below `root`.
    expected: (frames, rates) int64 [M] to believe and check when a file is read; None: all headers are read.
  """

  def __init__(self, root: bytes, paths: list[bytes], expected: tuple[np.ndarray, np.ndarray] | None = None):
    self._root, self._paths = root, np.array(paths)
    self.unreadable = {}
    if expected is None:
      headers = in_threads(self._header, range(len(paths)), 'reading the headers of audio files')
      self.unreadable = {item: header for item, header in enumerate(headers) if isinstance(header, str)}
      headers = [(0, 0) if isinstance(header, str) else header for header in headers]
      expected = np.array(headers, np.int64).reshape(-1, 2).T
    self.frames, self.rates = expected

  def decode(self, item: int, start: int, stop: int) -> np.ndarray:
    return audio.decode(self.name(item), start, stop, (int(self.frames[item]), int(self.rates[item])))

  def name(self, item: int) -> str:
    return os.fsdecode(os.path.join(self._root, self._paths[item]))

  def _header(self, item: int) -> tuple[int, int] | str:
    try:
      return audio.info(self.name(item))
    except ValueError as error:
      return str(error)


def open_recordings(recordings) -> AudioSource:
  """A source of whole recordings; `recordings` also has `texts` and `speakers`, see `RecordAudio`."""
  speakers = recordings.speakers
  groups = None if speakers is None else np.unique(speakers, return_inverse=True)[1]
  return _whole(recordings, recordings.texts, groups)


def split_long(source: AudioSource, seconds: float) -> AudioSource:
  """Cuts clips without transcript that are longer than `seconds` into equal parts that are not.

  Where any is cut and there are no groups yet, those are the recordings: parts of one belong together.
  """
  frames = source.stops - source.starts
  limits = np.maximum(seconds * source.recordings.rates[source.items], 1)
  counts = np.where(source.has_text, 1, np.maximum(np.ceil(frames / limits), 1)).astype(np.int64)
  if (counts == 1).all():
    return source
  parents = np.repeat(np.arange(len(source)), counts)
  part = np.arange(len(parents)) - np.repeat(np.cumsum(counts) - counts, counts)
  starts, frames, counts = (array[parents] for array in (source.starts, frames, counts))
  logging.info(
    '%d recordings longer than %g s are read as %d clips', np.count_nonzero(part == 1), seconds, np.sum(counts > 1)
  )
  parts = source.take(parents)
  return dataclasses.replace(
    parts,
    starts=starts + frames * part // counts,
    stops=starts + frames * (part + 1) // counts,
    groups=parts.items if parts.groups is None else parts.groups,
  )


def usable(
  source: AudioSource, shortest: int, longest: int | None, check_text: Callable[[str], object] | None
) -> AudioSource:
  """Leaves out what cannot be used, with one warning for each reason.

  Args:
    shortest, longest: samples at 16 kHz; None: any.
    check_text: raises ValueError for a transcript that cannot be learned from; None: transcripts do not matter.

  Returns:
    The rest; its `dropped` has reason -> number of clips left out: 'unreadable', 'too_short', 'too_long', 'no_transcript',
    'empty_transcript', 'bad_transcript'.

  Raises:
    InputError: nothing is left.
  """
  dropped, keep = {}, np.ones(len(source), bool)
  examples = []

  def leave_out(reason: str, found: np.ndarray, why: Callable[[int], str]):
    found = np.flatnonzero(found & keep)
    if len(found):
      dropped[reason], keep[found] = len(found), False
      examples.append(f'{reason}: {len(found)} of {len(source)} clips; the first: {source.name(found[0])}: {why(found[0])}')

  lengths, texts = source.lengths, source.texts
  seconds = lambda index: f'{lengths[index] / SAMPLE_RATE:.3f} s ({lengths[index]} samples at 16 kHz)'
  leave_out(
    'unreadable', source.recordings.rates[source.items] == 0, lambda index: source.recordings.unreadable[source.items[index]]
  )
  leave_out(
    'too_short', lengths < shortest, lambda index: f'{seconds(index)}, at least {shortest / SAMPLE_RATE:g} s are needed'
  )
  if longest is not None:
    leave_out('too_long', lengths > longest, lambda index: f'{seconds(index)}, {longest / SAMPLE_RATE:g} s are allowed')
  if check_text is not None:
    leave_out('no_transcript', ~source.has_text, lambda index: 'no transcript')
    leave_out('empty_transcript', [not text.strip() for text in texts], lambda index: 'its transcript is empty')
    reasons = {}
    for index in reported(np.flatnonzero(keep), int(keep.sum()), 'checking transcripts'):
      try:
        check_text(texts[index])
      except ValueError as error:
        reasons[index] = str(error)
    leave_out('bad_transcript', np.isin(np.arange(len(source)), list(reasons)), reasons.get)
  if not keep.any():
    raise InputError(f'config.data.source: none of {len(source)} clips can be used: {"; ".join(examples)}')
  for example in examples:
    logging.warning('left out, %s', example)
  return dataclasses.replace(source.take(keep), dropped=dropped)


def open_librispeech(place: str, split: str) -> AudioSource:
  """Opens PLACE/SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac, or below any of these levels.

  Transcripts are in SPEAKER-CHAPTER.trans.txt beside the audio, if anywhere. The train part is all of train-*, the test
  part dev-*, or test-* where there is no dev-*; below the level of subsets everything is for training. Groups are speakers.
  """
  root = directory('librispeech', place)
  subsets = _subsets(root)
  if not subsets and (root / 'LibriSpeech').is_dir():
    root = root / 'LibriSpeech'
    subsets = _subsets(root)
  if split == 'test' and not any(name.startswith(('dev-', 'test-')) for name in subsets):
    raise no_test_part(f'librispeech:{place}')
  prefixes = ('train-',) if split == 'train' else ('dev-', 'test-')
  chosen = next((found for prefix in prefixes if (found := [name for name in subsets if name.startswith(prefix)])), [''])
  if subsets and chosen == ['']:
    raise InputError(
      f'config.data.source: {root.absolute()} has {", ".join(subsets)} but no train-*; to train on one of them name it:'
      f' librispeech:{root / subsets[0]} (config.data.holdout then holds out whole speakers for the evaluation)'
    )
  files = []
  for subset in chosen:
    below = os.fsencode(subset)
    files += [os.path.join(below, path) for path in sorted(walk(root / subset)) if _is_audio(path)]
  if not files:
    raise InputError(f'config.data.source: {root.absolute()} holds no SPEAKER-CHAPTER-NUMBER.flac at any depth')
  chapters, speakers = [], []
  for path in files:
    match = re.fullmatch(rb'((\d+)-\d+)-\d+', _stem(path))
    if match is None:
      raise InputError(
        f'config.data.source: {root / os.fsdecode(path)} is not named SPEAKER-CHAPTER-NUMBER.flac as LibriSpeech is;'
        ' folder:PLACE reads files of any name'
      )
    chapters.append(os.path.join(os.path.dirname(path), match[1] + b'.trans.txt'))
    speakers.append(int(match[2]))
  root_path = os.fsencode(root.absolute())
  lists = sorted(set(chapters))
  read = lambda path: _transcripts(os.path.join(root_path, path), ' ')
  by_chapter = dict(zip(lists, in_threads(read, lists, 'reading transcripts')))
  texts = [by_chapter[chapter].get(_stem(path).decode()) for path, chapter in zip(files, chapters)]
  return _whole(FileAudio(root_path, files), texts, np.array(speakers))


def open_manifest(place: str, split: str) -> AudioSource:
  """Opens PLACE.tsv for training, or PLACE/train.tsv with PLACE/{valid,dev,test}.tsv for the test.

  The first line is the directory of the files (a relative one is below the manifest's own); every other one is
  PATH TAB FRAMES, perhaps with TAB START TAB END in seconds for a part of the file. FRAMES are the whole file's, at its own
  rate, which has to be the same for all: the first file's. Transcripts, a line each, are in NAME.wrd (words) or NAME.ltr
  (letters one space apart, | between words) beside NAME.tsv.
  """
  manifest = _manifest_path(place, split)
  where = f'config.data.source: {manifest.absolute()}'
  head, *lines = _lines(manifest)
  if not head or '\t' in head:
    raise InputError(f'{where}:1: the first line is the directory of the files, found {head[:60]!r}')
  if not lines:
    raise InputError(f'{where}: lists no files; every line after the first is PATH TAB FRAMES')
  paths, frames, spans = [], [], []
  for number, line in enumerate(lines, 2):
    try:
      path, count, *span = line.split('\t')
      start, stop = map(float, span) if span else (0.0, None)
      if not path or int(count) < 0 or not (stop is None or 0 <= start < stop):
        raise ValueError
    except ValueError:
      raise InputError(
        f'{where}:{number}: not PATH TAB FRAMES, or PATH TAB FRAMES TAB START TAB END (seconds): {line[:80]!r}'
      ) from None
    paths.append(os.fsencode(path))
    frames.append(int(count))
    spans.append((start, stop))
  root = os.fsencode(os.path.join(manifest.parent.absolute(), Path(head).expanduser()))
  there = in_threads(lambda path: os.path.exists(os.path.join(root, path)), paths, 'looking for the files of the manifest')
  if missing := [path for path, found in zip(paths, there) if not found]:
    first = os.fsdecode(os.path.join(root, missing[0]))
    raise InputError(
      f'{where}: {len(missing)} of {len(paths)} files do not exist: {first}; its first line says where they lie'
    )
  frames = np.array(frames, np.int64)
  rate = _first_rate(root, paths)
  source = _whole(FileAudio(root, paths, (frames, np.full(len(paths), rate))), _texts_of_manifest(manifest, len(paths)))
  starts = np.array([round(start * rate) for start, _ in spans])
  stops = np.array([count if stop is None else round(stop * rate) for count, (_, stop) in zip(frames, spans)])
  if (beyond := np.flatnonzero(stops > frames)).size:
    index = beyond[0]
    raise InputError(f'{where}:{index + 2}: END is {spans[index][1]} s, the file has {frames[index]} frames at {rate} Hz')
  return dataclasses.replace(source, starts=starts, stops=stops)


def open_folder(place: str, split: str) -> AudioSource:
  """Opens audio files at any depth below PLACE/{train,val,test}, or below PLACE (all for training).

  A transcript is in NAME.txt beside the audio, or, for files in a directory wavs/, in metadata.csv beside that directory
  (`id|text|normalised text`, as LJSpeech has it). Symbolic links are followed, hidden files and directories ignored.
  """
  root = directory('folder', place)
  parts = {
    part: next((root / name for name in names if (root / name).is_dir()), None) for part, names in SPLIT_NAMES.items()
  }
  if split == 'test' and parts['test'] is None:
    raise no_test_part(f'folder:{place}')
  if split == 'train' and parts['train'] is None and parts['test'] is not None:
    raise InputError(
      f'config.data.source: folder:{place} has {parts["test"].name}/ but no train/ beside it; put the training audio there'
    )
  root = parts[split] or root
  found = sorted(walk(root))
  files = _audio_of(root, found)
  root_path = os.fsencode(root.absolute())
  beside = {path for path in found if path.endswith(b'.txt')}

  @functools.cache
  def table(folder: bytes) -> dict[str, str]:
    is_wavs = os.path.basename(os.path.join(root_path, folder).rstrip(b'/')) == b'wavs'
    path = os.path.join(os.path.dirname(os.path.join(root_path, folder).rstrip(b'/')), b'metadata.csv')
    return _transcripts(path, '|') if is_wavs else {}

  def text(path: bytes) -> str | None:
    own = os.path.splitext(path)[0] + b'.txt'
    if own in beside:
      return _content(os.path.join(root_path, own)).strip()
    return table(os.path.dirname(path)).get(os.fsdecode(_stem(path)))

  return _whole(FileAudio(root_path, files), in_threads(text, files, 'reading transcripts'))


def open_files(path: Path) -> AudioSource:
  """Opens one audio file, or all of them below a directory at any depth, sorted, without transcripts. Raises InputError."""
  if path.is_file():
    root, files = path.parent, [os.fsencode(path.name)]
  else:
    root = directory('folder', str(path))
    files = _audio_of(root, sorted(walk(root)))
  return _whole(FileAudio(os.fsencode(root), files), [None] * len(files))


def in_threads(function: Callable, items: Sequence, what: str) -> list:
  """[function(item) for item in items] by threads, for what waits for the disk; tells from time to time how far it is."""
  block = lambda first: [function(item) for item in items[first : first + _BLOCK]]
  with ThreadPoolExecutor(_THREADS) as pool:
    blocks = pool.map(block, range(0, len(items), _BLOCK))
    return list(reported((result for results in blocks for result in results), len(items), what))


def _whole(recordings, texts: list[str | None], groups: np.ndarray | None = None) -> AudioSource:
  """One clip for each recording; a text of None is no transcript."""
  count = len(recordings.frames)
  has_text = np.array([text is not None for text in texts], bool)
  starts = np.zeros(count, np.int64)
  return AudioSource(
    recordings, np.arange(count), starts, recordings.frames, [text or '' for text in texts], has_text, groups
  )


def _is_audio(path: bytes) -> bool:
  return os.fsdecode(os.path.splitext(path)[1]).lower() in EXTENSIONS


def _audio_of(root: Path, paths: list[bytes]) -> list[bytes]:
  files = [path for path in paths if _is_audio(path)]
  if not files:
    raise InputError(f'config.data.source: {root.absolute()} holds no audio ({", ".join(EXTENSIONS)})')
  return files


def _stem(path: bytes) -> bytes:
  return os.path.splitext(os.path.basename(path))[0]


def _subsets(root: Path) -> list[str]:
  return sorted(path.name for path in root.iterdir() if re.match('(train|dev|test)-', path.name) and path.is_dir())


def _content(path) -> str:
  """Text of a file; what is not UTF-8 becomes U+FFFD, which no vocabulary has. Raises InputError."""
  try:
    with open(path, 'rb') as file:
      return file.read().decode('utf-8-sig', errors='replace')
  except OSError as error:
    raise InputError(f'config.data.source: {os.fsdecode(path)}: {error.strerror}') from None


def _lines(path) -> list[str]:
  lines = [line.rstrip('\r') for line in _content(path).split('\n')]
  return lines[:-1] if len(lines) > 1 and not lines[-1] else lines


def _transcripts(path: bytes, separator: str) -> dict[str, str]:
  """Name -> text of a file with lines of name, separator, text (the last of several texts); {} without the file."""
  if not os.path.exists(path):
    return {}
  texts = {}
  for number, line in enumerate(_lines(path), 1):
    name, *fields = line.split(separator, 1 if separator == ' ' else -1)
    if separator == '|' and not fields:
      raise InputError(f'config.data.source: {os.fsdecode(path)}:{number}: not id|text|normalised text: {line[:60]!r}')
    if name:
      texts[name] = next((field.strip() for field in reversed(fields) if field.strip()), '')
  return texts


def _manifest_path(place: str, split: str) -> Path:
  path = Path(place).expanduser()
  if path.is_file():
    if split == 'test':
      raise no_test_part(f'manifest:{place}')
    return path
  names = [f'{name}.tsv' for name in (('train',) if split == 'train' else ('valid', 'dev', 'test'))]
  root = directory('manifest', place)
  manifest = next((root / name for name in names if (root / name).is_file()), None)
  if manifest is None and split == 'test':
    raise no_test_part(f'manifest:{place}')
  if manifest is None:
    raise InputError(f'config.data.source: manifest:{place}: {root.absolute()} holds no train.tsv; or name a .tsv file')
  return manifest


def _first_rate(root: bytes, paths: list[bytes]) -> int:
  """Hz of the first file that can be read."""
  for path in paths:
    try:
      return audio.info(os.fsdecode(os.path.join(root, path)))[1]
    except ValueError:
      continue
  return SAMPLE_RATE


def _texts_of_manifest(manifest: Path, count: int) -> list[str | None]:
  for suffix in ('.wrd', '.ltr'):
    path = manifest.with_suffix(suffix)
    if not path.is_file():
      continue
    lines = _lines(path)
    if len(lines) != count:
      raise InputError(f'config.data.source: {path.absolute()} has {len(lines)} lines, {manifest.name} lists {count} files')
    if suffix == '.ltr':
      lines = [line.replace(' ', '').replace('|', ' ') for line in lines]
    return [' '.join(line.split()) for line in lines]
  return [None] * count
