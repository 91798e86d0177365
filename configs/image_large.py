"""data2vec 2.0, ViT-L/16 on ImageNet-1k: the released recipe, field by field.

  python -m d2v_jax.main --config=configs/image_large.py --workdir=runs/image_large --config.data.source=tfds:imagenet2012

375,300 updates of 128 images are 37.5 epochs. Scores of a full run: not measured here.
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config()  # is image base
  config.data.source = 'tfds:imagenet2012'
  config.total_steps = 375_300
  config.batch_size = 128
  config.learning_rate = 4e-4
  config.model.update(embed_dim=1024, num_heads=16, prenet_depth=0, depth=24)
  config.mask.update(ratio=0.75, adjust=0.1)
  config.data2vec2.update(average_top_k=18, cls_loss_examples=8, ema_anneal_steps=150_000)
  config.decoder.update(dim=1024, layers=3, kernel=5)
  config.log_every = 200
  config.checkpoint_every = 5_000
  config.checkpoint_keep_every = 25_000
  return config
