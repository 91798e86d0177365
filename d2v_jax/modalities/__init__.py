"""How raw input becomes tokens, where tokens stand, which masks make sense: one file per modality."""

from d2v_jax.modalities import audio, image, text
from d2v_jax.modalities.encoder import Alibi, Encoded, Encoder, Modality
from d2v_jax.nn.dropout import Rates

MODALITIES = {'image': image.build, 'audio': audio.build, 'text': text.build}


def build_encoder(config) -> Encoder:
  """The encoder that a config describes: its modality's front end and the shared transformer."""
  model = config.model
  return Encoder(
    modality=MODALITIES[config.modality](config),
    embed_dim=model.embed_dim,
    prenet_depth=model.prenet_depth,
    depth=model.depth,
    num_heads=model.num_heads,
    mlp_ratio=model.mlp_ratio,
    norm_eps=model.norm_eps,
    init_std=model.init_std,
    extra_tokens=model.extra_tokens,
    alibi=Alibi(model.alibi, model.alibi_scale, model.alibi_learned, model.alibi_per_head, model.alibi_per_layer),
    rates=Rates(**model.dropout),
    layer_drop=model.layer_drop,
    prenet_layer_drop=model.prenet_layer_drop,
    dtype=config.dtype,
    remat=config.remat,
  )


__all__ = ['MODALITIES', 'Encoded', 'Encoder', 'Modality', 'build_encoder']
