"""README's speech chain, second half: the pretrained model learns to write what it hears, and is scored on new sentences.

python -m d2v_jax.main --config=configs/finetune/quickstart_speech.py --workdir=runs/speech_ctc \
  --config.init_from=runs/speech
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('audio', 'ctc')
  config.data.update(source='sample:sentences', bucket_seconds=(1.5, 2.0, 2.5, 4.0), rows_multiple=4, workers=0)
  config.total_steps = 1000
  config.batch_size = 8
  config.learning_rate = 1e-3
  config.dtype = 'float32'
  config.ctc.update(freeze_steps=50, time_mask=0.0, channel_mask=0.1, channel_mask_length=16)
  config.optimizer.clip_norm = 4.0
  config.model.dropout.activation = 0.0
  config.model.update(layer_drop=0.0, prenet_layer_drop=0.0)
  config.log_every = 100
  config.eval_every = 1000
  config.checkpoint_every = 500
  return config
