"""Fine-tuning on GLUE's QNLI, does the sentence answer the question: the released recipe.

  python -m d2v_jax.main --config=configs/finetune/glue_qnli.py --workdir=runs/qnli --config.init_from=runs/text_base \
    --config.data.source=tsv:GLUE/QNLI

The folder holds GLUE's own files. Several seeds and learning rates in one call: `python -m d2v_jax.sweep`. Scores of the
released model: not measured here.
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('text', 'sentence')
  config.data.update(
    source='tsv:',
    text_columns=('question', 'sentence'),
    label_column='label',
  )
  config.sentence.metric = 'accuracy'
  config.total_steps = 33_112
  config.batch_size = 32
  config.learning_rate = 2e-5
  config.schedule.warmup_steps = 1986
  config.log_every = 100
  config.eval_every = 3311
  config.checkpoint_every = 1000
  return config
