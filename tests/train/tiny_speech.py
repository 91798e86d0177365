"""`--config=tests/train/tiny_speech.py` pretrains a speech model small enough for tests; `...:ctc` fine-tunes one."""

from tests.train.tiny import speech_config


def get_config(task='pretrain'):
  """Frames of 20 ms, batches of half and whole seconds, two narrow blocks; all that is random in training is on."""
  config = speech_config(task)
  config.checkpoint_every = 2
  config.data.update(bucket_seconds=(0.5, 1.0), rows_multiple=4)
  config.model.update(conv_layers=((8, 10, 5), (8, 8, 8), (8, 8, 8)), depth=1, layer_drop=0.2, prenet_layer_drop=0.2)
  config.model.conv_positions.layers = 1
  config.model.dropout.update(entry=0.1, attention=0.1, attention_output=0.1, activation=0.1, mlp_output=0.1)
  if task == 'ctc':
    config.eval_every = 6
    config.ctc.update(freeze_steps=2, time_mask=0.3, time_mask_length=2, channel_mask=0.2, channel_mask_length=4)
    config.ctc.head_dropout = 0.1
  else:
    config.data2vec2.average_top_k = 1
    config.decoder.input_dropout = 0.1
  return config
