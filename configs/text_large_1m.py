"""data2vec 2.0 on text, large size: the released recipe of a million updates, field by field.

  python -m d2v_jax.main --config=configs/text_large_1m.py --workdir=runs/text_large_1m --config.data.source=prepared:PATH

PATH is a prepared corpus, see configs/text_base.py. 1,000,000 updates of 64 blocks of 512 tokens. Scores of a full run: not
measured here.
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('text')  # is text base
  config.data.source = 'prepared:'
  config.total_steps = 1_000_000
  config.learning_rate = 1e-4
  config.remat = True
  config.model.update(embed_dim=1024, num_heads=16, depth=24)
  config.mask.ratio = 0.5
  config.data2vec2.update(average_top_k=24, target_layer_norms=('layer',), target_norms=('instance',), loss_beta=4.0)
  config.log_every = 200
  config.checkpoint_every = 5_000
  config.checkpoint_keep_every = 50_000
  return config
