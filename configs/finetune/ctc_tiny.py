"""Fine-tuning for speech recognition on a little transcribed speech: minutes on a laptop CPU.

python -m d2v_jax.main --config=configs/finetune/ctc_tiny.py --workdir=runs/ctc_tiny --config.init_from=runs/audio_tiny \
  --config.data.source=manifest:PATH
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('audio', 'ctc')
  config.data.update(source='manifest:', bucket_seconds=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 24.0), rows_multiple=4, workers=0)
  config.total_steps = 2000
  config.batch_size = 4
  config.learning_rate = 1e-3
  config.dtype = 'float32'
  # No frames are hidden: of a word spoken alone, one span is a quarter, and letters come to stand where the span is.
  config.ctc.update(freeze_steps=100, time_mask=0.0, channel_mask=0.25, channel_mask_length=16)
  config.optimizer.clip_norm = 4.0
  config.model.update(layer_drop=0.0, prenet_layer_drop=0.0)
  config.log_every = 50
  config.eval_every = 500
  config.checkpoint_every = 500
  return config
