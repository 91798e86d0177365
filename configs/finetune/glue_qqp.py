"""Fine-tuning on GLUE's QQP, questions that ask the same: the released recipe.

  python -m d2v_jax.main --config=configs/finetune/glue_qqp.py --workdir=runs/qqp --config.init_from=runs/text_base \
    --config.data.source=tsv:GLUE/QQP

The folder holds GLUE's own files, without the few rows that have a tab inside a question: for train.tsv and dev.tsv,
`awk -F'\\t' 'NF == 6' OLD > NEW`. Several seeds and learning rates in one call: `python -m d2v_jax.sweep`. Scores of the
released model: not measured here.
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('text', 'sentence')
  config.data.update(
    source='tsv:',
    text_columns=('question1', 'question2'),
    label_column='is_duplicate',
  )
  config.sentence.metric = 'accuracy_f1'
  config.total_steps = 113_272
  config.batch_size = 32
  config.learning_rate = 2e-5
  config.schedule.warmup_steps = 28_318
  config.log_every = 100
  config.eval_every = 11_327
  config.checkpoint_every = 1000
  return config
