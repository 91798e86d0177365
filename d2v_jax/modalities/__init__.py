"""How raw input becomes tokens, where tokens stand, which masks make sense: one file per modality."""

from d2v_jax.modalities import image
from d2v_jax.modalities.encoder import Encoded, Encoder, Modality
from d2v_jax.nn.positions import alibi_bias

MODALITIES = {'image': image.build}


def build_encoder(config) -> Encoder:
  """The encoder that a config describes: its modality's front end and the shared transformer."""
  modality = MODALITIES[config.modality](config)
  model = config.model
  return Encoder(
    modality=modality,
    embed_dim=model.embed_dim,
    prenet_depth=model.prenet_depth,
    depth=model.depth,
    num_heads=model.num_heads,
    mlp_ratio=model.mlp_ratio,
    norm_eps=model.norm_eps,
    init_std=model.init_std,
    extra_tokens=model.extra_tokens,
    alibi=alibi_bias(model.num_heads, modality.grid, model.alibi) if model.alibi else None,
    alibi_scale=model.alibi_scale,
    dtype=config.dtype,
    remat=config.remat,
  )


__all__ = ['MODALITIES', 'Encoded', 'Encoder', 'Modality', 'build_encoder']
