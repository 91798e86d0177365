"""README's speech chain, first half: data2vec 2.0 on synthesised sentences, minutes on two CPU cores, nothing to download.

python -m d2v_jax.main --config=configs/quickstart_speech.py --workdir=runs/speech
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('audio')
  config.total_steps = 1200
  config.batch_size = 8
  config.learning_rate = 1e-3
  config.dtype = 'float32'
  config.log_every = 100
  config.checkpoint_every = 600
  config.data.update(source='sample:sentences', bucket_seconds=(1.0, 1.5, 2.0), rows_multiple=4, workers=0)
  config.model.update(conv_layers=((64, 200, 40), (64, 16, 8)), conv_init='filterbank')
  config.model.conv_positions.update(layers=1, kernel=5, groups=8)
  config.model.update(embed_dim=128, depth=4, num_heads=4, init_std=0.06, layer_drop=0.0, prenet_layer_drop=0.0)
  config.model.dropout.update(entry=0.0, attention=0.0, attention_output=0.0, mlp_output=0.0)
  config.data2vec2.update(masks_per_example=4, average_top_k=4, ema_decay=0.99, ema_end_decay=0.998, ema_anneal_steps=1200)
  config.decoder.update(dim=64, layers=2, groups=4, input_dropout=0.0)
  config.optimizer.clip_norm = 4.0
  config.schedule.warmup_steps = 120
  return config
