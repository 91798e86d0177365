"""Parts of the tables that are of speech: pretraining, and fine-tuning with CTC."""

import ast

from d2v_jax.checkpoints.fairseq_tables.common import ALIBI_1D, DECODER_1D
from d2v_jax.checkpoints.fairseq_tables.table import Table, fields, first, numbers
from d2v_jax.config import default_config
from d2v_jax.data.audio import SAMPLE_RATE


def _layers(text):
  """Convolutional layers from such as '[(512, 10, 5)] + [(512, 3, 2)] * 4': literals, sums, multiples; nothing is run."""

  def value(node):
    match node:
      case ast.Constant(value=int(number)):
        return number
      case ast.Tuple(elts=parts):
        return tuple(map(value, parts))
      case ast.List(elts=parts):
        return list(map(value, parts))
      case ast.BinOp(left=left, op=ast.Add(), right=right):
        return value(left) + value(right)
      case ast.BinOp(left=ast.List() as left, op=ast.Mult(), right=ast.Constant(value=int(count))) if count <= 100:
        return value(left) * count
    raise ValueError(f'{ast.unparse(node)!r} is no part of a list of layers')

  layers = value(ast.parse(text, mode='eval').body)
  if not isinstance(layers, list) or not all(
    isinstance(layer, tuple) and len(layer) == 3 and all(isinstance(number, int) for number in layer) for layer in layers
  ):
    raise ValueError('a list of (channels, kernel, stride) is needed')
  return tuple(layers)


def _buckets(shortest, longest):
  """Our lengths of batches between the shortest and the longest clip: samples -> seconds."""
  shortest, longest = shortest / SAMPLE_RATE, longest / SAMPLE_RATE
  between = default_config('audio').data.bucket_seconds
  return (shortest, *(seconds for seconds in between if shortest < seconds < longest), longest)


def _utterances(samples, workers, frequency):
  """How many clips of our longest bucket of fine-tuning that many samples on each worker make, in eights if possible."""
  longest = default_config('audio', 'ctc').data.bucket_seconds[-1] * SAMPLE_RATE
  count = int(samples * workers * first(frequency) // longest)
  return count // 8 * 8 or max(count, 1)


_if = lambda flag, value: float(value) if flag else 0.0

ENCODER = Table.merge(
  [
    ALIBI_1D,
    Table(
      {
        **fields('model.', '@.', conv_layers=('feature_encoder_spec', _layers)),
        **fields(
          'model.conv_positions.',
          '@.',
          layers='conv_pos_depth',
          kernel=('conv_pos_width', 'conv_pos_depth', lambda width, depth: max(3, width // depth)),
          groups='conv_pos_groups',
          pre_norm='conv_pos_pre_ln',
        ),
      },
      {'@.extractor_mode': 'layer_norm'},
    ),
  ]
)
INPUT = Table({}, {'task.normalize': True, 'task.sample_rate': SAMPLE_RATE})

PRETRAINING = Table.merge(
  [
    DECODER_1D,
    Table(
      {
        **fields(
          '',
          '',
          batch_size=(
            'dataset.max_tokens',
            'task.max_sample_size',
            'distributed_training.distributed_world_size',
            'optimization.update_freq',
            lambda samples, longest, workers, frequency: max(1, samples // longest) * workers * first(frequency),
          ),
        ),
        **fields('data.', 'task.', bucket_seconds=('min_sample_size', 'max_sample_size', _buckets)),
      },
      training={'task.enable_padding': False, 'task.precompute_mask_config': {}},
    ),
  ]
)

CTC = Table(
  {
    **fields(
      '',
      '',
      batch_size=(
        'dataset.max_tokens',
        'distributed_training.distributed_world_size',
        'optimization.update_freq',
        _utterances,
      ),
    ),
    **fields(
      'schedule.',
      'lr_scheduler.',
      phases=('phase_ratio', numbers),
      initial_scale=('init_lr_scale', float),
      final_scale=('final_lr_scale', float),
    ),
    **fields('model.', 'model.', layer_drop=('layerdrop', float), prenet_layer_drop=('layerdrop', float)),
    **fields(
      'model.dropout.',
      'model.',
      entry=('dropout', float),
      attention=('attention_dropout', float),
      attention_output=('dropout', float),
      activation=('activation_dropout', float),
      mlp_output=('dropout', float),
    ),
    **fields(
      'ctc.',
      'model.',
      freeze_steps='freeze_finetune_updates',
      train_front_end=('feature_grad_mult', lambda factor: {0: False, 1: True}[factor]),
      time_mask=('apply_mask', 'mask_prob', _if),
      time_mask_length='mask_length',
      mask_noise_std=(
        'zero_mask',
        'w2v_args.model.modalities.audio.mask_noise_std',
        lambda zero, std: 0.0 if zero else float(std),
      ),
      channel_mask=('apply_mask', 'mask_channel_prob', _if),
      channel_mask_length='mask_channel_length',
      head_dropout=('final_dropout', float),
    ),
  },
  {'model.blank_weight': 0},
  {
    **dict.fromkeys(('model.dropout_input', 'model.mask_dropout', 'model.mask_other', 'model.mask_channel_other'), 0),
    **dict.fromkeys(('model.mask_selection', 'model.mask_channel_selection'), 'static'),
    **dict.fromkeys(('model.no_mask_overlap', 'model.no_mask_channel_overlap', 'model.mask_channel_before'), False),
    **dict.fromkeys(('lr_scheduler.warmup_steps', 'lr_scheduler.hold_steps', 'lr_scheduler.decay_steps'), 0),
    **dict.fromkeys(('model.update_alibi', 'criterion.zero_infinity', 'optimization.sentence_avg'), True),
    'model.layer_decay': 1,
  },
  {
    'model.w2v_path': 'of the pretraining',
    'model.load_ema': 'where the weights came from',
    'model.data': 'a place',
    'model.normalize': 'equals task.normalize',
    'model.blank_mode': 'the blank has no extra weight',
    'model.drop_path': 'acts on no field of data2vec 2.0',
    'model.require_same_masks': 'all rows mask as many frames',
    **dict.fromkeys(
      (
        *('model.conv_feature_layers', 'model.encoder_embed_dim', 'model.mask_min_space', 'model.mask_channel_min_space'),
        *('model.autoregressive', 'model.layer_type', 'model.adp_num', 'model.adp_dim', 'model.adp_act_fn'),
        *('model.adp_trf_idx', 'model.ddp_backend', 'model.offload_activations', 'model.min_params_to_wrap'),
        'model.checkpoint_activations',
      ),
      'says nothing about this network',
    ),
  },
)
