"""data2vec 2.0 for a few megabytes of text: about ten minutes on a laptop CPU, with a tokenizer of its own.

python -m d2v_jax.main --config=configs/text_tiny.py --workdir=runs/text_tiny --config.data.source=folder:PATH
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('text')
  config.data.update(source='folder:', block_tokens=128, holdout=0.05, workers=0)
  config.total_steps = 4000
  config.batch_size = 16
  config.learning_rate = 1e-3
  config.dtype = 'float32'
  config.log_every = 100
  config.eval_every = 1000
  config.checkpoint_every = 1000
  config.model.update(vocab_size=4096, max_positions=256, embed_dim=128, depth=4, num_heads=4, init_std=0.06)
  config.model.dropout.update(embedding=0.0, attention=0.0, attention_output=0.0, mlp_output=0.0)
  config.data2vec2.update(masks_per_example=4, average_top_k=4, ema_decay=0.99, ema_end_decay=0.999, ema_anneal_steps=4000)
  config.decoder.update(dim=128, layers=3, kernel=7, input_dropout=0.0)
  config.optimizer.clip_norm = 4.0
  config.schedule.warmup_steps = 400
  config.eval.update(batch_size=16, max_test=64)
  return config
