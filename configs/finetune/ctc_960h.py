"""Fine-tuning for speech recognition on 960 hours of transcribed speech: the released recipes for base and large models.

  python -m d2v_jax.main --config=configs/finetune/ctc_960h.py --workdir=runs/ctc_960h --config.init_from=runs/audio_base \
    --config.data.source=manifest:FOLDER

FOLDER holds train.tsv and valid.tsv with their transcripts. The network is that of the weights it starts from; for a large
model: --config=configs/finetune/ctc_960h.py:large. Scores of a full run: not measured here.
"""

from d2v_jax.config import default_config


def get_config(size='base'):
  config = default_config('audio', 'ctc')
  config.data.source = 'manifest:'
  config.total_steps = 320_000
  config.batch_size = {'base': 40, 'large': 48}[size]  # of 40 s: 1600 s and 1920 s
  config.learning_rate = {'base': 1e-4, 'large': 3e-5}[size]
  config.ctc.update(
    freeze_steps={'base': 0, 'large': 10_000}[size],
    time_mask=0.5,
    channel_mask={'base': 0.1, 'large': 0.25}[size],
  )
  config.model.update(layer_drop=0.1, prenet_layer_drop=0.1)
  config.log_every = 200
  config.eval_every = 32_000
  config.checkpoint_every = 1_000
  return config
