"""Fine-tuning for speech recognition on 10 hours of transcribed speech: the released recipes for base and large models.

  python -m d2v_jax.main --config=configs/finetune/ctc_10h.py --workdir=runs/ctc_10h --config.init_from=runs/audio_base \
    --config.data.source=manifest:FOLDER

FOLDER holds train.tsv and valid.tsv with their transcripts. The network is that of the weights it starts from; for a large
model: --config=configs/finetune/ctc_10h.py:large. Scores of a full run: not measured here.
"""

from d2v_jax.config import default_config


def get_config(size='base'):
  config = default_config('audio', 'ctc')
  config.data.source = 'manifest:'
  config.total_steps = 20_000
  config.batch_size = 40  # of 40 s: 1600 s
  config.learning_rate = {'base': 5e-5, 'large': 1e-4}[size]
  config.ctc.update(
    freeze_steps=10_000,
    time_mask={'base': 0.65, 'large': 0.75}[size],
    channel_mask={'base': 0.5, 'large': 0.25}[size],
  )
  config.model.update(layer_drop={'base': 0.05, 'large': 0.1}[size], prenet_layer_drop={'base': 0.05, 'large': 0.1}[size])
  config.log_every = 200
  config.eval_every = 2_000
  config.checkpoint_every = 1_000
  return config
