"""data2vec 2.0, ViT-B/16 on ImageNet-1k: the released recipe, field by field.

  python -m d2v_jax.main --config=configs/image_base.py --workdir=runs/image_base --config.data.source=tfds:imagenet2012

375,300 updates of 256 images are 75 epochs. Scores of a full run: not measured here.
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config()  # is image base
  config.data.source = 'tfds:imagenet2012'
  config.total_steps = 375_300
  config.log_every = 200
  config.checkpoint_every = 5_000
  config.checkpoint_keep_every = 25_000
  return config
