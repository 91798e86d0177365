"""Every option of a run, with its default: the one schema that `configs/*.py` fill in and `--config.field=value` overrides.

`default_config(modality, task)` lists every field, so a config file only states what it changes. `validate(config)` refuses
what cannot work before any time is spent. The names follow `docs/algorithm.md`.
"""

import difflib
import json
import math

from ml_collections import ConfigDict

from d2v_jax.errors import InputError


def default_config(modality: str = 'image', task: str = 'pretrain') -> ConfigDict:
  """Returns the full config of a task on a modality, base sized, locked: unknown fields are refused by name.

  For pretraining these are the released base recipes; a config holds only the fields that its task and modality read.
  """
  if (modality, task) not in _SECTIONS:
    known = ', '.join(f'{task} on {modality}' for modality, task in _SECTIONS)
    raise InputError(f'config.task: {task} on {modality} does not exist; there are {known}')
  config = ConfigDict()
  config.task = task
  config.method = 'data2vec2'
  config.modality = modality

  config.seed = 1
  config.total_steps = 0  # optimiser updates; or give total_epochs
  config.total_epochs = 0.0  # passes over the training examples; used when total_steps is 0
  config.batch_size = 256  # examples per update, over all devices and micro-batches; of speech: of the longest bucket
  config.accumulate_steps = 1  # micro-batches per update; the result equals the undivided batch's
  config.learning_rate = 1e-3  # the peak of the schedule
  config.dtype = 'bfloat16'  # of activations; parameters, teacher, targets and losses are always float32
  config.remat = False  # recompute the blocks in the backward pass: less memory, about a quarter more time

  config.log_every = 100
  config.eval_every = 0  # steps between evaluations, and one at the end; 0: none at all
  config.checkpoint_every = 1000  # steps between saves that make a run resumable (the newest two are kept)
  config.checkpoint_keep_every = 0  # steps between saves that are kept for good; 0: only the last one
  config.pictures = True  # write report/*.png at every evaluation and at the end
  config.init_from = ''  # a checkpoint to start from: ours, or a released one
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1})  # devices along each axis; -1: all that remain

  config.data = ConfigDict(
    {
      'source': '',  # KIND:PLACE, see README
      'tfds_dir': '',  # where prepared TFDS datasets live; empty: the TFDS default
      'holdout': 0.0,  # evaluate on this fraction of the training part instead of the test part; of speech: whole speakers
      'workers': 8,  # worker processes that decode and augment; 0: in the main process
      'prefetch': 2,  # batches each worker prepares ahead
      'max_unreadable': 100,  # examples that may fail to decode (each is named and skipped) before the run stops
    }
  )
  config.model = ConfigDict(
    {
      'embed_dim': 768,
      'prenet_depth': 2,  # blocks that belong to the modality and give no targets
      'depth': 10,  # main blocks
      'num_heads': 12,
      'mlp_ratio': 4,
      'norm_eps': 1e-6,
      'extra_tokens': 1,  # learned tokens before the others; the last one is the CLS token
      'init_std': 0.02,  # of the transformer's linear layers
      'alibi': '',  # attention bias by distance: '', 'manhattan' or 'euclidean'
      'alibi_scale': 1.0,
      'alibi_learned': False,  # the scale is a parameter, and that is its first value; it acts as at least 0
      'alibi_per_head': False,  # one scale for each head
      'alibi_per_layer': False,  # and for each block
      # Rates in training; the teacher has none.
      'dropout': {
        'entry': 0.0,  # before the first block
        'attention': 0.0,  # of attention weights
        'attention_output': 0.0,
        'activation': 0.0,  # inside the MLP, after each of its two layers
        'mlp_output': 0.0,  # of the MLP's branch; targets are taken before it
      },
      'layer_drop': 0.0,  # a main block is skipped in a step with this probability
      'prenet_layer_drop': 0.0,
    }
  )
  config.optimizer = ConfigDict(
    {
      'beta1': 0.9,
      'beta2': 0.95,
      'eps': 1e-8,
      'eps_uncorrected': False,  # add eps to the root of the uncorrected second moment, as the paper's code does
      'weight_decay': 0.05,
      'decay_all': False,  # decay biases, norms and ALiBi scales too, as the released runs most likely did
      'clip_norm': 4.0,  # 0: none
    }
  )
  config.schedule = ConfigDict(
    {
      'name': 'cosine',  # 'linear' or 'tri_stage'
      'warmup_steps': 50_040,  # of the cosine and of the linear decay
      'min_learning_rate': 0.0,
      'phases': (0.1, 0.4, 0.5),  # of tri_stage: fractions of the run that warm up, hold and decay
      'initial_scale': 0.01,  # of tri_stage: the first and the last learning rate, as fractions of the peak
      'final_scale': 0.05,
    }
  )
  config.health = ConfigDict(
    {
      'max_skipped': 20,  # the run stops at the first record after this many updates in a row were skipped (not finite)
      'min_target_std': 0.0,  # stop below this spread of the targets after `grace_steps`; 0: only warn
      'min_pred_std': 0.0,
      'grace_steps': 5000,
    }
  )
  for section in _SECTIONS[modality, task]:
    section(config)
  config.lock()
  return config


def _pretraining(config):
  config.mask = ConfigDict(
    {
      'ratio': 0.8,  # fraction of tokens hidden from the student
      'adjust': 0.07,  # raises the number of block centres drawn; never the final count
      'block_size': 3,  # side of a block, in tokens
      'inverse': True,  # blocks are what stays visible
    }
  )
  config.data2vec2 = ConfigDict(
    {
      'masks_per_example': 16,  # M: student views that share one teacher pass
      'average_top_k': 10,  # K: top main blocks averaged into the target
      'block_output_targets': False,  # targets are block outputs instead of MLP outputs
      'target_layer_norms': ('instance',),  # per layer before averaging, in this order: 'batch', 'instance', 'layer'
      'target_norms': ('layer',),  # of the average: 'layer', 'instance'
      'loss_beta': 0.0,  # 0: L2; above: smooth L1 with this beta
      'loss_scale': 0.0,  # factor on the element losses; 0: 1 / sqrt(embed_dim)
      'regression_loss': 1.0,  # weight of the masked-token loss
      'cls_loss': 0.01,  # weight of the CLS loss, per row of a worker's batch, as the paper's code has it
      'cls_loss_examples': 16,  # a worker's batch in the recipe: fixes the weight for any batch and device count
      'mask_noise_std': 0.01,  # of the decoder's input at masked places
      'ema_decay': 0.9998,  # of the teacher, at the start
      'ema_end_decay': 0.99999,
      'ema_anneal_steps': 100_000,  # updates over which the decay goes linearly from start to end
      # What the teacher averages: 'all'; 'context': all but the local encoder; 'blocks': main blocks. The rest is shared.
      'teacher_scope': 'all',
    }
  )
  config.decoder = ConfigDict(
    {
      'dim': 768,
      'layers': 6,
      'kernel': 3,
      'groups': 16,
      'residual': True,
      'positions': '',  # add the fixed positions to the decoder's input: '', 'masked' or 'all'
      'projection_layers': 1,  # linear layers to the width of the targets, with GELU between them
      'projection_ratio': 2.0,  # width between those layers, over `dim`
      'projection_init': 'fan_in',  # start of the projection: PyTorch's default, or 'normal', as the transformer's
      'input_dropout': 0.0,  # of the student's output
    }
  )
  config.eval = ConfigDict(
    {
      'features': 'final',  # 'final': last block's tokens; 'layers': all blocks' MLP outputs side by side; 'cls'
      'weights': 'student',  # or 'teacher'
      'batch_size': 256,
      'knn_k': 20,
      'max_train': 0,  # labelled training examples used; 0: all
      'max_test': 0,
      'controls': True,  # also score raw input and the untrained network
    }
  )


def _images(config):
  config.data.update(
    image_size=224,  # pixels; the side of the square the model sees
    crop_area=(0.2, 1.0),  # random resized crop: range of the area fraction
    crop_aspect=(3 / 4, 4 / 3),  # and of the aspect ratio (log-uniform)
    flip=True,  # mirror left-right with probability one half
    mean=(0.485, 0.456, 0.406),  # per channel, of pixels in [0, 1]
    std=(0.229, 0.224, 0.225),
  )
  config.model.update(
    patch_size=16,
    positions_scale=1.0,  # factor on the sine-cosine positions; 1: the paper's, smaller helps narrow models
    positions_dtype='float32',  # 'float16': rounded to it, as in files that the paper's code wrote after fp16 training
  )


def _speech(config):
  config.batch_size = 24
  config.learning_rate = 7.5e-4
  config.data.update(
    # Lengths of the batches. Pretraining crops a clip to the longest bucket it fills and leaves out shorter ones;
    # fine-tuning pads it to the shortest bucket that holds it and leaves out longer ones.
    bucket_seconds=(2.0, 4.0, 7.5, 10.0, 12.0, 15.0, 20.0),
    # Batches of shorter buckets have as many more rows as fit into the seconds of batch_size clips of the longest bucket,
    # in multiples of this.
    rows_multiple=8,
    split_seconds=60.0,  # recordings without transcript that are longer become clips no longer than this; 0: never
  )
  config.model.update(
    conv_layers=((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2),  # (channels, kernel, stride) of the local encoder
    conv_init='kaiming',  # or 'filterbank': start as a mel filter bank, from which little training leads further
    conv_positions=ConfigDict(
      {
        'layers': 5,
        'kernel': 19,
        'groups': 16,
        'pre_norm': False,  # a layer norm before the first layer
        'see_padding': False,  # let padding act on the frames beside it, as the paper's code does
      }
    ),
    **{'prenet_depth': 0, 'depth': 12, 'norm_eps': 1e-5, 'extra_tokens': 0},
    **{'alibi': 'manhattan', 'alibi_learned': True, 'alibi_per_head': True, 'layer_drop': 0.05, 'prenet_layer_drop': 0.05},
  )
  config.model.dropout.update(entry=0.1, attention=0.1, attention_output=0.1, mlp_output=0.1)
  config.optimizer.update(beta2=0.98, eps=1e-6, weight_decay=0.01, clip_norm=0.0)
  config.schedule.warmup_steps = 8_000
  config.health.update(min_target_std=0.1, min_pred_std=0.01)


def _speech_pretraining(config):
  config.mask.update(ratio=0.5, adjust=0.05, block_size=5, inverse=False)
  config.data2vec2.update(
    **{'masks_per_example': 8, 'average_top_k': 8, 'target_norms': (), 'cls_loss': 0.0, 'cls_loss_examples': 1},
    **{'ema_decay': 0.999, 'ema_end_decay': 0.99999, 'ema_anneal_steps': 75_000, 'teacher_scope': 'context'},
  )
  config.decoder.update(dim=384, layers=4, kernel=7, input_dropout=0.1)


def _text(config):
  config.learning_rate = 2e-4
  # A folder with encoder.json, vocab.bpe and dict.txt; a tokenizer.json, or a folder with one; a run or checkpoint of ours.
  # Empty: that of config.init_from; without, pretraining makes one of its corpus, of model.vocab_size entries.
  config.data.tokenizer = ''
  config.model.update(
    vocab_size=50_265,  # entries of the tokenizer, special ones included
    max_positions=512,  # tokens of the longest text, special ones included
    positions='learned',  # a vector for each place; or 'none', for which model.alibi can stand in
    **{'prenet_depth': 0, 'depth': 12, 'norm_eps': 1e-5, 'extra_tokens': 0},
  )
  config.model.dropout.update(attention=0.1, attention_output=0.1, mlp_output=0.1)
  config.model.dropout.embedding = 0.1  # of the embeddings, which the teacher reads too
  config.optimizer.update(beta2=0.98, eps=1e-6, weight_decay=0.01, clip_norm=1.0)


def _text_pretraining(config):
  config.batch_size = 64
  config.data.update(
    block_tokens=512,  # tokens of an example: <s> and a piece of the corpus, wherever sentences end
    lines='sentences',  # what a line of the corpus is; 'wrapped': part of a paragraph that was broken into lines
    cache='',  # where corpora are kept that were not prepared by d2v_jax.prepare; empty: ~/.cache/d2v_jax
  )
  config.mask.update(ratio=0.48, adjust=0.0, block_size=1, inverse=False)
  config.data2vec2.update(
    **{'masks_per_example': 8, 'average_top_k': 12, 'target_norms': (), 'loss_scale': 1.0},
    **{'cls_loss': 0.0, 'cls_loss_examples': 1, 'teacher_scope': 'blocks'},
    **{'ema_decay': 0.9999, 'ema_end_decay': 0.99999, 'ema_anneal_steps': 100_000},
  )
  config.decoder.update(layers=5, kernel=9, groups=1, residual=False, projection_layers=2, projection_init='normal')
  config.decoder.input_dropout = 0.1
  config.schedule.warmup_steps = 4_000
  config.health.update(min_target_std=0.1, min_pred_std=0.01)
  config.eval = ConfigDict(
    {
      'batch_size': 16,  # blocks whose targets are the choices of the retrieval probe
      'max_test': 64,  # blocks; 0: all
      'controls': True,  # also score the untrained network
    }
  )


def _sentences(config):
  config.method = ''
  config.batch_size = 16
  config.learning_rate = 2e-5
  config.data.update(
    bucket_tokens=(32, 64, 128, 256, 512),  # lengths of the batches: a text is padded to the shortest that holds it
    train_file='train.tsv',  # in the folder of the source
    test_files=('dev.tsv',),  # the first gives eval/score
    predict_file='',  # a table without labels, for which predictions.tsv is written
    header=True,  # the first line names the columns; without, they are called 0, 1, 2, ...
    text_columns=('sentence',),  # or two, for pairs
    label_column='label',
  )
  config.sentence = ConfigDict(
    {
      'kind': 'classification',  # or 'regression': labels are numbers
      'labels': (),  # names of the classes in order; empty: those of the training table, sorted
      # That is eval/score; or 'f1' (of the second label), 'matthews', 'accuracy_f1' and 'pearson_spearman' (means of two).
      'metric': 'accuracy',
    }
  )
  config.optimizer.update(weight_decay=0.1, decay_all=True, clip_norm=0.0)
  config.schedule.update(name='linear', warmup_steps=0)
  config.eval = ConfigDict({'batch_size': 32, 'max_test': 0})  # texts at once; texts of each test table used, 0: all


def _ctc(config):
  config.method = ''
  config.batch_size = 40
  config.data.bucket_seconds = (4.0, 8.0, 12.0, 16.0, 20.0, 25.0, 40.0)
  config.ctc = ConfigDict(
    {
      'freeze_steps': 10_000,  # updates in which only the new head learns
      'train_front_end': False,  # also train the convolutions of the local encoder
      'time_mask': 0.65,  # frames that are span starts, times time_mask_length; 0: none
      'time_mask_length': 10,  # frames
      'mask_noise_std': 0.01,  # of what stands at masked frames; 0: zeros
      'channel_mask': 0.25,  # likewise for spans of channels, which become 0
      'channel_mask_length': 64,
      'head_dropout': 0.0,
    }
  )
  config.model.dropout.update(entry=0.0, attention=0.0, attention_output=0.0, mlp_output=0.0, activation=0.1)
  config.model.update(layer_drop=0.1, prenet_layer_drop=0.1)
  config.optimizer.update(eps=1e-8, weight_decay=0.0)
  config.schedule.update(name='tri_stage', warmup_steps=0)
  config.eval = ConfigDict(
    {
      'max_test': 0,  # test examples used; 0: all
      'batch_size': 8,  # clips of the longest bucket that are encoded at once; of shorter ones more
      'beam_width': 0,  # of the beam search that is scored beside greedy decoding; 0: none
      'language_model': '',  # an n-gram model in ARPA format for the beam search
      'language_model_weight': 0.87,  # on natural logarithms; the reference's 2 is on base-10 ones
      'word_score': -1.0,  # added for every word
    }
  )


# What fills a config beyond the fields that all have.
_SECTIONS = {
  ('image', 'pretrain'): (_pretraining, _images),
  ('audio', 'pretrain'): (_pretraining, _speech, _speech_pretraining),
  ('audio', 'ctc'): (_speech, _ctc),
  ('text', 'pretrain'): (_pretraining, _text, _text_pretraining),
  ('text', 'sentence'): (_text, _sentences),
}


def field_names(config: ConfigDict) -> list[str]:
  """Dotted names of all fields of a config, as they are written on the command line."""
  return [name for name, _ in _leaves(config, 'config')]


def known_fields() -> dict[str, str]:
  """Every field of any config, by dotted name -> 'TASK on MODALITY' of the first config that has it."""
  return {
    name: f'{task} on {modality}'
    for modality, task in reversed(_SECTIONS)
    for name in field_names(default_config(modality, task))
  }


def to_dict(config: ConfigDict) -> dict:
  """The config as plain JSON types; what config.json holds."""
  return json.loads(config.to_json_best_effort())


def differences(one: dict, other: dict) -> dict[str, tuple]:
  """Dotted fields in which two configs (as dicts) differ, with both values; None where a field is missing."""
  one, other = dict(_leaves(one, 'config')), dict(_leaves(other, 'config'))
  names = sorted(one.keys() | other.keys())
  return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


_CHOICES = {
  'dtype': ('bfloat16', 'float32'),
  'model.alibi': ('', 'manhattan', 'euclidean'),
  'model.positions_dtype': ('float32', 'float16'),
  'decoder.positions': ('', 'masked', 'all'),
  'model.conv_init': ('kaiming', 'filterbank'),
  'model.positions': ('learned', 'none'),
  'data.lines': ('sentences', 'wrapped'),
  'data2vec2.teacher_scope': ('all', 'context', 'blocks'),
  'decoder.projection_init': ('fan_in', 'normal'),
  'sentence.kind': ('classification', 'regression'),
  'sentence.metric': ('accuracy', 'f1', 'matthews', 'accuracy_f1', 'pearson_spearman'),
  'schedule.name': ('cosine', 'linear', 'tri_stage'),
  'eval.features': ('final', 'layers', 'cls'),
  'eval.weights': ('student', 'teacher'),
}
_AT_LEAST_ONE = (
  *('batch_size', 'accumulate_steps', 'log_every', 'checkpoint_every'),
  *('data.image_size', 'data.rows_multiple', 'data.prefetch', 'eval.batch_size', 'eval.knn_k', 'health.max_skipped'),
  *('model.patch_size', 'model.embed_dim', 'model.depth', 'model.num_heads', 'model.mlp_ratio', 'mask.block_size'),
  *('model.conv_positions.layers', 'model.conv_positions.kernel', 'model.conv_positions.groups'),
  *('data2vec2.masks_per_example', 'data2vec2.average_top_k', 'data2vec2.cls_loss_examples', 'data2vec2.ema_anneal_steps'),
  *('decoder.layers', 'decoder.dim', 'decoder.kernel', 'decoder.groups', 'decoder.projection_layers'),
  *('ctc.time_mask_length', 'ctc.channel_mask_length'),
)
_AT_LEAST_ZERO = (
  *('seed', 'total_steps', 'total_epochs', 'learning_rate', 'eval_every', 'checkpoint_keep_every'),
  *('data.workers', 'data.max_unreadable', 'data.split_seconds', 'eval.max_train', 'eval.max_test', 'health.grace_steps'),
  *('model.prenet_depth', 'model.extra_tokens', 'model.alibi_scale', 'model.norm_eps', 'model.init_std', 'mask.adjust'),
  *('data2vec2.loss_beta', 'data2vec2.loss_scale', 'data2vec2.mask_noise_std', 'data2vec2.cls_loss'),
  *('optimizer.eps', 'optimizer.weight_decay', 'optimizer.clip_norm'),
  *('schedule.warmup_steps', 'schedule.min_learning_rate', 'schedule.initial_scale', 'schedule.final_scale'),
  *('ctc.freeze_steps', 'ctc.time_mask', 'ctc.channel_mask', 'ctc.mask_noise_std', 'eval.beam_width'),
)
_FRACTIONS = ('mask.ratio', 'data.holdout', 'data2vec2.ema_decay', 'data2vec2.ema_end_decay')
_BELOW_ONE = ('optimizer.beta1', 'optimizer.beta2', 'model.layer_drop', 'model.prenet_layer_drop', 'decoder.input_dropout')
_BELOW_ONE += tuple(
  f'model.dropout.{place}' for place in ('entry', 'attention', 'attention_output', 'activation', 'mlp_output', 'embedding')
)
_BELOW_ONE += ('ctc.head_dropout',)
_NUMBERS = {'data.crop_area': 2, 'data.crop_aspect': 2, 'data.mean': 3, 'data.std': 3, 'schedule.phases': 3}
_NORMS = {'data2vec2.target_layer_norms': ('batch', 'instance', 'layer'), 'data2vec2.target_norms': ('layer', 'instance')}


def validate(config: ConfigDict) -> None:
  """Raises InputError, naming the field, for values that cannot work in any run."""
  check = _Checker(config)
  check.choice('task', tuple(dict.fromkeys(task for _, task in _SECTIONS)))
  check.choice('modality', tuple(modality for modality, task in _SECTIONS if task == config.task))
  check.choice('method', ('data2vec2',) if config.task == 'pretrain' else ('',))
  for name, allowed in _CHOICES.items():
    check.choice(name, allowed)
  for name in _AT_LEAST_ONE:
    check.range(name, 1)
  for name in _AT_LEAST_ZERO:
    check.range(name, 0)
  for name in _FRACTIONS:
    check.range(name, 0, 1)
  for name in _BELOW_ONE:
    check.range(name, 0, 1, below=True)
  for name, length in _NUMBERS.items():
    check.numbers(name, length)
  for name, allowed in _NORMS.items():
    for norm in check.value(name, ()):
      if norm not in allowed:
        raise InputError(f'config.{name}: found {norm!r}; allowed: {", ".join(map(repr, allowed))}')
  _check_length(config)
  _check_sizes(config)
  if config.modality == 'image':
    _check_images(config)
  if config.modality == 'audio':
    _check_speech(config)
  if config.modality == 'text':
    _check_text(config)
  if config.task == 'pretrain':
    _check_pretraining(config)
  if config.task == 'ctc':
    _check_ctc(config)


def _check_length(config):
  if not config.total_steps and not config.total_epochs:
    raise InputError('config.total_steps: 0, and config.total_epochs is 0 too; give one of them')
  if config.total_steps and config.total_epochs:
    raise InputError(
      f'config.total_epochs: {config.total_epochs} beside total_steps {config.total_steps}; give only one of them'
    )


def _check_sizes(config):
  """Fields that must fit each other."""
  model = config.model
  if model.embed_dim % model.num_heads:
    raise InputError(f'config.model.num_heads: {model.num_heads} does not divide embed_dim {model.embed_dim}')
  phases = config.schedule.phases
  if min(phases) < 0 or not math.isclose(sum(phases), 1, abs_tol=1e-6):
    raise InputError(f'config.schedule.phases: found {phases}; three fractions that add up to 1 are needed')


def _check_images(config):
  for name in ('crop_area', 'crop_aspect'):
    if not 0 < config.data[name][0] <= config.data[name][1]:
      raise InputError(f'config.data.{name}: found {config.data[name]}; two ascending numbers above 0 are needed')
  if min(config.data.std) <= 0:
    raise InputError(f'config.data.std: found {config.data.std}; 3 numbers above 0 are needed')
  if config.model.embed_dim % 4:
    raise InputError(f'config.model.embed_dim: {config.model.embed_dim} is not a multiple of 4, which 2-D positions need')


def _check_speech(config):
  buckets, positions = config.data.bucket_seconds, config.model.conv_positions
  if not buckets or sorted(set(buckets)) != list(buckets) or buckets[0] <= 0:
    raise InputError(f'config.data.bucket_seconds: found {buckets}; ascending lengths in seconds are needed')
  if config.batch_size % config.data.rows_multiple:
    raise InputError(
      f'config.data.rows_multiple: {config.data.rows_multiple} does not divide config.batch_size {config.batch_size}'
    )
  layers = config.model.conv_layers
  if not layers or not all(len(layer) == 3 and min(layer) >= 1 for layer in layers):
    raise InputError(f'config.model.conv_layers: found {layers}; (channels, kernel, stride) for each layer is needed')
  if config.model.embed_dim % positions.groups:
    raise InputError(
      f'config.model.conv_positions.groups: {positions.groups} does not divide embed_dim {config.model.embed_dim}'
    )


def _check_text(config):
  positions = config.model.max_positions
  if positions < 8:
    raise InputError(f'config.model.max_positions: found {positions}; allowed is at least 8')
  if config.task == 'pretrain':
    if not 3 <= config.data.block_tokens <= positions:
      raise InputError(
        f'config.data.block_tokens: found {config.data.block_tokens}; allowed is from 3 to model.max_positions {positions}'
      )
    return
  buckets = config.data.bucket_tokens
  if not buckets or sorted(set(buckets)) != list(buckets) or buckets[0] < 8:
    raise InputError(f'config.data.bucket_tokens: found {buckets}; ascending numbers of tokens, at least 8, are needed')
  if len(config.data.text_columns) not in (1, 2):
    raise InputError(f'config.data.text_columns: found {config.data.text_columns}; one column, or two for pairs, are needed')
  if config.data.predict_file and not config.eval_every:
    raise InputError('config.data.predict_file: is read at evaluations; set config.eval_every too')
  if not config.data.test_files and config.eval_every and not config.data.holdout:
    raise InputError('config.data.test_files: empty; name the table to evaluate on, or set config.eval_every=0')
  if (labels := config.sentence.labels) and (config.sentence.kind == 'regression' or len(set(labels)) < max(len(labels), 2)):
    raise InputError(
      f'config.sentence.labels: found {labels}; a classification has two or more different ones, a regression none'
    )
  if (config.sentence.kind == 'regression') != (config.sentence.metric == 'pearson_spearman'):
    raise InputError(
      f'config.sentence.metric: {config.sentence.metric!r} does not score a {config.sentence.kind}; '
      "'pearson_spearman' is for regression, all others are for classification"
    )


def _check_ctc(config):
  if config.eval.language_model and not config.eval.beam_width:
    raise InputError('config.eval.language_model: only a beam search uses it; set config.eval.beam_width=50 too')


def _check_pretraining(config):
  model, decoder, method = config.model, config.decoder, config.data2vec2
  if method.average_top_k > model.depth:
    raise InputError(f'config.data2vec2.average_top_k: {method.average_top_k} of model.depth {model.depth} main blocks')
  for width in (model.embed_dim, decoder.dim):
    if width % decoder.groups:
      raise InputError(f'config.decoder.groups: {decoder.groups} does not divide the width {width}')
  if method.cls_loss and not model.extra_tokens:
    raise InputError('config.data2vec2.cls_loss: needs an extra token; set config.model.extra_tokens=1 or cls_loss=0.0')
  if config.eval.get('features') == 'cls' and not model.extra_tokens:
    raise InputError("config.eval.features: 'cls' needs config.model.extra_tokens=1")


class _Checker:
  """Checks of single fields by dotted name; one that the config does not have is fine."""

  def __init__(self, config):
    self._config = config

  def value(self, name, default=None):
    value = self._config
    for part in name.split('.'):
      if part not in value:
        return default
      value = value[part]
    return value

  def choice(self, name, allowed):
    value = self.value(name, allowed[0])
    if value not in allowed:
      nearest = difflib.get_close_matches(str(value), allowed, 1)
      hint = f'; did you mean {nearest[0]!r}?' if nearest else ''
      raise InputError(f'config.{name}: found {value!r}; allowed: {", ".join(map(repr, allowed))}{hint}')

  def range(self, name, low, high=math.inf, below=False):
    value = self.value(name, low)
    if not low <= value <= high or (below and value == high):
      bounds = f'at least {low}' if high == math.inf else f'from {low} to {"below " if below else ""}{high}'
      raise InputError(f'config.{name}: found {value}; allowed is {bounds}')

  def numbers(self, name, length):
    value = self.value(name, (0,) * length)
    if len(value) != length or not all(isinstance(item, (int, float)) for item in value):
      raise InputError(f'config.{name}: found {value}; {length} numbers are needed')


def _leaves(tree, prefix):
  for name, value in tree.items():
    if hasattr(value, 'items'):
      yield from _leaves(value, f'{prefix}.{name}')
    else:
      yield f'{prefix}.{name}', value
