"""A trained model for use in other programs: `load(path)`, `Model.features`, `Model.layers`, `Model.transcribe`."""

import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from d2v_jax.checkpoints import weights
from d2v_jax.data.audio import SAMPLE_RATE, receptive_field
from d2v_jax.errors import InputError
from d2v_jax.modalities import Encoded, build_encoder
from d2v_jax.modalities.audio import standardise


class Model:
  """A network with its weights.

  Images are [examples, height, width, 3], of the size the model was trained with; uint8 pixels, or floats that are
  normalised already ((pixel / 255 - mean) / std with `config.data.mean` and `config.data.std`).

  Speech is float [examples, samples] at 16 kHz of any loudness (it is standardised here), shorter clips padded at the end,
  with `lengths` int [examples]: the samples of each clip, where they differ. A clip's output does not depend on its padding.

  Attributes:
    params: the student's parameters: {'encoder': ...} and, where there are, 'decoder' or 'head'.
    config: the config of the run that made them.
  """

  def __init__(self, params: dict, config: ConfigDict):
    self.config = config
    # In float32 whatever the run used: features are computed once and kept.
    config = config.copy_and_resolve_references()
    config.update(dtype='float32', remat=False)
    if config.modality == 'audio':
      config.model.conv_positions.see_padding = False
    self._encoder = build_encoder(config)
    self.params = jax.tree.map(jnp.asarray, params)

  def features(self, inputs, lengths=None) -> jax.Array:
    """Returns what the last block makes of the inputs: float32 [examples, tokens, width], without the extra tokens.

    Of images the tokens are the patches row by row; of speech, frames 20 ms apart (`frame_times`), zero beyond a clip's end.

    Raises:
      InputError: the inputs have another shape or type than the model takes.
    """
    return self._encoded(inputs, lengths)[0][-1]

  def layers(self, inputs, lengths=None) -> list[jax.Array]:
    """As `features`, but of every block, prenet excluded: a list, the last of which is what `features` returns."""
    return self._encoded(inputs, lengths)[0]

  def num_tokens(self, lengths) -> np.ndarray:
    """Frames of clips of so many samples."""
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

    if 'head' not in self.params:
      raise InputError('transcribe: this model has no CTC head; fine-tune it with configs/finetune/ctc_*.py')
    layers, tokens = self._encoded(inputs, lengths)
    head = self.params['head']
    log_probs = np.asarray(jax.nn.log_softmax(layers[-1] @ head['kernel'] + head['bias']))
    return [letters.decode(greedy(rows[:count])) for rows, count in zip(log_probs, tokens)]

  def _encoded(self, inputs, lengths):
    """Outputs of all blocks without extra tokens, and the tokens of each example that are not padding."""
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
      inputs = standardise(inputs, lengths)
      padding = modality.padding({'length': lengths}, math.prod(modality.grid(inputs.shape[1:])))
    encoded: Encoded = self._encoder.apply({'params': encoder_params}, modality.prepare(inputs), padding)
    layers = [layer[:, extra:] for layer in encoded.blocks]
    return layers if padding is None else [jnp.where(padding[..., None], 0, layer) for layer in layers]


def load(path: str | os.PathLike) -> Model:
  """Loads a model from a checkpoint of ours (a workdir or folder) or from a `.pt` file of the reference (fairseq).

  Of the two sets of weights in a pretraining checkpoint this is the student, as the paper uses it.

  Raises:
    InputError: there is no readable checkpoint.
  """
  params, _, config = weights.read(path)
  return Model(params, config)
