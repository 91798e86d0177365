"""`sample:sentences`: short sentences of a small vocabulary, spoken by the synthesiser espeak-ng.

Every sound and every letter is known, so a run shows within minutes whether it learns to hear: no download is needed.
"""

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np

from d2v_jax.data import audio
from d2v_jax.data.audio_sources import AudioSource, open_recordings
from d2v_jax.errors import InputError

NUM_TRAIN = 800
NUM_TEST = 100
VOICES = ('en-us', 'en-us+f3', 'en-us+m3', 'en-gb-x-rp', 'en-gb-x-rp+f2', 'en-gb-scotland+m7')
RATES = (120, 170)  # words per minute
PITCHES = (30, 70)  # of 0 to 99

_PROGRAM = Path(__file__).with_name('espeak.py')
_NUMBERS = ('TWO', 'THREE', 'FOUR', 'FIVE', 'SIX', 'SEVEN', 'EIGHT', 'NINE', 'TEN')
_ADJECTIVES = ('RED', 'BLUE', 'GREEN', 'BLACK', 'WHITE', 'SMALL', 'BIG', 'OLD', 'NEW', 'GOOD')
_NOUNS = ('DOG', 'CAT', 'BIRD', 'BOY', 'GIRL', 'KING', 'HORSE', 'TREE', 'HOUSE', 'BOAT')
_VERBS = ('SEES', 'FINDS', 'TAKES', 'LIKES', 'WANTS', 'HEARS', 'KEEPS', 'HOLDS')


class SpokenSentences:
  """Recordings in memory, for an `AudioSource`: `samples` int16 [n] at 16 kHz, one recording after the other."""

  def __init__(self, samples: np.ndarray, frames: np.ndarray, texts: list[str], speakers: np.ndarray):
    self._samples, self._ends = samples, np.cumsum(frames)
    self.frames, self.rates = frames, np.full(len(frames), audio.SAMPLE_RATE)
    self.texts, self.speakers, self.unreadable = texts, speakers, {}

  def decode(self, item: int, start: int, stop: int) -> np.ndarray:
    first = self._ends[item] - self.frames[item]
    return self._samples[first + start : first + stop].astype(np.float32) / 32768

  def name(self, item: int) -> str:
    return f'sentence {item}, {VOICES[self.speakers[item]]}'


def open_sample(place: str, split: str, seed: int) -> AudioSource:
  """Opens `sample:sentences`: 800 sentences to train on, always the same, or 100 others for the test, drawn by the seed.

  Two calls share their arrays. Groups are the voices. Raises InputError, also where the synthesiser is not installed.
  """
  if place != 'sentences':
    raise InputError(f'config.data.source: sample:{place} does not exist; the sample of audio is sample:sentences')
  return open_recordings(_spoken(split, 0 if split == 'train' else seed))


@functools.cache
def sentences(split: str, seed: int) -> tuple[str, ...]:
  """The sentences of 'train' (whatever the seed) or 'test', upper case letters and spaces, 4 to 7 words; all different."""
  train = _draw(np.random.default_rng(0), NUM_TRAIN, taken=())
  return train if split == 'train' else _draw(np.random.default_rng((1, seed)), NUM_TEST, taken=train)


def _draw(rng: np.random.Generator, count: int, taken: tuple[str, ...]) -> tuple[str, ...]:
  found = {}
  while len(found) < count:
    sentence = _sentence(rng)
    if sentence not in taken:
      found[sentence] = None
  return tuple(found)


def _sentence(rng: np.random.Generator) -> str:
  """Somebody does something to something: THE SMALL DOG SEES TWO RED BIRDS."""
  draw = lambda words: words[rng.integers(len(words))]
  subject, thing = draw(_NOUNS), draw(_NOUNS)
  words = ['THE', draw(_ADJECTIVES), subject] if rng.random() < 0.5 else [draw(('THE', 'A')), subject]
  words.append(draw(_VERBS))
  words += [draw(_ADJECTIVES)] if (described := rng.random() < 0.5) else []
  if rng.random() < 0.5:
    words.insert(len(words) - described, draw(_NUMBERS))
    thing += 'S'
  else:
    words.insert(len(words) - described, 'THE')
  return ' '.join([*words, thing])


@functools.cache
def _spoken(split: str, seed: int) -> SpokenSentences:
  texts = list(sentences(split, seed))
  rng = np.random.default_rng((2, 0) if split == 'train' else (3, seed))
  voices = rng.integers(len(VOICES), size=len(texts))
  rates, pitches = (rng.integers(low, high, len(texts), endpoint=True) for low, high in (RATES, PITCHES))
  if importlib.util.find_spec('espeakng_loader') is None:
    raise InputError(
      "config.data.source: sample:sentences needs the synthesiser espeak-ng; pip install -e '.[speech-sample]'"
    )
  asked = zip(voices, rates, pitches, texts)
  lines = ''.join(f'{VOICES[voice]}\t{rate}\t{pitch}\t{text.lower()}\n' for voice, rate, pitch, text in asked)
  # -P: the directory of the program is not one to import from.
  done = subprocess.run([sys.executable, '-P', _PROGRAM], input=lines.encode(), capture_output=True)
  if done.returncode:
    reason = (done.stderr.decode(errors='replace').strip() or f'exit code {done.returncode}').splitlines()[-1]
    raise InputError(f'config.data.source: sample:sentences: espeak-ng does not work here: {reason}')
  header = np.frombuffer(done.stdout, np.int64, 1 + len(texts))
  pieces = np.split(np.frombuffer(done.stdout, np.int16, offset=header.nbytes), np.cumsum(header[1:-1]))
  waves = [audio.conform(piece.astype(np.float32) / 32768, int(header[0])) for piece in pieces]
  frames = np.array([len(wave) for wave in waves])
  samples = np.clip(np.rint(np.concatenate(waves) * 32768), -32768, 32767).astype(np.int16)
  return SpokenSentences(samples, frames, texts, voices)
