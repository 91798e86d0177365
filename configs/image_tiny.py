"""data2vec 2.0 for small images (32 pixels, CIFAR-like class folders): minutes on a laptop CPU.

python -m d2v_jax.main --config=configs/image_tiny.py --workdir=runs/tiny --config.data.source=folder:PATH
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config()
  config.total_steps = 2200
  config.batch_size = 32
  config.learning_rate = 3e-3
  config.log_every = 50
  config.eval_every = 2200
  config.checkpoint_every = 500
  config.data.update(image_size=32, crop_area=(0.3, 1.0), workers=0, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
  config.model.update(patch_size=4, embed_dim=192, prenet_depth=0, depth=4, num_heads=3, init_std=0.04, positions_scale=0.5)
  config.mask.update(ratio=0.7, adjust=0.1)
  config.data2vec2.update(
    masks_per_example=4, average_top_k=4, cls_loss=0.0, ema_decay=0.98, ema_end_decay=0.9985, ema_anneal_steps=2200
  )
  config.decoder.update(dim=64, layers=2, groups=1)
  config.schedule.warmup_steps = 220
  config.eval.update(features='layers', max_train=10_000)
  return config
