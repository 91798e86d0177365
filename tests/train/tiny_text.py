"""`--config=tests/train/tiny_text.py` pretrains a text model small enough for tests; `...:sentence` fine-tunes one."""

from tests.train.tiny import ROOT, text_config


def get_config(task='pretrain'):
  """Blocks of 24 tokens, or texts in batches of 16 and 32; a narrow block; all that is random in training is on."""
  config = text_config(task)
  config.checkpoint_every = 2
  config.eval_every = 6
  config.model.update(depth=1, layer_drop=0.2, max_positions=96)  # positions as the sentences of the report need
  config.model.dropout.update(embedding=0.1, entry=0.1, attention=0.1, attention_output=0.1, activation=0.1, mlp_output=0.1)
  if task == 'pretrain':
    config.data2vec2.average_top_k = 1
    config.decoder.input_dropout = 0.1
  else:
    config.data.bucket_tokens = (16, 32)
  return config


def arguments(task, source, workdir, *overrides):
  """Of a run: `task` is 'pretrain' or 'sentence', `source` what config.data.source is to be."""
  config = ROOT / 'tests' / 'train' / f'tiny_text.py:{task}'
  return [f'--config={config}', f'--workdir={workdir}', f'--config.data.source={source}', *overrides]
