"""The reference's checkpoints: every tensor arrives where it belongs, and what does not fit is refused by name."""

import functools
import itertools
import json
import os
import pathlib
import textwrap

import jax
import numpy as np
import pytest

from d2v_jax.checkpoints import fairseq, fairseq_config, torch_pickle
from d2v_jax.errors import InputError
from tests.weights.handmade_pickles import Name, New, Storage, tensor, write_zip

GOLDEN = pathlib.Path(os.environ.get('D2V_GOLDEN_DIR') or pathlib.Path(__file__).parents[1] / 'golden')
CASES = sorted(path.parent for path in GOLDEN.glob('d2v2_image*/checkpoint_expected.npz'))
FORMS = ('checkpoint.pt', 'checkpoint_fp16_dictcfg.pt', 'checkpoint_namespace.pt')
IMAGE = 'modality_encoders.IMAGE.'


@pytest.fixture(params=CASES, ids=lambda path: path.name)
def case(request):
  return request.param


@pytest.fixture(scope='module')
def content():
  """The golden checkpoint as it was read."""
  return torch_pickle.read(GOLDEN / 'd2v2_image' / 'checkpoint_fp16_dictcfg.pt')


@pytest.fixture
def rewrite(content, tmp_path):
  """Writes the golden checkpoint again, changed by a function (of the weights, the teacher's and the config)."""

  return functools.partial(write_changed, tmp_path / 'changed.pt', content)


def write_changed(path, content, change=lambda weights, teacher, cfg: None):
  """Writes a checkpoint that was read, changed in place; what is no array in the weights or the teacher's goes as it is."""
  weights, cfg = dict(content['model']), json.loads(json.dumps(content['cfg']))
  teacher = dict(weights.pop('_ema'))
  change(weights, teacher, cfg)
  count = itertools.count()
  pack = lambda state: {
    name: tensor(Storage(str(next(count)), np.array(value))) if isinstance(value, np.ndarray) else value
    for name, value in state.items()
  }
  return write_zip(path, {'model': pack(weights) | ({'_ema': pack(teacher)} if teacher else {}), 'cfg': cfg})


def golden_state(case, which):
  with np.load(case / 'checkpoint_expected.npz') as expected:
    return {name.partition('/')[2]: expected[name] for name in expected if name.startswith(which + '/')}


def assert_same(found, expected, atol=0.0):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), found, expected)


@pytest.mark.parametrize('form', FORMS)
def test_all_forms_hold_the_expected_weights(case, form):
  imported = fairseq.import_checkpoint(case / form)
  student = golden_state(case, 'student')
  if 'fp16' in form:
    student = {name: value.astype(np.float16) for name, value in student.items()}
  assert_same(imported.params, fairseq.student_params(student))
  assert_same(imported.teacher, fairseq.teacher_params(golden_state(case, 'teacher')))
  assert {leaf.dtype for leaf in jax.tree.leaves((imported.params, imported.teacher))} == {np.dtype(np.float32)}
  assert 'decoder' in imported.params
  assert set(imported.teacher) == {'encoder'}


def test_every_tensor_is_accounted_for(case):
  imported = fairseq.import_checkpoint(case / 'checkpoint.pt')
  for which, account, params in (
    ('student', imported.student_account, imported.params),
    ('teacher', imported.teacher_account, imported.teacher),
  ):
    state = golden_state(case, which)
    assert set(account.used) | set(account.unused) == set(state)
    assert set(account.unused) == {IMAGE + 'fixed_positional_encoder.positions'}
    arrays = [path for paths in account.used.values() for path in paths]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert sorted(arrays) == sorted(jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves)
    assert account.parameters == sum(leaf.size for _, leaf in leaves) == sum(state[name].size for name in account.used)


def test_layouts():
  """Each rule by an independent formula: what the layer computes, not how its weights are moved about."""
  state = golden_state(GOLDEN / 'd2v2_image', 'student')
  params = fairseq.student_params(state)
  random = np.random.default_rng(0)
  width = 48
  x = random.normal(size=(5, width)).astype(np.float32)
  qkv = x @ state['blocks.1.attn.qkv.weight'].T + state['blocks.1.attn.qkv.bias']
  for i, part in enumerate(('query', 'key', 'value')):
    layer = params['encoder']['block_1']['attention'][part]
    np.testing.assert_allclose(x @ layer['kernel'] + layer['bias'], qkv[:, i * width : (i + 1) * width], atol=1e-5)
  layer = params['encoder']['prenet_0']['mlp']['fc2']
  hidden = random.normal(size=(5, 4 * width)).astype(np.float32)
  name = IMAGE + 'context_encoder.blocks.0.mlp.fc2'
  np.testing.assert_allclose(
    hidden @ layer['kernel'] + layer['bias'], hidden @ state[name + '.weight'].T + state[name + '.bias'], atol=1e-5
  )
  # A patch projection reads a patch as (row, column, channel); the reference's as (channel, row, column).
  patch = random.normal(size=(8, 8, 3)).astype(np.float32)
  layer = params['encoder']['local_encoder']['projection']
  expected = np.einsum('hwc,dchw->d', patch, state[IMAGE + 'local_encoder.proj.weight'])
  np.testing.assert_allclose(patch.reshape(-1) @ layer['kernel'], expected, atol=1e-4)
  kernel = state[IMAGE + 'decoder.blocks.1.0.weight']
  np.testing.assert_array_equal(params['decoder']['conv_1']['kernel'][2, 0, 5, 7], kernel[7, 5, 2, 0])
  np.testing.assert_array_equal(params['encoder']['extra_tokens'], state[IMAGE + 'extra_tokens'][0])


def test_gradients_map_like_weights():
  with np.load(GOLDEN / 'd2v2_image' / 'grads.npz') as grads:
    assert_same(
      jax.tree.map(np.shape, fairseq.student_params(dict(grads))),
      jax.tree.map(np.shape, fairseq.student_params(golden_state(GOLDEN / 'd2v2_image', 'student'))),
    )


def test_names_of_early_versions(rewrite):
  def change(weights, teacher, cfg):
    for state in (weights, teacher):
      state[IMAGE + 'positional_encoder.pos_embed'] = state.pop(IMAGE + 'fixed_positional_encoder.positions')
      state[IMAGE + 'encoder_mask'] = np.ones((1, 1, 48), np.float32)
      state[IMAGE + 'alibi_bias'] = np.ones((4, 16, 16), np.float32)
      state[IMAGE + 'alibi_scale'] = np.ones((1, 1, 1, 1), np.float32)

  imported = fairseq.import_checkpoint(rewrite(change))
  assert_same(imported.params, fairseq.import_checkpoint(rewrite()).params)
  unused = imported.student_account.unused
  assert {name.removeprefix(IMAGE) for name in unused} == {
    'fixed_positional_encoder.positions',
    'encoder_mask',
    'alibi_bias',
    'alibi_scale',
  }
  assert all(unused.values())


def rename(weights, teacher, cfg):
  weights['blocks.1.mlp.fc1.weights'] = weights.pop('blocks.1.mlp.fc1.weight')


def reshape(weights, teacher, cfg):
  weights['blocks.1.mlp.fc1.weight'] = weights['blocks.1.mlp.fc1.weight'].T


def drop_block(weights, teacher, cfg):
  for name in [name for name in weights if name.startswith('blocks.2.')]:
    del weights[name]


def drop_middle_block(weights, teacher, cfg):
  for name in [name for name in weights if name.startswith('blocks.1.')]:
    del weights[name]


def move_positions(weights, teacher, cfg):
  weights[IMAGE + 'fixed_positional_encoder.positions'] = weights[IMAGE + 'fixed_positional_encoder.positions'][:, ::-1]


def fine_tune(weights, teacher, cfg):
  for name in list(weights):
    weights['model.' + name] = weights.pop(name)
  weights['head.weight'] = np.ones((10, 48), np.float32)


def setting(name, value):
  def change(weights, teacher, cfg):
    *sections, leaf = name.split('.')
    for section in sections:
      cfg = cfg[section]
    cfg[leaf] = value

  return change


def add(name, value):
  return lambda weights, teacher, cfg: weights.update({name: value.astype(np.float32)})


def drop(name):
  return lambda weights, teacher, cfg: weights.pop(name)


MISFITS = {
  'renamed tensor': (rename, ['blocks.1.mlp.fc1.weights', 'blocks.1.mlp.fc1.weight']),
  'missing tensor': (drop('blocks.0.norm1.bias'), ['blocks.0.norm1.bias']),
  'missing patch projection': (drop(IMAGE + 'local_encoder.proj.weight'), ['local_encoder.proj.weight']),
  'missing in the teacher': (lambda w, t, c: t.pop('blocks.0.norm1.bias'), ['blocks.0.norm1.bias']),
  'extra tensor': (add('extra', np.ones(3)), ["'extra'"]),
  'wrong shape': (reshape, ['blocks.1.mlp.fc1.weight', '[48, 192]', '[192, 48]']),
  'missing last block': (drop_block, ['depth gives 3', 'say 2']),
  'missing middle block': (drop_middle_block, ['blocks.2']),
  'part of a decoder': (drop(IMAGE + 'decoder.proj.bias'), ['decoder.proj.bias']),
  'other positions': (move_positions, ['positions']),
  'fine-tuned': (fine_tune, ['fine-tuned']),
  'two modalities': (add('modality_encoders.AUDIO.x', np.ones(1)), ['audio, image']),
  'learned ALiBi scale': (add(IMAGE + 'alibi_scale', np.arange(4).reshape(1, 1, 4, 1, 1)), ['alibi_scale']),
  'pre-norm': (setting('model.layer_norm_first', True), ['model.layer_norm_first', 'True', 'False']),
  'other positions by config': (setting('model.modalities.image.fixed_positions', False), ['fixed_positions']),
  'no heads': (setting('model.num_heads', None), ['model.num_heads']),
  'heads that do not divide': (setting('model.num_heads', 5), ['num_heads']),
  'nonsense': (setting('model.norm_eps', 'small'), ['model.norm_eps', 'small']),
  'another width': (setting('model.embed_dim', 64), ['embed_dim', '64', '48']),
  'another image size': (setting('model.modalities.image.input_size', 64), ['input_size', '64', '16']),
  'another kernel': (setting('model.modalities.image.decoder.decoder_kernel', 5), ['decoder_kernel', '5', '3']),
  'another model': (setting('model._name', 'data2vec_audio'), ['data2vec_audio']),
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


def test_files_of_other_models(tmp_path):
  for model in ({}, {'encoder.layers.0.fc1.weight': tensor(Storage('0', np.ones((2, 2), np.float32)))}, {'x': 3}, None):
    for config in (
      {'cfg': {'model': {'_name': 'data2vec_multi'}}},
      {'args': New(Name('argparse Namespace'), (), {'arch': 'x'})},
      {},
    ):
      path = write_zip(tmp_path / 'c.pt', {'model': model, **config})
      with pytest.raises(InputError) as error:
        fairseq.import_checkpoint(path)
      assert '\n' not in str(error.value)


def test_without_teacher_and_decoder(rewrite):
  def change(weights, teacher, cfg):
    for name in [name for name in weights if '.decoder.' in name]:
      del weights[name]

  path = rewrite(change)
  content = torch_pickle.read(path)
  del content['model']['_ema']
  count = iter(range(1000))
  model = {name: tensor(Storage(str(next(count)), value)) for name, value in content['model'].items()}
  imported = fairseq.import_checkpoint(write_zip(path, {'model': model, 'cfg': content['cfg']}))
  assert imported.teacher is None
  assert set(imported.params) == {'encoder'}
  assert any('decoder' in note for note in imported.notes)
  assert any('teacher' in note for note in imported.notes)


def test_config_is_read_whole(case):
  model = json.loads((case / 'config.json').read_text())['model']
  image = model['modalities']['image']
  config = fairseq.import_checkpoint(case / 'checkpoint.pt').config
  assert config.model.depth == model['depth']
  assert config.model.num_heads == model['num_heads']
  assert config.model.prenet_depth == image['prenet_depth']
  assert config.data.image_size == image['input_size']
  assert config.mask.adjust == image['mask_prob_adjust']
  assert config.data2vec2.masks_per_example == model['clone_batch']
  assert config.data2vec2.ema_end_decay == model['ema_end_decay']
  assert config.decoder.groups == image['decoder']['decoder_groups']
  if case.name == 'd2v2_image':
    assert config.data2vec2.target_layer_norms == ('instance',)
    assert config.data2vec2.target_norms == ('layer',)
    # Of the optimizer's default group: the recipe's, not the tiny run's.
    assert (config.learning_rate, config.schedule.warmup_steps, config.optimizer.beta2) == (1e-3, 50_040, 0.95)
    assert (config.batch_size, config.data2vec2.cls_loss_examples) == (256, 16)
    assert fairseq.import_checkpoint(case / 'checkpoint_namespace.pt').config.learning_rate == 2e-3


@pytest.mark.parametrize('modality', ['image', 'audio', 'text'])
def test_every_field_of_the_reference_has_a_place(modality):
  """No field of a model's config is passed over in silence, and none is read in two ways."""
  model = json.loads((GOLDEN / f'd2v2_{modality}' / 'config.json').read_text())['model']
  table = fairseq_config.TABLES[modality, 'pretrain']
  fields = {f'model.{name}' for name in fairseq_config.flatten(model) if not name.endswith('_name')}
  others = {'image', 'audio', 'text'} - {modality}
  assert not {name for name in fields - table.known if not any(f'modalities.{other}.' in name for other in others)}
  ignored = [set(part) for part in (table.network, table.training, table.irrelevant)]
  read = {name for field in table.fields.values() for name in field.names}
  for one, other in itertools.combinations([read, *ignored], 2):
    assert not one & other


def test_what_training_would_do_differently_is_reported(rewrite):
  def change(weights, teacher, cfg):
    setting('model.end_drop_path_rate', 0.1)(weights, teacher, cfg)
    setting('model.encoder_dropout', 0.2)(weights, teacher, cfg)
    setting('model.modalities.image.surprise', 7)(weights, teacher, cfg)

  imported = fairseq.import_checkpoint(rewrite(change))
  notes = '\n'.join(imported.notes)
  assert 'model.end_drop_path_rate is 0.1' in notes
  assert 'model.modalities.image.surprise = 7' in notes
  assert 'encoder_dropout' not in notes
  assert imported.config.model.dropout.attention_output == 0.2


def test_references_between_fields_are_followed(rewrite):
  config = fairseq.import_checkpoint(
    rewrite(setting('dataset.batch_size', '${distributed_training.distributed_world_size}'))
  ).config
  assert config.data2vec2.cls_loss_examples == 16


def test_what_an_optimizer_group_leaves_out(rewrite):
  def change(weights, teacher, cfg):
    del cfg['optimizer']['groups']['default']['optimizer']['adam_betas']

  imported = fairseq.import_checkpoint(rewrite(change))
  assert imported.config.optimizer.beta2 == 0.999  # the reference's own default
  assert not any('optimizer.' in note for note in imported.notes)


def test_nearest_recipe(monkeypatch, tmp_path):
  imported = fairseq.import_checkpoint(GOLDEN / 'd2v2_image' / 'checkpoint.pt')
  monkeypatch.setattr(fairseq_config, 'RECIPES', tmp_path)
  assert fairseq_config.differences(imported.config) is None
  for name, depth, patch in (('image_base', 10, 16), ('image_large', 24, 8), ('image_huge', 3, 8)):
    (tmp_path / f'{name}.py').write_text(
      textwrap.dedent(f"""
        from d2v_jax.config import default_config
        def get_config():
          config = default_config()
          config.update_from_flattened_dict({{'model.depth': {depth}, 'model.patch_size': {patch}}})
          return config
      """)
    )
  name, fields = fairseq_config.differences(imported.config)
  assert name == 'image_huge'
  assert fields['model.embed_dim'] == (48, 768)
  assert 'model.depth' not in fields
  assert 'log_every' not in fields
