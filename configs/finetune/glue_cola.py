"""Fine-tuning on GLUE's CoLA, acceptable sentences: the released recipe.

  python -m d2v_jax.main --config=configs/finetune/glue_cola.py --workdir=runs/cola --config.init_from=runs/text_base \
    --config.data.source=tsv:GLUE/CoLA

The folder holds GLUE's own files; its test.tsv has other columns, so to predict for it give it those of train.tsv. Several
seeds and learning rates in one call: `python -m d2v_jax.sweep`. Scores of the released model: not measured here.
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('text', 'sentence')
  config.data.update(
    source='tsv:',
    text_columns=('3',),
    label_column='1',
    header=False,
  )
  config.sentence.metric = 'matthews'
  config.total_steps = 5336
  config.batch_size = 16
  config.learning_rate = 2e-5
  config.schedule.warmup_steps = 320
  config.log_every = 53
  config.eval_every = 533
  config.checkpoint_every = 1000
  return config
