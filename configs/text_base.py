"""data2vec 2.0 on text, base size: the released recipe, field by field.

  python -m d2v_jax.main --config=configs/text_base.py --workdir=runs/text_base --config.data.source=prepared:PATH

PATH is a corpus that was prepared once, with GPT-2's tokenizer as RoBERTa numbers it (a folder with encoder.json, vocab.bpe
and dict.txt):

  python -m d2v_jax.prepare --config=configs/text_base.py --output=PATH --config.data.source=folder:TEXTS \
    --config.data.tokenizer=GPT2_BPE

1,000,000 updates of 64 blocks of 512 tokens. Scores of a full run: not measured here.
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('text')  # is text base
  config.data.source = 'prepared:'
  config.total_steps = 1_000_000
  config.log_every = 200
  config.checkpoint_every = 5_000
  config.checkpoint_keep_every = 50_000
  return config
