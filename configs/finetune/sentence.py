"""Fine-tuning on a table of your own: one text or a pair in each line, with a label or a number.

  python -m d2v_jax.main --config=configs/finetune/sentence.py --workdir=runs/mine --config.init_from=runs/text \
    --config.data.source=tsv:TABLE.tsv --config.data.holdout=0.1

TABLE.tsv has tabs between its columns and names them in the first line; --config.data.text_columns="('a', 'b')" and
--config.data.label_column=... say which to read. A folder with train.tsv and dev.tsv does as well (without holdout). For
numbers instead of classes: --config.sentence.kind=regression --config.sentence.metric=pearson_spearman. The learning rate is
that of the released base model; a model of configs/text_tiny.py wants --config.learning_rate=1e-3.
"""

from d2v_jax.config import default_config


def get_config():
  config = default_config('text', 'sentence')
  config.data.source = 'tsv:'
  config.total_epochs = 10.0
  config.batch_size = 16
  config.learning_rate = 2e-5
  config.schedule.warmup_steps = 50
  config.log_every = 50
  config.eval_every = 500
  config.checkpoint_every = 500
  return config
