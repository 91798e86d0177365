"""Fine-tuning on GLUE's RTE, entailment of pairs: the released recipe.

  python -m d2v_jax.main --config=configs/finetune/glue_rte.py --workdir=runs/rte --config.init_from=runs/text_base \
    --config.data.source=tsv:GLUE/RTE

The folder holds GLUE's own files. Several seeds and learning rates in one call: `python -m d2v_jax.sweep`. Scores of the
released model: not measured here.
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('text', 'sentence')
  config.data.update(
    source='tsv:',
    text_columns=('sentence1', 'sentence2'),
    label_column='label',
  )
  config.sentence.metric = 'accuracy'
  config.total_steps = 2036
  config.batch_size = 16
  config.learning_rate = 2e-5
  config.schedule.warmup_steps = 122
  config.log_every = 20
  config.eval_every = 203
  config.checkpoint_every = 1000
  return config
