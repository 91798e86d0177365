"""data2vec 2.0 on speech, large size, for Libri-light's 60,000 hours: the released recipe, field by field.

  python -m d2v_jax.main --config=configs/audio_large.py --workdir=runs/audio_large --config.data.source=manifest:PATH

600,000 updates of at most 960 s of speech; the teacher is frozen for the second half, as in the released file.
Scores of a full run: not measured here.
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('audio')  # is audio base
  config.data.update(source='manifest:', rows_multiple=16)
  config.total_steps = 600_000
  config.batch_size = 48
  config.learning_rate = 4e-4
  config.model.update(embed_dim=1024, num_heads=16, prenet_depth=8, depth=16, layer_drop=0.0, prenet_layer_drop=0.0)
  config.mask.update(ratio=0.55, adjust=0.1)
  config.data2vec2.update(masks_per_example=12, average_top_k=16)
  config.data2vec2.update(ema_decay=0.9997, ema_end_decay=1.0, ema_anneal_steps=300_000)
  config.decoder.dim = 768
  config.optimizer.clip_norm = 1.0
  config.schedule.warmup_steps = 10_000
  config.log_every = 200
  config.checkpoint_every = 5_000
  config.checkpoint_keep_every = 25_000
  return config
