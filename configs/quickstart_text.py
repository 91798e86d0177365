"""README's text chain: data2vec 2.0 on the English of Python's own documentation, minutes on two CPU cores, no download.

python -m d2v_jax.prepare --config=configs/quickstart_text.py --output=runs/text_tokens
python -m d2v_jax.main --config=configs/quickstart_text.py --workdir=runs/text --config.data.source=prepared:runs/text_tokens
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('text')
  config.data.update(source='sample:python', block_tokens=128, workers=0)
  config.total_steps = 1500
  config.batch_size = 16
  config.learning_rate = 2e-3
  config.dtype = 'float32'
  config.log_every = 100
  config.eval_every = 750
  config.checkpoint_every = 500
  config.model.update(vocab_size=1024, max_positions=128, embed_dim=128, depth=4, num_heads=4, init_std=0.06)
  config.model.update(positions='none', alibi='manhattan', alibi_learned=True, alibi_per_head=True)
  config.model.dropout.update(embedding=0.0, attention=0.0, attention_output=0.0, mlp_output=0.0)
  config.data2vec2.update(masks_per_example=2, average_top_k=4, target_layer_norms=('layer',), target_norms=('instance',))
  config.data2vec2.update(ema_decay=0.999, ema_end_decay=0.999)
  config.decoder.update(dim=64, layers=2, kernel=5, input_dropout=0.0)
  config.optimizer.clip_norm = 4.0
  config.schedule.warmup_steps = 150
  return config
