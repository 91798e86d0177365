"""Speech from what users have: any file that libsndfile reads to one channel of 16 kHz float32 samples."""

import contextlib
import io
import re

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000  # Hz

_UNKNOWN_FRAMES = 1 << 62  # libsndfile reports a number above this where a header does not say how long the audio is
_STREAMED = 1 << 31  # a chunk size from here on is what programs write that do not know the size in advance


def info(data: str | bytes) -> tuple[int, int]:
  """Returns (frames, frames per second) of a file (its path, or its content as bytes), from its header.

  Raises:
    ValueError: it is no audio, is cut off, or does not say how long it is; a short reason without the name.
  """
  with _opened(data) as file:
    return file.frames, file.samplerate


def decode(
  data: str | bytes, start: int = 0, stop: int | None = None, expected: tuple[int, int] | None = None
) -> np.ndarray:
  """Decodes a file, or a part of it, and brings it to 16 kHz; channels are averaged.

  Args:
    data: its path, or its content as bytes. The content says what it is, not the name.
    start, stop: first frame and the one after the last, at the file's own rate; only these are read. None: to the end.
    expected: (frames, rate) that the file must have, as `info` gives them.

  Returns:
    float32 [n], n = `resampled_length(stop - start, rate)`; integer samples are scaled to [-1, 1).

  Raises:
    ValueError: as `info`; also where there is not a sample, not all samples can be read, or one is not finite.
  """
  with _opened(data) as file:
    found, rate = (file.frames, file.samplerate), file.samplerate
    if expected not in (None, found):
      raise ValueError(
        f'has {found[0]} frames at {found[1]} Hz; its manifest, or its header when the run began, says {expected[0]} at'
        f' {expected[1]} Hz'
      )
    stop = file.frames if stop is None else stop
    if not 0 <= start <= stop <= file.frames:
      raise ValueError(f'frames {start} to {stop} are wanted, it has {file.frames}')
    try:
      file.seek(start)
      wave = file.read(stop - start, dtype='float32', always_2d=True)
    except soundfile.LibsndfileError as error:
      raise ValueError(f'damaged audio ({_words(error)})') from None
  if len(wave) < stop - start:
    raise ValueError(f'cut off: {len(wave)} of {stop - start} frames can be read')
  return conform(wave, rate)


def conform(wave: np.ndarray, rate: int) -> np.ndarray:
  """Brings samples [n] or [n, channels], float32, at `rate` Hz to 16 kHz: float32 [`resampled_length(n, rate)`].

  Raises ValueError where that is nothing, or a sample is not finite.
  """
  length = resampled_length(len(wave), rate)
  if not length:
    raise ValueError('no samples')
  if not np.isfinite(wave).all():
    raise ValueError('has samples that are not finite (NaN or infinity)')
  if wave.ndim > 1:
    wave = wave.mean(axis=1)
  if rate != SAMPLE_RATE:
    wave = soxr.resample(wave, rate, SAMPLE_RATE)[:length]  # soxr rounds the length to the nearest
  return np.ascontiguousarray(wave)


def resampled_length(frames, rate):
  """Samples at 16 kHz that `decode` makes of `frames` frames at `rate` Hz: rounded down. Integers or int64 arrays."""
  return frames * SAMPLE_RATE // rate


def standardise(wave: np.ndarray) -> np.ndarray:
  """Zero mean and unit variance over a whole utterance [n], float32: (x - mean) / sqrt(variance + 1e-5)."""
  mean, variance = np.mean(wave, dtype=np.float64), np.var(wave, dtype=np.float64)
  return ((wave - mean) / np.sqrt(variance + 1e-5)).astype(np.float32)


def receptive_field(layers) -> tuple[int, int]:
  """Samples that one frame of convolutions (channels, kernel, stride) covers, and samples from one frame to the next."""
  field, step = 1, 1
  for _, kernel, stride in layers:
    field, step = field + (kernel - 1) * step, step * stride
  return field, step


@contextlib.contextmanager
def _opened(data: str | bytes):
  with contextlib.ExitStack() as stack:
    if isinstance(data, bytes):
      empty, source = not data, io.BytesIO(data)
    else:
      try:
        content = stack.enter_context(open(data, 'rb', buffering=0))
      except OSError as error:
        raise ValueError(error.strerror) from None
      # By its descriptor libsndfile neither sees nor believes the name.
      empty, source = not content.seek(0, io.SEEK_END), content.fileno()
      content.seek(0)
    if empty:
      raise ValueError('an empty file (0 bytes)')
    try:
      file = stack.enter_context(soundfile.SoundFile(source, closefd=False))
    except soundfile.LibsndfileError as error:
      raise ValueError(f'not audio that can be read ({_words(error)})') from None
    _check_whole(file)
    yield file


def _check_whole(file):
  """Raises ValueError where the header is of no use."""
  if file.frames >= _UNKNOWN_FRAMES:
    raise ValueError('its header does not say how long it is; encode it again')
  # libsndfile shortens what is cut off to what there is, and only its log tells.
  for size, found in re.findall(r'^ ?(?:data|SSND) : (\d+) \(should be (\d+)\)', file.extra_info, re.MULTILINE):
    if int(found) < int(size) < _STREAMED:
      raise ValueError(f'cut off: {found} of {size} bytes of samples')


def _words(error) -> str:
  words = ' '.join(error.error_string.split()).removeprefix('Error : ').rstrip('.')
  # libsndfile's wording for an MP3 it cannot make sense of.
  return 'format not recognised' if words.startswith(('Format not', 'File does not exist')) else words
