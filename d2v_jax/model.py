"""A trained model for use in other programs: `load(path)`, `Model.features`, `Model.layers`, `transcribe`, `classify`."""

import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from d2v_jax.checkpoints import weights
from d2v_jax.data.audio import SAMPLE_RATE, receptive_field
from d2v_jax.data.tokenizer import PAD, Tokenizer, padded
from d2v_jax.errors import InputError
from d2v_jax.modalities import Encoded, build_encoder
from d2v_jax.modalities.audio import standardise


class Model:
  """A network with its weights.

  Images are [examples, height, width, 3], of the size the model was trained with; uint8 pixels, or floats that are
  normalised already ((pixel / 255 - mean) / std with `config.data.mean` and `config.data.std`).

  Speech is float [examples, samples] at 16 kHz of any loudness (it is standardised here), shorter clips padded at the end,
  with `lengths` int [examples]: the samples of each clip, where they differ. A clip's output does not depend on its padding.

  Text is a list of str, or the token ids that `tokenize` makes of it, int [examples, tokens]; `lengths` are the tokens of
  each, found by the padding where they are not given. A text's output does not depend on its padding.

  Attributes:
    params: the student's parameters: {'encoder': ...} and, where there are, 'decoder' or 'head'.
    config: the config of the run that made them.
    tokenizer: of text; None where the checkpoint has none. It can be set, to what `d2v_jax.data.tokenizer.read_tokenizer`
      returns: that of the training; InputError for one with another number of entries than the model.
    labels: names of the classes of a text classifier; () of others, and where the checkpoint has none.
  """

  def __init__(self, params: dict, config: ConfigDict, assets: dict | None = None):
    self.config = config
    assets = assets or {}
    self.tokenizer = Tokenizer.from_text(assets['tokenizer']) if 'tokenizer' in assets else None
    self.labels = tuple(assets.get('labels', ()))
    # In float32 whatever the run used: features are computed once and kept.
    config = config.copy_and_resolve_references()
    config.update(dtype='float32', remat=False)
    if config.modality == 'audio':
      config.model.conv_positions.see_padding = False
    self._encoder = build_encoder(config)
    self.params = jax.tree.map(jnp.asarray, params)

  @property
  def tokenizer(self) -> Tokenizer | None:
    return self._tokenizer

  @tokenizer.setter
  def tokenizer(self, tokenizer: Tokenizer | None):
    if tokenizer is not None and tokenizer.size != (size := self.config.model.vocab_size):
      raise InputError(
        f'the tokenizer has {tokenizer.size} entries, the vocabulary of the model {size}; give the one it was trained with'
      )
    self._tokenizer = tokenizer

  def features(self, inputs, lengths=None) -> jax.Array:
    """Returns what the last block makes of the inputs: float32 [examples, tokens, width], without the extra tokens.

    Of images the tokens are the patches row by row; of speech, frames 20 ms apart (`frame_times`); of text, those of
    `tokenize`, <s> and </s> included. Beyond the end of a clip or text there are zeros.

    Raises:
      InputError: the inputs have another shape or type than the model takes.
    """
    return self._encoded(inputs, lengths)[0][-1]

  def layers(self, inputs, lengths=None) -> list[jax.Array]:
    """As `features`, but of every block, prenet excluded: a list, the last of which is what `features` returns."""
    return self._encoded(inputs, lengths)[0]

  def num_tokens(self, lengths) -> np.ndarray:
    """Frames of clips of so many samples; of text, of so many tokens, just as many."""
    grid = self._encoder.modality.grid
    return np.array([math.prod(grid((int(length),))) for length in np.ravel(lengths)], np.int32)

  def frame_times(self, frames: int) -> np.ndarray:
    """Seconds from the beginning of a clip to the middle of each of its first frames, float64 [frames]."""
    field, step = receptive_field(self.config.model.conv_layers)
    return (np.arange(frames) * step + field / 2) / SAMPLE_RATE

  def transcribe(self, inputs, lengths=None) -> list[str]:
    """Returns the words of speech, letter by letter the likeliest; for models that are fine-tuned with CTC.

    Raises:
      InputError: the model has no CTC head, or the inputs have another shape.
    """
    from d2v_jax.data import letters
    from d2v_jax.evaluate.ctc_decoding import greedy

    if 'kernel' not in self.params.get('head', {}):
      raise InputError('transcribe: this model has no CTC head; fine-tune it with configs/finetune/ctc_*.py')
    layers, tokens = self._encoded(inputs, lengths)
    head = self.params['head']
    log_probs = np.asarray(jax.nn.log_softmax(layers[-1] @ head['kernel'] + head['bias']))
    return [letters.decode(greedy(rows[:count])) for rows, count in zip(log_probs, tokens)]

  def tokenize(self, texts: list[str], seconds: list[str] | None = None) -> tuple[np.ndarray, np.ndarray, list]:
    """Token ids of texts, or of pairs of them: <s> text </s>, or <s> text </s> </s> second </s>.

    White space at both ends of a text is left out, as in training.

    Returns:
      Ids int32 [examples, longest], padded; lengths int32 [examples]; and for each example int64 [tokens, 2], the characters
      [start, end) of its text, the first or the second, that each token stands for: (0, 0) of special ones.

    Raises:
      InputError: the model has no tokenizer, a text cannot be encoded, or it has more tokens than the model takes.
    """
    if self.tokenizer is None:
      raise InputError(
        'tokenize: the checkpoint has no tokenizer; set model.tokenizer (d2v_jax.data.tokenizer.read_tokenizer)'
      )
    columns = (texts,) if seconds is None else (texts, seconds)
    if not all(map(_are_texts, columns)) or len({len(column) for column in columns}) > 1:
      raise InputError('tokenize: give a list of str, and of the second texts of pairs as long a list')
    rows, spans = [], []
    for number, sides in enumerate(zip(*columns)):
      try:
        ids, offsets = self.tokenizer.encode_framed(*sides)
      except ValueError as error:
        raise InputError(f'text {number}: {error}') from None
      if len(ids) > (most := self.config.model.max_positions):
        raise InputError(f'text {number}: has {len(ids)} tokens; the model takes {most}, special ones included; cut it')
      rows.append(ids)
      spans.append(offsets)
    return *padded(rows), spans

  def classify(self, texts: list[str], seconds: list[str] | None = None) -> list:
    """Returns the likeliest label of each text, or pair of texts; its number where labels have no names; of a regression the
    number that is predicted.

    Raises:
      InputError: the model has no head for it, or as `tokenize`.
    """
    from d2v_jax.methods.sentence import SentenceHead

    if 'dense' not in self.params.get('head', {}):
      raise InputError('classify: this model has no sentence head; fine-tune it with configs/finetune/sentence.py')
    tokens, lengths, _ = self.tokenize(texts, seconds)
    head, layers = self.params['head'], self._encoded(tokens, lengths)[0]
    scores = SentenceHead(len(head['output']['bias'])).apply({'params': head}, layers[-1][:, 0])
    if self.config.sentence.kind == 'regression':
      return scores[:, 0].tolist()
    names = self.labels or range(scores.shape[1])
    return [names[index] for index in scores.argmax(1).tolist()]

  def _encoded(self, inputs, lengths):
    """Outputs of all blocks without extra tokens, and the tokens of each example that are not padding."""
    if self.config.modality == 'text':
      inputs, lengths = self._checked_text(inputs, lengths)
      return self._run(self.params['encoder'], inputs, lengths), lengths
    inputs = inputs if isinstance(inputs, jax.Array) else np.asarray(inputs)
    if self.config.modality == 'image':
      return self._run(self.params['encoder'], self._checked_images(inputs), None), None
    inputs, lengths = self._checked_speech(inputs, lengths)
    return self._run(self.params['encoder'], inputs, lengths), self.num_tokens(lengths)

  def _checked_images(self, images):
    example = self._encoder.modality.example
    if images.ndim != 4 or images.shape[1:] != example:
      expected = ', '.join(map(str, example))
      raise InputError(f'images: found shape {list(images.shape)}; this model takes [examples, {expected}]')
    if images.dtype != np.uint8:
      if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f'images: found {images.dtype}; give uint8 pixels, or floats that are normalised')
      images = images.astype(np.float32)
    return images

  def _checked_text(self, tokens, lengths):
    if _are_texts(tokens):
      tokens, lengths, _ = self.tokenize(tokens)
    tokens = np.asarray(tokens)
    model = self.config.model
    whole = tokens.ndim == 2 and np.issubdtype(tokens.dtype, np.integer)
    if not whole or not tokens.size or tokens.shape[1] > model.max_positions:
      raise InputError(
        f'text: found {tokens.dtype} {list(tokens.shape)}; this model takes at least one text: a list of str, or token ids '
        f'[examples, tokens] with 1 to {model.max_positions} tokens'
      )
    unknown = tokens[(tokens < 0) | (tokens >= model.vocab_size)]
    if unknown.size:
      raise InputError(f'text: found the token {unknown[0]}; this model knows those from 0 to {model.vocab_size - 1}')
    if lengths is None:
      lengths = ((tokens != PAD) * np.arange(1, tokens.shape[1] + 1)).max(1)
    lengths = np.asarray(lengths)
    whole = np.issubdtype(lengths.dtype, np.integer) and lengths.shape == (len(tokens),)
    if not whole or lengths.max(initial=1) > tokens.shape[1] or lengths.min(initial=1) < 1:
      raise InputError(
        f'lengths: found {lengths.tolist()}; one whole number from 1 to {tokens.shape[1]} for each of the {len(tokens)} '
        'texts is needed'
      )
    return tokens.astype(np.int32), lengths.astype(np.int32)

  def _checked_speech(self, waves, lengths):
    if waves.ndim != 2 or not jnp.issubdtype(waves.dtype, jnp.floating):
      raise InputError(
        f'speech: found {waves.dtype} {list(waves.shape)}; this model takes float [examples, samples] at 16 kHz'
      )
    lengths = np.full(len(waves), waves.shape[1]) if lengths is None else np.asarray(lengths)
    field, _ = receptive_field(self.config.model.conv_layers)
    whole = np.issubdtype(lengths.dtype, np.integer) and lengths.shape == (len(waves),)
    if not whole or lengths.max(initial=0) > waves.shape[1] or lengths.min(initial=field) < field:
      raise InputError(
        f'lengths: found {lengths.tolist()}; one whole number from {field} (a frame) to {waves.shape[1]} for each of the '
        f'{len(waves)} clips is needed'
      )
    return waves, lengths.astype(np.int32)

  @functools.partial(jax.jit, static_argnums=0)
  def _run(self, encoder_params, inputs, lengths) -> list[jax.Array]:
    modality, extra = self._encoder.modality, self._encoder.extra_tokens
    padding = None
    if lengths is not None:
      if self.config.modality == 'audio':
        inputs = standardise(inputs, lengths)
      padding = modality.padding({'length': lengths}, math.prod(modality.grid(inputs.shape[1:])))
    encoded: Encoded = self._encoder.apply({'params': encoder_params}, modality.prepare(inputs), padding)
    layers = [layer[:, extra:] for layer in encoded.blocks]
    return layers if padding is None else [jnp.where(padding[..., None], 0, layer) for layer in layers]


def _are_texts(value) -> bool:
  return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)


def load(path: str | os.PathLike) -> Model:
  """Loads a model from a checkpoint of ours (a workdir or folder) or from a `.pt` file of the reference (fairseq).

  Of the two sets of weights in a pretraining checkpoint this is the student, as the paper uses it.

  Raises:
    InputError: there is no readable checkpoint.
  """
  params, _, config = weights.read(path)
  _, assets = weights.read_meta(path) if os.path.isdir(path) else (None, {})
  return Model(params, config, assets)
