"""A trained model for use in other programs: `load(path)` and `Model.features`."""

import os

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from d2v_jax.checkpoints import weights
from d2v_jax.errors import InputError
from d2v_jax.modalities import build_encoder


class Model:
  """An encoder with its weights.

  Attributes:
    params: the student's parameters, {'encoder': ...} and, where there is one, {'decoder': ...}.
    config: the config of the run that made them.
  """

  def __init__(self, params: dict, config: ConfigDict):
    self.params = params
    self.config = config
    # In float32 whatever the run used: features are computed once and kept.
    encoder = build_encoder(ConfigDict({**config, 'dtype': 'float32', 'remat': False}))
    self._example = encoder.modality.example

    def features(encoder_params, images):
      inputs = encoder.modality.prepare({'image': images})
      return encoder.apply({'params': encoder_params}, inputs).output[:, encoder.extra_tokens :]

    self._encoder_params = jax.tree.map(jnp.asarray, params['encoder'])
    self._features = jax.jit(features)

  def features(self, images) -> jax.Array:
    """Returns the features of images, float32 [examples, tokens, width]: patches row by row, without the extra tokens.

    Args:
      images: [examples, height, width, 3], of the size the model was trained with; uint8 pixels, or floats that are
        normalised already ((pixel / 255 - mean) / std with `config.data.mean` and `config.data.std`).

    Raises:
      InputError: the images have another shape or type.
    """
    images = np.asarray(images) if not isinstance(images, jax.Array) else images
    if images.ndim != 4 or images.shape[1:] != self._example:
      expected = ', '.join(map(str, self._example))
      raise InputError(f'images: found shape {list(images.shape)}; this model takes [examples, {expected}]')
    if images.dtype != np.uint8:
      if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f'images: found {images.dtype}; give uint8 pixels, or floats that are normalised')
      images = images.astype(np.float32)
    return self._features(self._encoder_params, images)


def load(path: str | os.PathLike) -> Model:
  """Loads a model from a checkpoint of ours (a workdir or folder) or from a `.pt` file of the reference (fairseq).

  Of the two sets of weights in a pretraining checkpoint this is the student, as the paper uses it.

  Raises:
    InputError: there is no readable checkpoint.
  """
  params, _, config = weights.read(path)
  return Model(params, config)
