"""The spoken sample: the same speech every time, of sentences that training and test do not share."""

import importlib.util
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from d2v_jax.config import default_config
from d2v_jax.data import letters, spoken_sentences
from d2v_jax.data.sources import open_source
from d2v_jax.errors import InputError

needs_espeak = pytest.mark.skipif(
  importlib.util.find_spec('espeakng_loader') is None, reason='the package espeakng-loader is not installed'
)

_DIGEST = """
import hashlib
from d2v_jax.data.spoken_sentences import open_sample
source = open_sample('sentences', 'test', 5)
print(hashlib.sha256(b''.join(source.read(i)['audio'].tobytes() for i in range(len(source)))).hexdigest())
"""


def open_sample(split, seed=1, task='ctc'):
  config = default_config('audio', task)
  config.seed, config.data.source = seed, 'sample:sentences'
  return open_source(config, split)


def test_sentences():
  train, test, other = (spoken_sentences.sentences(*part) for part in (('train', 1), ('test', 1), ('test', 2)))
  assert len(set(train)) == 800 and len(set(test)) == 100
  assert not set(train) & set(test) and set(test) != set(other) and spoken_sentences.sentences('train', 2) == train
  assert all(re.fullmatch(r'[A-Z]+( [A-Z]+){3,6}', sentence) for sentence in train + test)
  words = {word for sentence in train for word in sentence.split()}
  assert 35 <= len(words) <= 60 and words >= {word for sentence in test for word in sentence.split()}


@needs_espeak
def test_speech():
  train, test = open_sample('train'), pickle.loads(pickle.dumps(open_sample('test')))
  assert len(train) == 800 and len(test) == 100 and not train.dropped and not test.dropped
  assert train.texts == list(spoken_sentences.sentences('train', 1)) and train.has_text.all()
  seconds = train.lengths / 16_000
  assert seconds.min() > 1 and seconds.max() < 3.5
  assert len(np.unique(train.groups)) == len(spoken_sentences.VOICES)
  for source in (train, test):
    for index in range(0, 100, 9):
      example = source.read(index)
      wave = example['audio']
      assert wave.dtype == np.float32 and wave.shape == (source.lengths[index],) and np.abs(wave).max() <= 1
      assert np.sqrt(np.mean(wave**2)) > 0.02, 'silence'
      assert example['text'] == source.texts[index] and len(letters.encode(example['text']))
  # Longer sentences take longer: the sound belongs to the text.
  assert np.corrcoef(seconds, [len(text) for text in train.texts])[0, 1] > 0.6
  # Fine-tuning needs a frame of 20 ms for every letter.
  assert all(length / 320 > len(text) + 1 for length, text in zip(train.lengths, train.texts))
  assert not np.array_equal(open_sample('test', 2).lengths, test.lengths)


@needs_espeak
def test_speech_is_the_same_in_every_process():
  run = lambda: (
    subprocess.run(
      [sys.executable, '-c', _DIGEST], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    ).stdout
  )
  assert run() == run()


def test_mistakes_are_named(monkeypatch):
  config = default_config('audio')
  config.data.source = 'sample:faces'
  with pytest.raises(InputError, match=r'sample:faces does not exist; .* sample:sentences'):
    open_source(config, 'train')
  spoken_sentences._spoken.cache_clear()
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match=r"pip install -e '\.\[speech-sample\]'"):
    open_sample('train')
