"""Weights of any format that can be read, by path: `config.init_from` and `d2v_jax.load` come here."""

import json
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from d2v_jax.checkpoints import fairseq, manager
from d2v_jax.data import tokenizer
from d2v_jax.data.tokenizer import Tokenizer
from d2v_jax.errors import InputError
from d2v_jax.methods.teacher import copy

# Fields of config.model that are about training, not about which parameters there are.
_TRAINING_FIELDS = ('init_std', 'conv_init', 'dropout', 'layer_drop', 'prenet_layer_drop')


def read(path) -> tuple[dict, dict | None, ConfigDict]:
  """Reads (student parameters, teacher parameters or None, config) from a checkpoint of ours or a fairseq `.pt` file.

  Raises:
    InputError: there is nothing at the path, or nothing that can be read.
  """
  path = Path(path)
  if not path.exists():
    raise InputError(f'{path}: does not exist; give a checkpoint folder of ours or a .pt file')
  if path.is_file():
    found = fairseq.import_checkpoint(path)
    return found.params, found.teacher, found.config
  return manager.load_weights(path)


def read_meta(path) -> tuple[ConfigDict, dict[str, object]]:
  """Reads the config and the assets ('tokenizer', 'labels') that belong to weights; raises as `read`."""
  if Path(path).is_dir():
    return manager.load_meta(path)
  return read(path)[2], {}


def read_tokenizer(path) -> Tokenizer:
  """Reads the tokenizer that lies at a path (`data.tokenizer`), or that of a checkpoint of ours.

  Raises:
    InputError: there is none.
  """
  if manager.find_checkpoint(path) is None:
    return tokenizer.read_tokenizer(path)
  config, assets = manager.load_meta(path)
  if 'tokenizer' not in assets:
    raise InputError(
      f'{path}: is a model of {config.modality}, without tokenizer; give a text model of ours that has one, or the files of'
      ' a tokenizer'
    )
  return Tokenizer.from_text(assets['tokenizer'])


def tokenizer_of(config: ConfigDict) -> Tokenizer | None:
  """The tokenizer that a text config asks for: config.data.tokenizer, or that of config.init_from; None without either.

  Raises:
    InputError: it cannot be read, or the two are different.
  """
  wanted, origin = config.data.tokenizer, config.init_from
  try:
    found = read_tokenizer(wanted) if wanted else None
  except InputError as error:
    raise InputError(f'config.data.tokenizer: {error}') from error
  if not origin or not Path(origin).exists():  # a run that goes on needs no init_from any more
    return found
  assets = {}
  if Path(origin).is_dir():
    of_origin, assets = manager.load_meta(origin)
    _check_modality(config, origin, of_origin)
  if 'tokenizer' not in assets:  # weights of the reference, as they are or converted
    if found is None:
      raise InputError(f'config.data.tokenizer: missing; {origin} has none, give the one it was trained with')
    return found
  trained_with = Tokenizer.from_text(assets['tokenizer'])
  if found is not None:
    _check_same(trained_with, found, wanted, f'config.init_from {origin}')
  return trained_with


def _check_modality(config, path, found):
  if found.modality != config.modality:
    raise InputError(f'{path}: is a model of {found.modality}, config.modality is {config.modality}; give another')


def _check_same(expected, found, place, owner):
  if found.fingerprint != expected.fingerprint:
    raise InputError(
      f'config.data.tokenizer: {place} is another tokenizer than that of {owner}, whose embeddings would mean nothing; '
      'leave it out'
    )


def with_network(config: ConfigDict, workdir, checkpoint=None) -> ConfigDict:
  """The config of a fine-tuning with the network of the weights it starts from; other configs as they are.

  One fine-tuning recipe so serves models of every size. An explicit `checkpoint` comes first, then what the
  workdir says, then config.init_from.

  Raises:
    InputError: config.init_from is needed and does not exist, or is of another modality.
  """
  fresh = not checkpoint and manager.find_checkpoint(workdir) is None
  if fresh and config.init_from and not Path(config.init_from).exists():
    raise InputError(f'config.init_from: {config.init_from} does not exist; give a checkpoint folder of ours or a .pt file')
  if config.task == 'pretrain':
    return config
  saved = Path(workdir) / 'config.json'
  if not checkpoint and saved.exists():
    origin = saved
    try:
      model = json.loads(saved.read_text())['model']
    except (ValueError, KeyError, TypeError):
      return config  # opening the workdir says what is wrong with it
  elif path := checkpoint or config.init_from:
    origin = path
    found, _ = read_meta(path)
    _check_modality(config, path, found)
    model = found.model.to_dict()
  else:
    return config
  config = config.copy_and_resolve_references()
  architecture = {name: value for name, value in model.items() if name in config.model and name not in _TRAINING_FIELDS}
  config.model.update(_tuples(architecture))
  logging.info('The network is that of %s', origin)
  return config


def with_assets(config: ConfigDict, workdir, checkpoint=None) -> ConfigDict:
  """The config of a text run with tokenizer and classes of the weights that go on, `checkpoint`'s or the workdir's.

  Token ids and numbers of classes mean to weights what they meant in their training, whatever the data are now.

  Raises:
    InputError: the config names others.
  """
  origin = checkpoint or workdir
  if config.modality != 'text' or not (checkpoint or manager.find_checkpoint(workdir)):
    return config
  _, assets = read_meta(origin)
  config = config.copy_and_resolve_references()
  if 'tokenizer' in assets:
    if config.data.tokenizer:
      trained_with = Tokenizer.from_text(assets['tokenizer'])
      _check_same(trained_with, read_tokenizer(config.data.tokenizer), config.data.tokenizer, origin)
    config.data.tokenizer = str(origin)
  if config.task == 'sentence' and assets.get('labels'):
    labels = tuple(assets['labels'])
    if config.sentence.labels and tuple(config.sentence.labels) != labels:
      raise InputError(f'config.sentence.labels: found {config.sentence.labels}; those of {origin} are {labels}')
    config.sentence.labels = labels
  return config


def _tuples(value):
  """JSON has lists where configs have tuples."""
  if isinstance(value, dict):
    return {name: _tuples(entry) for name, entry in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def matching(
  path, params: dict, teacher: dict, complete: bool = False, labels: list[str] | None = None
) -> tuple[dict, dict]:
  """Reads weights to train or evaluate: (params, teacher) with the names and shapes of those given.

  A file without teacher gives a teacher that copies the student. Of other parts than the encoder, those that the file lacks
  are left out of what is returned (training starts them anew), as is a head of other classes; and those that are not wanted
  are not read.

  Args:
    path: of the weights.
    params, teacher: trees of arrays or of their shapes.
    complete: every part must be there.
    labels: names of the classes of the head, if it is of classes.

  Raises:
    InputError: an array is missing, too many or of another shape.
  """
  found, found_teacher, _ = read(path)
  if unused := sorted(found.keys() - params.keys()):
    logging.info('%s: not used here: %s', path, ', '.join(unused))
    found = {part: found[part] for part in found if part in params}
  if 'head' in found and labels is not None and read_meta(path)[1].get('labels') != labels:
    found = {part: tree for part, tree in found.items() if part != 'head'}
  if missing := sorted(params.keys() - found.keys() - {'encoder'}):
    if complete:
      raise InputError(f'{path}: has no {missing[0]}, which this task needs; give a checkpoint of this task')
    logging.info('%s: not there, or of another task, so new: %s', path, ', '.join(missing))
    params = {part: params[part] for part in params if part not in missing}
  _check(path, found, params)
  if found_teacher is None and teacher:
    logging.info("%s has no teacher; the student's weights are taken", path)
    found_teacher = {part: {name: found[part][name] for name in tree} for part, tree in teacher.items()}
  if teacher:
    _check(path, found_teacher, teacher)
  return copy(found), copy(found_teacher) if teacher else {}


def _shapes(tree):
  """Shapes of the arrays of a tree, by names such as 'encoder/norm/bias'."""
  return {jax.tree_util.keystr(key, simple=True, separator='/'): leaf.shape for key, leaf in jax.tree.leaves_with_path(tree)}


def _check(path, found, expected):
  found, expected = _shapes(found), _shapes(expected)
  for name in sorted(found.keys() | expected.keys()):
    if found.get(name) != expected.get(name):
      if name in found and name.endswith('/token_embedding'):
        raise InputError(
          f'{path}: its vocabulary has {found[name][0]} entries, config.model.vocab_size is {expected[name][0]}; embeddings '
          'of another vocabulary mean nothing here: use the tokenizer it was trained with'
        )
      raise InputError(
        f'{path}: {name} is {found.get(name, "missing")} there, {expected.get(name, "not used")} in this config; '
        'use the model settings of the checkpoint'
      )
