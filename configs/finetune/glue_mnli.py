"""Fine-tuning on GLUE's MNLI, entailment of pairs, matched and mismatched: the released recipe.

  python -m d2v_jax.main --config=configs/finetune/glue_mnli.py --workdir=runs/mnli --config.init_from=runs/text_base \
    --config.data.source=tsv:GLUE/MNLI

The folder holds GLUE's own files. Several seeds and learning rates in one call: `python -m d2v_jax.sweep`. Scores of the
released model: not measured here.
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('text', 'sentence')
  config.data.update(
    source='tsv:',
    text_columns=('sentence1', 'sentence2'),
    label_column='gold_label',
    test_files=('dev_matched.tsv', 'dev_mismatched.tsv'),
  )
  config.sentence.metric = 'accuracy'
  config.total_steps = 123_873
  config.batch_size = 32
  config.learning_rate = 2e-5
  config.schedule.warmup_steps = 7432
  config.log_every = 100
  config.eval_every = 12_387
  config.checkpoint_every = 1000
  return config
