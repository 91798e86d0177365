"""Every option of a run, with its default: the one schema that `configs/*.py` fill in and `--config.field=value` overrides.

`default_config()` lists every field, so a config file only states what it changes. `validate(config)` refuses what cannot
work before any time is spent. The names follow `docs/algorithm.md`.
"""

import difflib
import json
import math

from ml_collections import ConfigDict

from d2v_jax.errors import InputError


def default_config() -> ConfigDict:
  """Returns the full config of data2vec 2.0 on images, ViT-B sized, locked: unknown fields are refused by name."""
  config = ConfigDict()
  config.task = 'pretrain'
  config.method = 'data2vec2'
  config.modality = 'image'

  config.seed = 1
  config.total_steps = 0  # optimiser updates; or give total_epochs
  config.total_epochs = 0.0  # passes over the training examples; used when total_steps is 0
  config.batch_size = 256  # examples per update, over all devices and accumulated micro-batches
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
      'image_size': 224,  # pixels; the side of the square the model sees
      'crop_area': (0.2, 1.0),  # random resized crop: range of the area fraction
      'crop_aspect': (3 / 4, 4 / 3),  # and of the aspect ratio (log-uniform)
      'flip': True,  # mirror left-right with probability one half
      'mean': (0.485, 0.456, 0.406),  # per channel, of pixels in [0, 1]
      'std': (0.229, 0.224, 0.225),
      'holdout': 0.0,  # evaluate on this fraction of the training part instead of the test part (for choosing settings)
      'workers': 8,  # worker processes that decode and augment; 0: in the main process
      'prefetch': 2,  # batches each worker prepares ahead
      'max_unreadable': 100,  # examples that may fail to decode (each is named and skipped) before the run stops
    }
  )

  config.model = ConfigDict(
    {
      'patch_size': 16,
      'embed_dim': 768,
      'prenet_depth': 2,  # blocks that belong to the modality and give no targets
      'depth': 10,  # main blocks
      'num_heads': 12,
      'mlp_ratio': 4,
      'norm_eps': 1e-6,
      'extra_tokens': 1,  # learned tokens before the patches; the last one is the CLS token
      'positions_scale': 1.0,  # factor on the sine-cosine positions; 1: the paper's, smaller helps narrow models
      'positions_dtype': 'float32',  # 'float16': rounded to it, as in files that the paper's code wrote after fp16 training
      'init_std': 0.02,  # of the transformer's linear layers
      'alibi': '',  # attention bias by distance: '', 'manhattan' or 'euclidean'
      'alibi_scale': 1.0,
    }
  )

  config.mask = ConfigDict(
    {
      'ratio': 0.8,  # fraction of tokens hidden from the student
      'adjust': 0.07,  # raises the number of block centres drawn; never the final count
      'block_size': 3,  # side of a block, in patches
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
      'name': 'cosine',
      'warmup_steps': 50_040,
      'min_learning_rate': 0.0,
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
  config.eval = ConfigDict(
    {
      'features': 'final',  # 'final': last block's patches; 'layers': all blocks' MLP outputs side by side; 'cls'
      'weights': 'student',  # or 'teacher'
      'batch_size': 256,
      'knn_k': 20,
      'max_train': 0,  # labelled training examples used; 0: all
      'max_test': 0,
      'controls': True,  # also score raw pixels and the untrained network
    }
  )
  config.lock()
  return config


def field_names(config: ConfigDict | None = None) -> list[str]:
  """Dotted names of all fields of a config (default: of ours), as they are written on the command line."""
  return [name for name, _ in _leaves(default_config() if config is None else config, 'config')]


def to_dict(config: ConfigDict) -> dict:
  """The config as plain JSON types; what config.json holds."""
  return json.loads(config.to_json_best_effort())


def differences(one: dict, other: dict) -> dict[str, tuple]:
  """Dotted fields in which two configs (as dicts) differ, with both values; None where a field is missing."""
  one, other = dict(_leaves(one, 'config')), dict(_leaves(other, 'config'))
  names = sorted(one.keys() | other.keys())
  return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


_CHOICES = {
  'task': ('pretrain',),
  'method': ('data2vec2',),
  'modality': ('image',),
  'dtype': ('bfloat16', 'float32'),
  'model.alibi': ('', 'manhattan', 'euclidean'),
  'model.positions_dtype': ('float32', 'float16'),
  'decoder.positions': ('', 'masked', 'all'),
  'schedule.name': ('cosine',),
  'eval.features': ('final', 'layers', 'cls'),
  'eval.weights': ('student', 'teacher'),
}
_AT_LEAST_ONE = (
  *('batch_size', 'accumulate_steps', 'log_every', 'checkpoint_every'),
  *('data.image_size', 'data.prefetch', 'eval.batch_size', 'eval.knn_k', 'health.max_skipped'),
  *('model.patch_size', 'model.embed_dim', 'model.depth', 'model.num_heads', 'model.mlp_ratio', 'mask.block_size'),
  *('data2vec2.masks_per_example', 'data2vec2.average_top_k', 'data2vec2.cls_loss_examples', 'data2vec2.ema_anneal_steps'),
  *('decoder.layers', 'decoder.dim', 'decoder.kernel', 'decoder.groups'),
)
_AT_LEAST_ZERO = (
  *('total_steps', 'total_epochs', 'learning_rate', 'eval_every', 'checkpoint_keep_every'),
  *('data.workers', 'data.max_unreadable', 'eval.max_train', 'eval.max_test', 'health.grace_steps'),
  *('model.prenet_depth', 'model.extra_tokens', 'model.alibi_scale', 'model.norm_eps', 'model.init_std', 'mask.adjust'),
  *('data2vec2.loss_beta', 'data2vec2.loss_scale', 'data2vec2.mask_noise_std', 'data2vec2.cls_loss'),
  *('optimizer.eps', 'optimizer.weight_decay', 'optimizer.clip_norm'),
  *('schedule.warmup_steps', 'schedule.min_learning_rate'),
)
_FRACTIONS = ('mask.ratio', 'data.holdout', 'data2vec2.ema_decay', 'data2vec2.ema_end_decay')
_FRACTIONS += ('optimizer.beta1', 'optimizer.beta2')
_NUMBERS = {'data.crop_area': 2, 'data.crop_aspect': 2, 'data.mean': 3, 'data.std': 3}
_NORMS = {'data2vec2.target_layer_norms': ('batch', 'instance', 'layer'), 'data2vec2.target_norms': ('layer', 'instance')}


def validate(config: ConfigDict) -> None:
  """Raises InputError, naming the field, for values that cannot work in any run."""
  check = _Checker(config)
  for name, allowed in _CHOICES.items():
    check.choice(name, allowed)
  for name in _AT_LEAST_ONE:
    check.range(name, 1)
  for name in _AT_LEAST_ZERO:
    check.range(name, 0)
  for name in _FRACTIONS:
    check.range(name, 0, 1)
  for name, length in _NUMBERS.items():
    check.numbers(name, length)
  for name in ('optimizer.beta1', 'optimizer.beta2'):
    if check.value(name) == 1:
      raise InputError(f'config.{name}: found 1.0; allowed is from 0 to below 1')
  for name in ('data.crop_area', 'data.crop_aspect'):
    if not 0 < check.value(name)[0] <= check.value(name)[1]:
      raise InputError(f'config.{name}: found {check.value(name)}; two ascending numbers above 0 are needed')
  if min(check.value('data.std')) <= 0:
    raise InputError(f'config.data.std: found {check.value("data.std")}; 3 numbers above 0 are needed')
  for name, allowed in _NORMS.items():
    for norm in check.value(name):
      if norm not in allowed:
        raise InputError(f'config.{name}: found {norm!r}; allowed: {", ".join(map(repr, allowed))}')
  _check_length(config)
  _check_sizes(config)


def _check_length(config):
  if not config.total_steps and not config.total_epochs:
    raise InputError('config.total_steps: 0, and config.total_epochs is 0 too; give one of them')
  if config.total_steps and config.total_epochs:
    raise InputError(
      f'config.total_epochs: {config.total_epochs} beside total_steps {config.total_steps}; give only one of them'
    )


def _check_sizes(config):
  """Fields that must fit each other."""
  model, decoder, method = config.model, config.decoder, config.data2vec2
  if model.embed_dim % model.num_heads:
    raise InputError(f'config.model.num_heads: {model.num_heads} does not divide embed_dim {model.embed_dim}')
  if model.embed_dim % 4:
    raise InputError(f'config.model.embed_dim: {model.embed_dim} is not a multiple of 4, which 2-D positions need')
  if method.average_top_k > model.depth:
    raise InputError(f'config.data2vec2.average_top_k: {method.average_top_k} of model.depth {model.depth} main blocks')
  for width in (model.embed_dim, decoder.dim):
    if width % decoder.groups:
      raise InputError(f'config.decoder.groups: {decoder.groups} does not divide the width {width}')
  if method.cls_loss and not model.extra_tokens:
    raise InputError('config.data2vec2.cls_loss: needs an extra token; set config.model.extra_tokens=1 or cls_loss=0.0')
  if config.eval.features == 'cls' and not model.extra_tokens:
    raise InputError("config.eval.features: 'cls' needs config.model.extra_tokens=1")


class _Checker:
  """Checks of single fields by dotted name."""

  def __init__(self, config):
    self._config = config

  def value(self, name):
    value = self._config
    for part in name.split('.'):
      value = value[part]
    return value

  def choice(self, name, allowed):
    if self.value(name) not in allowed:
      nearest = difflib.get_close_matches(str(self.value(name)), allowed, 1)
      hint = f'; did you mean {nearest[0]!r}?' if nearest else ''
      raise InputError(f'config.{name}: found {self.value(name)!r}; allowed: {", ".join(map(repr, allowed))}{hint}')

  def range(self, name, low, high=math.inf):
    if not low <= self.value(name) <= high:
      bounds = f'at least {low}' if high == math.inf else f'from {low} to {high}'
      raise InputError(f'config.{name}: found {self.value(name)}; allowed is {bounds}')

  def numbers(self, name, length):
    value = self.value(name)
    if len(value) != length or not all(isinstance(item, (int, float)) for item in value):
      raise InputError(f'config.{name}: found {value}; {length} numbers are needed')


def _leaves(tree, prefix):
  for name, value in tree.items():
    if hasattr(value, 'items'):
      yield from _leaves(value, f'{prefix}.{name}')
    else:
      yield f'{prefix}.{name}', value
