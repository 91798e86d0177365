"""The reference's checkpoints of text, pretrained and fine-tuned on a task of sentences."""

import functools
import itertools
import json
import re

import jax
import numpy as np
import pytest

from d2v_jax import convert
from d2v_jax.checkpoints import fairseq, fairseq_config, manager, torch_pickle
from d2v_jax.config import to_dict, validate
from d2v_jax.errors import InputError
from tests.weights.handmade_pickles import Name, New, Storage, tensor, write_zip
from tests.weights.test_fairseq import FORMS, GOLDEN, add, assert_same, drop, golden_state, setting, write_changed

CASE = GOLDEN / 'd2v2_text'
TEXT = 'modality_encoders.TEXT.'
SECTION = 'model.modalities.text.'
HEAD = 'classification_heads.sentence_classification_head.'
WIDTH, VOCABULARY, POSITIONS, BLOCKS = 32, 40, 32, 3


@pytest.fixture(scope='module')
def content():
  """The golden checkpoint as it was read, with a config of plain dicts."""
  return torch_pickle.read(CASE / 'checkpoint_fp16_dictcfg.pt')


@pytest.fixture
def rewrite(content, tmp_path):
  """Writes the golden checkpoint again, changed by a function (of the weights, the teacher's and the config)."""
  return functools.partial(write_changed, tmp_path / 'changed.pt', content)


def random(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def settings(**values):
  """A change of several fields, the names with '/' for '.'."""

  def change(weights, teacher, cfg):
    for name, value in values.items():
      setting(name.replace('/', '.'), value)(weights, teacher, cfg)

  return change


def in_section(**values):
  return settings(**{SECTION.replace('.', '/') + name: value for name, value in values.items()})


# --- pretraining


@pytest.mark.parametrize('form', FORMS)
def test_all_forms_hold_the_expected_weights(form):
  imported = fairseq.import_checkpoint(CASE / form)
  student, teacher = golden_state(CASE, 'student'), golden_state(CASE, 'teacher')
  if 'fp16' in form:
    student = {name: value.astype(np.float16) for name, value in student.items()}
  assert_same(imported.params, fairseq.student_params(student))
  assert_same(imported.teacher, fairseq.teacher_params(teacher))
  assert {leaf.dtype for leaf in jax.tree.leaves((imported.params, imported.teacher))} == {np.dtype(np.float32)}
  blocks = {f'block_{i}' for i in range(BLOCKS)}
  assert set(imported.params) == {'encoder', 'decoder'}
  assert set(imported.params['encoder']) == {'local_encoder', *blocks}
  assert set(imported.params['encoder']['local_encoder']) == {'token_embedding', 'position_embedding', 'norm'}
  assert set(imported.params['decoder']) == {'conv_0', 'conv_1', 'conv_2', 'hidden_0', 'projection'}
  assert set(imported.teacher) == {'encoder'} and set(imported.teacher['encoder']) == blocks
  for account, state, params in (
    (imported.student_account, student, imported.params),
    (imported.teacher_account, teacher, imported.teacher),
  ):
    assert set(account.used) == set(state) and not account.unused
    arrays = [path for paths in account.used.values() for path in paths]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert sorted(arrays) == sorted(jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves)
    assert account.parameters == sum(value.size for value in state.values())
  assert any('config.data.tokenizer' in note for note in imported.notes)


def test_embeddings():
  """What the layers compute, from the parameters of the case and its tokens."""
  with np.load(CASE / 'params.npz') as params:
    student = {name.partition('/')[2]: params[name] for name in params if name.startswith('student/')}
  local = fairseq.student_params(student)['encoder']['local_encoder']
  with np.load(CASE / 'inputs.npz') as inputs, np.load(CASE / 'expected.npz') as expected:
    tokens, padding, features = inputs['source'], inputs['padding_mask'], expected['local_features']
  places = np.where(padding, 1, 1 + np.cumsum(~padding, axis=1))
  x = local['token_embedding'][tokens] + local['position_embedding'][places]
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  np.testing.assert_allclose(x * local['norm']['scale'] + local['norm']['bias'], features, atol=1e-4)


def test_projection():
  state = golden_state(CASE, 'student')
  decoder = fairseq.student_params(state)['decoder']
  for ours, theirs in (('hidden_0', 'proj.0'), ('projection', 'proj.2')):
    weight, bias = state[f'{TEXT}decoder.{theirs}.weight'], state[f'{TEXT}decoder.{theirs}.bias']
    x = random(5, weight.shape[1])
    np.testing.assert_allclose(x @ decoder[ours]['kernel'] + decoder[ours]['bias'], x @ weight.T + bias, atol=1e-4)


def test_teacher_of_blocks_is_mapped_as_the_students_blocks():
  student, teacher = golden_state(CASE, 'student'), golden_state(CASE, 'teacher')
  expected = fairseq.student_params(student | {f'blocks.{name}': value for name, value in teacher.items()})['encoder']
  found = fairseq.teacher_params(teacher)['encoder']
  assert_same(found, {name: tree for name, tree in expected.items() if name.startswith('block_')})


def test_gradients_map_like_weights():
  with np.load(CASE / 'grads.npz') as grads:
    shapes = lambda state: jax.tree.map(np.shape, fairseq.student_params(state))
    assert_same(shapes(dict(grads)), shapes(golden_state(CASE, 'student')))


def test_config_is_read_whole():
  config = fairseq.import_checkpoint(CASE / 'checkpoint.pt').config
  assert (config.task, config.modality) == ('pretrain', 'text')
  model, method, decoder = config.model, config.data2vec2, config.decoder
  assert (model.embed_dim, model.depth, model.num_heads, model.prenet_depth, model.extra_tokens) == (WIDTH, BLOCKS, 4, 0, 0)
  assert (model.vocab_size, model.max_positions, model.alibi, model.norm_eps) == (VOCABULARY, POSITIONS, '', 1e-5)
  assert (config.mask.ratio, config.mask.block_size, config.mask.inverse) == (0.48, 1, False)
  assert (method.teacher_scope, method.masks_per_example, method.average_top_k) == ('blocks', 3, 3)
  assert (method.target_layer_norms, method.target_norms, method.loss_scale) == (('instance',), (), 1.0)
  assert (decoder.dim, decoder.layers, decoder.kernel, decoder.groups, decoder.residual) == (32, 3, 9, 1, False)
  assert (decoder.projection_layers, decoder.projection_ratio, decoder.projection_init) == (2, 2.0, 'normal')
  # Of the recipe: 4 blocks on each of 16 workers, and the optimizer's default group.
  assert (config.batch_size, config.accumulate_steps, config.data.block_tokens) == (64, 1, 512)
  assert (config.learning_rate, config.schedule.warmup_steps, config.optimizer.eps) == (2e-4, 4_000, 1e-6)
  assert (config.optimizer.beta2, config.optimizer.weight_decay, config.optimizer.clip_norm) == (0.98, 0.01, 1.0)
  assert fairseq_config.differences(config)[0] == 'text_base'


def test_config_of_the_large_case():
  model = json.loads((GOLDEN / 'd2v2_text_large' / 'config.json').read_text())['model']
  config, _ = fairseq_config.config_from(fairseq_config.flatten({'model': model}))
  method = config.data2vec2
  assert (method.target_layer_norms, method.target_norms, method.loss_beta) == (('layer',), ('instance',), 4.0)
  assert (config.mask.ratio, config.model.num_heads, config.model.max_positions) == (0.5, 8, 24)
  assert (method.teacher_scope, config.decoder.dim, config.decoder.layers) == ('blocks', 24, 2)


def test_rates_and_sizes(rewrite):
  change = settings(
    **{
      'model/encoder_dropout': 0.11,
      'model/attention_dropout': 0.12,
      'model/activation_dropout': 0.13,
      'model/post_mlp_drop': 0.14,
      'model/layerdrop': 0.15,
      'model/modalities/text/dropout': 0.16,
      'model/modalities/text/prenet_dropout': 0.17,
      'model/modalities/text/decoder/input_dropout': 0.18,
      'model/modalities/text/max_source_positions': '${task.tokens_per_sample}',
      'task/tokens_per_sample': POSITIONS,
      'dataset/batch_size': 2,
      'optimization/update_freq': [3],
    }
  )

  def grow(weights, teacher, cfg):
    change(weights, teacher, cfg)
    weights[TEXT + 'local_encoder.embed_tokens.weight'] = random(300, WIDTH)

  imported = fairseq.import_checkpoint(rewrite(grow))
  config = imported.config
  dropout = config.model.dropout
  rates = (dropout.attention_output, dropout.attention, dropout.activation, dropout.mlp_output, config.model.layer_drop)
  assert rates == (0.11, 0.12, 0.13, 0.14, 0.15)
  assert (dropout.embedding, config.decoder.input_dropout) == (0.16, 0.18)
  assert dropout.entry == 0.0  # without prenet blocks there is no place for it
  assert (config.model.max_positions, config.data.block_tokens) == (POSITIONS, POSITIONS)
  assert (config.batch_size, config.accumulate_steps) == (2 * 16 * 3, 3)
  assert config.model.vocab_size == len(imported.params['encoder']['local_encoder']['token_embedding']) == 300
  assert not [note for note in imported.notes if re.search('would differ|ignored|stay', note)]
  validate(config)


def test_prenet_blocks_come_with_a_norm(rewrite):
  norm = {'scale': random(WIDTH), 'bias': random(WIDTH) + 1}

  def change(weights, teacher, cfg):
    in_section(prenet_depth=1, prenet_dropout=0.25)(weights, teacher, cfg)
    for name in [name for name in weights if name.startswith('blocks.1.')]:
      weights[TEXT + 'context_encoder.blocks.0.' + name.removeprefix('blocks.1.')] = weights[name]
    weights[TEXT + 'context_encoder.norm.weight'] = norm['scale']
    weights[TEXT + 'context_encoder.norm.bias'] = norm['bias']

  imported = fairseq.import_checkpoint(rewrite(change))
  encoder = imported.params['encoder']
  assert_same(encoder['norm'], norm)
  assert_same(encoder['prenet_0'], encoder['block_1'])
  assert (imported.config.model.prenet_depth, imported.config.model.dropout.entry) == (1, 0.25)
  with pytest.raises(InputError, match=r'context_encoder\.norm\.weight'):  # without prenet blocks
    fairseq.import_checkpoint(rewrite(add(TEXT + 'context_encoder.norm.weight', np.ones(WIDTH))))


@pytest.mark.parametrize('scope', ['context', 'all'])
def test_teachers_of_more_than_the_blocks(rewrite, scope):
  def change(weights, teacher, cfg):
    settings(**{'model/ema_encoder_only': False})(weights, teacher, cfg)
    in_section(ema_local_encoder=scope == 'all')(weights, teacher, cfg)
    blocks = {f'blocks.{name}': teacher.pop(name) for name in list(teacher)}
    teacher |= {name: value + 1 for name, value in weights.items() if scope == 'all' and '.local_encoder.' in name}
    # A learned ALiBi scale: what stands outside of blocks and local encoder.
    in_section(use_alibi_encoder=True, learned_alibi_scale=True)(weights, teacher, cfg)
    weights[TEXT + 'alibi_scale'] = teacher[TEXT + 'alibi_scale'] = np.ones((1, 1, 1, 1, 1), np.float32)
    teacher |= blocks

  imported = fairseq.import_checkpoint(rewrite(change))
  assert imported.config.data2vec2.teacher_scope == scope
  assert imported.config.model.alibi == 'manhattan'
  expected = {'alibi_scale', *(f'block_{i}' for i in range(BLOCKS)), *(('local_encoder',) if scope == 'all' else ())}
  assert set(imported.teacher['encoder']) == expected


GROUP = {
  'lr_float': 2e-4,
  'optimizer': {'_name': 'adam', 'adam_betas': [0.9, 0.98], 'adam_eps': '1e-06', 'weight_decay': 0.01},
  'lr_scheduler': {'_name': 'cosine', 'warmup_updates': 4000},
}


@pytest.mark.parametrize(
  ('group', 'reported'),
  [
    (GROUP, False),
    (GROUP | {'lr_float': '${optimizer.groups.default.lr_float}'}, False),
    (GROUP | {'lr_scheduler': {**GROUP['lr_scheduler'], 'min_lr': 0.0}}, False),  # said, not left out
    (None, False),
    (GROUP | {'lr_float': 1e-4}, True),
    (GROUP | {'optimizer': {**GROUP['optimizer'], 'weight_decay': 0.0}}, True),
  ],
)
def test_an_optimizer_group_for_the_decoder(rewrite, group, reported):
  def change(weights, teacher, cfg):
    cfg['model']['decoder_group'] = True
    if group:
      cfg['optimizer']['groups']['decoder'] = group

  imported = fairseq.import_checkpoint(rewrite(change))
  assert any('decoder_group' in note for note in imported.notes) == reported
  assert imported.config.learning_rate == 2e-4


def test_what_training_would_do_differently_is_reported(rewrite):
  notes = '\n'.join(
    fairseq.import_checkpoint(
      rewrite(settings(**{'task/sample_break_mode': 'complete_doc', 'task/skip_masking': False, 'dataset/max_tokens': 99}))
    ).notes
  )
  for part in ("task.sample_break_mode is 'complete_doc'", 'task.skip_masking is False', 'dataset.max_tokens is 99'):
    assert part in notes


def full_teacher(weights, teacher, cfg):
  for name in list(teacher):
    teacher[f'blocks.{name}'] = teacher.pop(name)


MISFITS = {
  'sinusoidal positions': (in_section(learned_pos=False), ['text.learned_pos', 'False', 'True']),
  'scaled embeddings': (in_section(no_scale_embedding=False), ['text.no_scale_embedding']),
  'no norm of embeddings': (in_section(layernorm_embedding=False), ['text.layernorm_embedding']),
  'no positions': (in_section(no_token_positional_embeddings=True), ['text.no_token_positional_embeddings']),
  'other positions': (in_section(max_source_positions=64), ['max_source_positions', '64', '32']),
  'positions in the decoder': (setting(SECTION + 'decoder.add_positions_all', True), ['decoder.add_positions_all']),
  'another projection': (setting(SECTION + 'decoder.projection_ratio', 3.0), ['projection_ratio', '96', '64']),
  'another depth': (setting('model.depth', 4), ['depth', '4', '3']),
  'another width': (setting('model.embed_dim', 64), ['embed_dim', '64', '32']),
  'embeddings of another width': (
    add(TEXT + 'local_encoder.embed_tokens.weight', np.ones((VOCABULARY, 24))),
    ['embed_tokens.weight', '[40, 24]', '[40, 32]'],
  ),
  'no token embeddings': (drop(TEXT + 'local_encoder.embed_tokens.weight'), ['embed_tokens.weight']),
  'no embedding norm': (drop(TEXT + 'local_encoder.layernorm_embedding.bias'), ['layernorm_embedding.bias']),
  'segments': (add(TEXT + 'local_encoder.embed_segments.weight', np.ones((2, WIDTH))), ['embed_segments.weight']),
  'missing in the teacher': (lambda w, teacher, c: teacher.pop('1.norm1.bias'), ["'1.norm1.bias'"]),
  'a missing block of the teacher': (
    lambda w, teacher, c: [teacher.pop(name) for name in list(teacher) if name.startswith('1.')],
    ["'2."],
  ),
  'a missing last block of the teacher': (
    lambda w, teacher, c: [teacher.pop(name) for name in list(teacher) if name.startswith('2.')],
    ['_ema', 'block_2', 'missing'],
  ),
  'a teacher of another size': (
    lambda w, teacher, c: [
      teacher.update({name: np.concatenate([value, value], axis=axis)})
      for name, value in list(teacher.items())
      for layer, axis in (('fc1.', 0), ('fc2.weight', 1))
      if layer in name
    ],
    ['_ema', 'block_0.mlp.fc1', '(128,)', '(256,)'],
  ),
  'too much in the teacher': (
    lambda weights, teacher, c: teacher.update({TEXT + 'x': weights['blocks.0.norm1.bias']}),
    [TEXT + 'x'],
  ),
  'a teacher of another scope': (full_teacher, ['ema_encoder_only', "'blocks'", "'context'"]),
  'a config of another scope': (setting('model.ema_encoder_only', False), ['ema_encoder_only', "'context'", "'blocks'"]),
}


@pytest.mark.parametrize('misfit', MISFITS)
def test_what_does_not_fit_is_refused(rewrite, misfit):
  change, named = MISFITS[misfit]
  path = rewrite(change)
  with pytest.raises(InputError) as error:
    fairseq.import_checkpoint(path)
  assert '\n' not in str(error.value)
  for part in [str(path), *named]:
    assert part in str(error.value)


# --- fine-tuning


@pytest.fixture
def fine_tuned(content, tmp_path):
  """Writes a model fine-tuned on a task of sentences, changed by a function (of the weights and the config)."""

  def write(change=lambda weights, cfg: None, classes=3, old=False):
    pretrained = json.loads(json.dumps(content['cfg']))
    pretrained['model'] |= {'attention_dropout': 0.11, 'encoder_dropout': 0.12, 'post_mlp_drop': 0.13, 'layerdrop': 0.14}
    pretrained['model']['modalities']['text'] |= {'dropout': 0.15}
    names = [name for name in content['model'] if name != '_ema' and '.decoder.' not in name]
    weights = {f'model.{name}': content['model'][name] for name in names}
    for layer, size in (('dense', WIDTH), ('out_proj', classes)):
      weights |= {f'{HEAD}{layer}.weight': random(size, WIDTH), f'{HEAD}{layer}.bias': random(size)}
    options = New(Name('argparse Namespace'), (), {**pretrained['model'], 'arch': 'data2vec_multi'})
    cfg = {
      'common': {'seed': 3},
      'model': {
        '_name': 'data2vec_text_classification',
        'model_path': '/somewhere',
        'no_pretrained_weights': False,
        'pooler_dropout': 0.0,
        'pooler_activation_fn': 'tanh',
        'quant_noise_pq': 0,
        'quant_noise_pq_block_size': 8,
        'spectral_norm_classification_head': False,
        'pretrained_model_args': options if old else pretrained,
      },
      'task': {'_name': 'sentence_prediction', 'num_classes': classes, 'max_positions': 512},
      'criterion': {'_name': 'sentence_prediction', 'report_mcc': False, 'report_acc_and_f1': True},
      'dataset': {'batch_size': 16, 'max_tokens': None},
      'distributed_training': {'distributed_world_size': 2},
      'optimization': {'lr': [4e-5], 'max_update': 2296, 'max_epoch': 0, 'update_freq': [1], 'clip_norm': 0.0},
      'optimizer': {'_name': 'adam', 'adam_betas': '(0.9,0.98)', 'adam_eps': 1e-6, 'weight_decay': 0.1},
      'lr_scheduler': {'_name': 'polynomial_decay', 'warmup_updates': 137, 'power': 1.0, 'end_learning_rate': 0.0},
    }
    change(weights, cfg)
    count = itertools.count()
    pack = lambda state: {
      name: pack(value) if isinstance(value, dict) else tensor(Storage(str(next(count)), np.array(value)))
      for name, value in state.items()
    }
    return write_zip(tmp_path / 'tuned.pt', {'args': None, 'cfg': cfg, 'model': pack(weights)})

  return write


@pytest.mark.parametrize('old', [False, True])
def test_fine_tuned(fine_tuned, content, old):
  path = fine_tuned(old=old)
  imported = fairseq.import_checkpoint(path)
  assert imported.teacher is None and imported.teacher_account is None
  assert_same(
    imported.params['head'],
    {
      'dense': {'kernel': random(WIDTH, WIDTH).T, 'bias': random(WIDTH)},
      'output': {'kernel': random(3, WIDTH).T, 'bias': random(3)},
    },
  )
  student = {name: value for name, value in content['model'].items() if name != '_ema'}
  assert set(imported.params) == {'encoder', 'head'}
  assert_same(imported.params['encoder'], fairseq.student_params(student)['encoder'])
  state = torch_pickle.read(path)['model']
  assert set(imported.student_account.used) == set(state) and not imported.student_account.unused
  assert_same(fairseq.student_params(state), imported.params)
  config = imported.config
  assert (config.task, config.modality, config.method) == ('sentence', 'text', '')
  pretrained = fairseq.import_checkpoint(CASE / 'checkpoint.pt').config
  for name in set(config.model) - {'dropout', 'layer_drop'}:
    assert config.model[name] == pretrained.model[name], name
  # The rates of the pretraining stay.
  rates = config.model.dropout
  assert (rates.attention, rates.attention_output, rates.mlp_output, rates.embedding) == (0.11, 0.12, 0.13, 0.15)
  assert (rates.entry, rates.activation, config.model.layer_drop) == (0.0, 0.0, 0.14)
  assert (config.sentence.kind, config.sentence.metric) == ('classification', 'accuracy_f1')
  assert (config.schedule.name, config.schedule.warmup_steps, config.total_steps) == ('linear', 137, 2296)
  assert (config.learning_rate, config.seed, config.batch_size) == (4e-5, 3, 32)
  optimizer = config.optimizer
  assert (optimizer.beta2, optimizer.eps, optimizer.weight_decay, optimizer.clip_norm) == (0.98, 1e-6, 0.1, 0.0)
  assert [note for note in imported.notes if re.search('would differ|ignored', note)] == []
  assert fairseq_config.differences(config)[0] == 'finetune/glue_mrpc'
  for part in ('config.data.tokenizer', '3 outputs are in the order'):
    assert any(part in note for note in imported.notes)


def test_fine_tuned_config_is_valid(fine_tuned):
  for classes in (1, 2):
    path = fine_tuned(
      lambda weights, cfg: weights.update({'model.' + TEXT + 'local_encoder.embed_tokens.weight': random(300, WIDTH)}),
      classes=classes,
    )
    validate(fairseq.import_checkpoint(path).config)


def test_fine_tuned_to_give_a_number(fine_tuned):
  imported = fairseq.import_checkpoint(fine_tuned(classes=1))
  assert imported.params['head']['output']['kernel'].shape == (WIDTH, 1)
  assert (imported.config.sentence.kind, imported.config.sentence.metric) == ('regression', 'pearson_spearman')
  assert not any('labels' in note for note in imported.notes)


@pytest.mark.parametrize('teacher', ['model._ema', '_ema'])
def test_fine_tuned_with_what_pretraining_left(fine_tuned, content, teacher):
  def change(weights, cfg):
    weights |= {f'model.{name}': value for name, value in content['model'].items() if '.decoder.' in name}
    weights[teacher] = content['model']['_ema']
    for name in [name for name in weights if name.startswith(HEAD)]:
      weights[name.replace('sentence_classification_head', 'mrpc')] = weights.pop(name)
    cfg['model'] |= {'pooler_dropout': 0.1, 'surprise': 1}
    cfg['criterion'] |= {'report_mcc': True, 'report_acc_and_f1': False}
    cfg['optimization']['max_epoch'] = 10
    cfg['dataset']['max_tokens'] = 4400
    cfg['lr_scheduler']['power'] = 2.0

  imported = fairseq.import_checkpoint(fine_tuned(change))
  assert set(imported.params) == {'encoder', 'head'} and imported.teacher is None
  unused = imported.student_account.unused
  assert {name for name in unused if '.decoder.' in name} == set(unused)
  assert len(unused) == sum('.decoder.' in name for name in content['model']) > 0
  assert imported.config.sentence.metric == 'matthews'
  notes = '\n'.join(imported.notes)
  for part in (
    *('left over', 'model.pooler_dropout is 0.1', 'model.surprise = 1', 'optimization.max_epoch is 10'),
    *('dataset.max_tokens is 4400', 'lr_scheduler.power is 2.0'),
  ):
    assert part in notes


def of_model(**values):
  return lambda weights, cfg: cfg['model'].update(values)


def of_pretraining(**values):
  return lambda weights, cfg: cfg['model']['pretrained_model_args']['model'].update(values)


def another_head(weights, cfg):
  weights[HEAD.replace('sentence', 'other') + 'dense.weight'] = random(WIDTH, WIDTH)


def not_tuned(weights, cfg):
  for name in list(weights):
    value = weights.pop(name)
    if name.startswith('model.'):
      weights[name.removeprefix('model.')] = value


FINE_TUNED_MISFITS = {
  'a model of version 1': (of_model(_name='data2vec_text'), ["'data2vec_text'", 'data2vec_text_classification']),
  'a name that is none': (of_model(_name=['a']), ["['a']"]),
  'another model inside': (of_pretraining(_name='roberta'), ['model.pretrained_model_args', 'roberta']),
  'nothing inside': (of_model(pretrained_model_args=None), ['model.pretrained_model_args', 'None']),
  'another network inside': (of_pretraining(layer_norm_first=True), ['model.pretrained_model_args.model.layer_norm_first']),
  'another depth inside': (of_pretraining(depth=2), ['depth', '2', '3']),
  'no heads inside': (of_pretraining(num_heads=None), ['model.pretrained_model_args.model.num_heads']),
  'another activation': (of_model(pooler_activation_fn='relu'), ['model.pooler_activation_fn', 'relu', 'tanh']),
  'a normalised head': (of_model(spectral_norm_classification_head=True), ['spectral_norm_classification_head']),
  'two heads': (another_head, ['sentence_classification_head', 'other_classification_head']),
  'half a head': (lambda weights, cfg: weights.pop(HEAD + 'dense.bias'), [HEAD + 'dense.bias']),
  'a head of another width': (
    lambda weights, cfg: weights.update({HEAD + 'out_proj.weight': random(3, WIDTH + 1)}),
    [HEAD + 'out_proj.weight', '33'],
  ),
  'no head': (lambda weights, cfg: [weights.pop(name) for name in list(weights) if name.startswith(HEAD)], ['fine-tuned']),
  'a config of fine-tuning only': (not_tuned, ['data2vec_text_classification']),
  'a config of pretraining only': (
    lambda weights, cfg: cfg.update(cfg['model']['pretrained_model_args']),
    ['data2vec_multi'],
  ),
}


@pytest.mark.parametrize('misfit', FINE_TUNED_MISFITS)
def test_fine_tuned_that_does_not_fit_is_refused(fine_tuned, misfit):
  change, named = FINE_TUNED_MISFITS[misfit]
  path = fine_tuned(change)
  with pytest.raises(InputError) as error:
    fairseq.import_checkpoint(path)
  assert '\n' not in str(error.value)
  for part in [str(path), *named]:
    assert part in str(error.value)


def test_conversion(fine_tuned, tmp_path, capsys):
  for source in (CASE / 'checkpoint.pt', fine_tuned()):
    imported = fairseq.import_checkpoint(source)
    output = tmp_path / source.stem
    convert.convert(source, output)
    printed = capsys.readouterr().out
    assert f'student: {len(imported.student_account.used)} tensors' in printed
    assert 'local_encoder.embed_tokens.weight -> encoder/local_encoder/token_embedding' in printed
    params, teacher, config = manager.load_weights(output)
    assert_same(params, imported.params)
    assert_same(teacher, imported.teacher)
    assert to_dict(config) == to_dict(imported.config)
  assert f'{HEAD}out_proj.weight -> head/output/kernel' in printed
