"""Pretraining: a method on a modality, judged by what its frozen features are worth."""

import functools

import jax
import jax.numpy as jnp

from d2v_jax.methods.data2vec2 import Data2vec2

METHODS = {'data2vec2': Data2vec2}


def pool(encoded, kind: str, extra_tokens: int) -> jax.Array:
  """One float32 vector per example from what the encoder made of it.

  'final': mean of the last block's patch tokens [B, D]; 'cls': its last extra token [B, D]; 'layers': means of the MLP
  outputs of all main blocks side by side [B, L * D].
  """
  if kind == 'cls':
    return encoded.output[:, extra_tokens - 1].astype(jnp.float32)
  layers = encoded.mlps if kind == 'layers' else [encoded.output]
  return jnp.concatenate([layer[:, extra_tokens:].astype(jnp.float32).mean(1) for layer in layers], axis=-1)
