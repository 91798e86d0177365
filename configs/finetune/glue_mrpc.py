"""Fine-tuning on GLUE's MRPC, paraphrases: the released recipe.

  python -m d2v_jax.main --config=configs/finetune/glue_mrpc.py --workdir=runs/mrpc --config.init_from=runs/text_base \
    --config.data.source=tsv:GLUE/MRPC

The folder holds GLUE's own files. Several seeds and learning rates in one call: `python -m d2v_jax.sweep`. Scores of the
released model: not measured here.
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('text', 'sentence')
  config.data.update(
    source='tsv:',
    text_columns=('#1 String', '#2 String'),
    label_column='Quality',
  )
  config.sentence.metric = 'accuracy_f1'
  config.total_steps = 2296
  config.batch_size = 16
  config.learning_rate = 2e-5
  config.schedule.warmup_steps = 137
  config.log_every = 22
  config.eval_every = 229
  config.checkpoint_every = 1000
  return config
