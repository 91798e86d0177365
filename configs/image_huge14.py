"""data2vec 2.0, ViT-H/14 on ImageNet-1k: the released recipe, field by field.

  python -m d2v_jax.main --config=configs/image_huge14.py --workdir=runs/image_huge14 --config.data.source=tfds:imagenet2012

500,000 updates of 256 images are 99.9 epochs; the teacher is frozen for the last 40%, as in the released file.
Scores of a full run: not measured here.
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config()  # is image base
  config.data.source = 'tfds:imagenet2012'
  config.total_steps = 500_000
  config.batch_size = 256
  config.learning_rate = 4e-4
  config.model.update(patch_size=14, embed_dim=1280, num_heads=16, prenet_depth=0, depth=32)
  config.mask.update(ratio=0.75, adjust=0.1)
  config.data2vec2.update(average_top_k=24, cls_loss_examples=8, ema_end_decay=1.0, ema_anneal_steps=300_000)
  config.decoder.update(dim=1024, layers=3, kernel=5)
  config.log_every = 200
  config.checkpoint_every = 5_000
  config.checkpoint_keep_every = 25_000
  return config
