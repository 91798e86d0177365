"""From what a source reads to the rows of a batch: one reader for each modality.

A reader has `empty(rows, shape, training)`: the arrays of a batch, filled with what stands for no example; and
`train(example, shape, rng)` and `evaluate(example, shape)`: the values of one row of such a batch. All are NumPy; both may
raise anything for an example that cannot be read. Readers travel to worker processes, so they hold plain values only.
"""

import numpy as np

from d2v_jax.data.audio import standardise
from d2v_jax.data.images import eval_image, train_image
from d2v_jax.data.letters import encode
from d2v_jax.data.tokenizer import PAD


class ImageReader:
  """'image' uint8 [S, S, 3] and 'label' int32 (-1: none)."""

  def __init__(self, config):
    data = config.data
    self._size = data.image_size
    self._crop = tuple(data.crop_area), tuple(data.crop_aspect), data.flip

  def empty(self, rows: int, shape: tuple, training: bool) -> dict[str, np.ndarray]:
    del shape, training
    return {'image': np.zeros((rows, self._size, self._size, 3), np.uint8), 'label': np.full(rows, -1, np.int32)}

  def train(self, example: dict, shape: tuple, rng: np.random.Generator) -> dict:
    del shape
    return {'image': train_image(example['image'], self._size, *self._crop, rng), 'label': example['label']}

  def evaluate(self, example: dict, shape: tuple) -> dict:
    del shape
    return {'image': eval_image(example['image'], self._size), 'label': example['label']}


class SpeechReader:
  """'audio' float32 [samples], standardised over the whole clip before anything is cut off.

  Pretraining crops, so that nothing is padding. Everything else pads with zeros and adds 'length' int32, the samples that
  are not padding; fine-tuning adds 'letters' int32 [letters], padded with -1.
  """

  def __init__(self, config):
    self._crops = config.task == 'pretrain'

  def empty(self, rows: int, shape: tuple, training: bool) -> dict[str, np.ndarray]:
    batch = {'audio': np.zeros((rows, shape[0]), np.float32)}
    if not (training and self._crops):
      batch['length'] = np.zeros(rows, np.int32)
    if len(shape) > 1:
      batch['letters'] = np.full((rows, shape[1]), -1, np.int32)
    return batch

  def train(self, example: dict, shape: tuple, rng: np.random.Generator) -> dict:
    if not self._crops:
      return self.evaluate(example, shape)
    wave, size = standardise(example['audio']), shape[0]
    if len(wave) < size:
      raise ValueError(f'{len(wave)} samples at 16 kHz, fewer than its header or manifest says')
    start = int(rng.integers(len(wave) - size + 1))
    return {'audio': wave[start : start + size]}

  def evaluate(self, example: dict, shape: tuple) -> dict:
    wave = standardise(example['audio'])
    if len(wave) > shape[0]:
      raise ValueError(f'{len(wave)} samples at 16 kHz, more than its header or manifest says')
    row = {'audio': np.pad(wave, (0, shape[0] - len(wave))), 'length': len(wave)}
    if len(shape) > 1:
      letters = encode(example['text'])
      row['letters'] = np.pad(letters, (0, shape[1] - len(letters)), constant_values=-1)
    return row


class TextReader:
  """'tokens' int32 [tokens], padded with PAD.

  Sentence tasks add 'length' int32, the tokens that are not padding, and 'label', int32 (-1: none) or, of a regression,
  float32 (nan: none).
  """

  def __init__(self, config):
    self._labelled = config.task == 'sentence'
    self._no_label = np.float32(np.nan) if self._labelled and config.sentence.kind == 'regression' else np.int32(-1)

  def empty(self, rows: int, shape: tuple, training: bool) -> dict[str, np.ndarray]:
    del training
    batch = {'tokens': np.full((rows, *shape), PAD, np.int32)}
    if self._labelled:
      batch |= {'length': np.zeros(rows, np.int32), 'label': np.full(rows, self._no_label)}
    return batch

  def train(self, example: dict, shape: tuple, rng: np.random.Generator) -> dict:
    del rng
    return self.evaluate(example, shape)

  def evaluate(self, example: dict, shape: tuple) -> dict:
    tokens = example['tokens']
    row = {'tokens': np.pad(tokens, (0, shape[0] - len(tokens)), constant_values=PAD)}
    return row | {'length': len(tokens), 'label': example['label']} if self._labelled else row


READERS = {'image': ImageReader, 'audio': SpeechReader, 'text': TextReader}


def random_batch(config, example: tuple[int, ...], rows: int) -> dict:
  """A training batch as the loader makes them, of random examples of this shape: for benchmarks."""
  rng = np.random.default_rng(0)
  valid = {'valid': np.ones(rows, bool)}
  if config.modality == 'image':
    return {'image': rng.integers(0, 256, (rows, *example), np.uint8), **valid}
  if config.modality == 'text':
    batch = {'tokens': rng.integers(PAD + 1, config.model.vocab_size, (rows, *example), np.int32), **valid}
    if config.task == 'sentence':
      labels = np.zeros(rows, np.float32 if config.sentence.kind == 'regression' else np.int32)
      batch |= {'length': np.full(rows, example[0], np.int32), 'label': labels}
    return batch
  batch = {'audio': rng.normal(size=(rows, *example)).astype(np.float32), **valid}
  if config.task == 'ctc':  # 15 letters a second are normal speech
    letters = rng.integers(4, 32, (rows, max(example[0] // 1100, 1)), np.int32)
    batch |= {'length': np.full(rows, example[0], np.int32), 'letters': letters}
  return batch
