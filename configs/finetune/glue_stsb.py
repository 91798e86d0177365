"""Fine-tuning on GLUE's STS-B, likeness of pairs from 0 to 5: the released recipe.

  python -m d2v_jax.main --config=configs/finetune/glue_stsb.py --workdir=runs/stsb --config.init_from=runs/text_base \
    --config.data.source=tsv:GLUE/STS-B

The folder holds GLUE's own files. Several seeds and learning rates in one call: `python -m d2v_jax.sweep`. Scores of the
released model: not measured here.
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('text', 'sentence')
  config.data.update(
    source='tsv:',
    text_columns=('sentence1', 'sentence2'),
    label_column='score',
  )
  config.sentence.update(kind='regression', metric='pearson_spearman')
  config.total_steps = 3598
  config.batch_size = 16
  config.learning_rate = 4e-5
  config.schedule.warmup_steps = 214
  config.log_every = 35
  config.eval_every = 359
  config.checkpoint_every = 1000
  return config
