"""Fine-tuning for speech recognition on 100 hours of transcribed speech: the released recipes for base and large models.

  python -m d2v_jax.main --config=configs/finetune/ctc_100h.py --workdir=runs/ctc_100h --config.init_from=runs/audio_base \
    --config.data.source=manifest:FOLDER

FOLDER holds train.tsv and valid.tsv with their transcripts. The network is that of the weights it starts from; for a large
model: --config=configs/finetune/ctc_100h.py:large. Scores of a full run: not measured here.
"""

from d2v_jax.config import default_config


def get_config(size='base'):
  config = default_config('audio', 'ctc')
  config.data.source = 'manifest:'
  config.total_steps = 80_000
  config.batch_size = 40  # of 40 s: 1600 s
  config.learning_rate = 3e-5
  config.ctc.update(
    freeze_steps={'base': 0, 'large': 10_000}[size],
    time_mask={'base': 0.65, 'large': 0.5}[size],
    channel_mask=0.5,
  )
  config.model.update(layer_drop=0.1, prenet_layer_drop=0.1)
  config.log_every = 200
  config.eval_every = 8_000
  config.checkpoint_every = 1_000
  return config
