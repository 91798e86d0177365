"""README's first command: data2vec 2.0 on generated shapes, a few minutes on two CPU cores, nothing to download.

python -m d2v_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config()
  config.total_steps = 1500
  config.batch_size = 32
  config.learning_rate = 4e-3
  config.dtype = 'float32'
  config.log_every = 50
  config.eval_every = 1500
  config.checkpoint_every = 500
  config.data.update(
    source='sample:shapes', image_size=32, crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=False, workers=0
  )
  config.data.update(mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
  config.model.update(patch_size=4, embed_dim=64, prenet_depth=0, depth=4, num_heads=4, init_std=0.06, positions_scale=0.5)
  config.mask.update(ratio=0.7, adjust=0.1)
  config.data2vec2.update(
    masks_per_example=4, average_top_k=4, cls_loss=0.0, ema_decay=0.98, ema_end_decay=0.998, ema_anneal_steps=1500
  )
  config.decoder.update(dim=32, layers=2, groups=1)
  config.schedule.warmup_steps = 150
  config.eval.update(features='layers', max_train=4_000, max_test=2_000)
  return config
