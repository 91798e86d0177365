"""data2vec 2.0 on speech, base size, for LibriSpeech's 960 hours: the released recipe, field by field.

  python -m d2v_jax.main --config=configs/audio_base.py --workdir=runs/audio_base --config.data.source=librispeech:PATH

400,000 updates of at most 480 s of speech (24 clips of 20 s, or more shorter ones). Scores of a full run: not measured here.
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('audio')  # is audio base
  config.data.source = 'librispeech:'
  config.total_steps = 400_000
  config.log_every = 200
  config.checkpoint_every = 5_000
  config.checkpoint_keep_every = 25_000
  return config
