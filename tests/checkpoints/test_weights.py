"""`init_from`: weights of ours and of the reference, or a line that says why not."""

from pathlib import Path

import jax
import numpy as np
import pytest

from d2v_jax.checkpoints import fairseq, manager, weights
from d2v_jax.data.tokenizer import train_tokenizer
from d2v_jax.errors import InputError
from d2v_jax.methods.ctc import Ctc
from d2v_jax.methods.data2vec2 import Data2vec2
from d2v_jax.methods.sentence import SentencePrediction
from d2v_jax.train.workdir import open_workdir
from tests.train.tiny import get_config, random_params, speech_config, text_config

RELEASED = Path(__file__).parents[1] / 'golden' / 'd2v2_image' / 'checkpoint.pt'


@pytest.fixture
def ours(tmp_path):
  method = Data2vec2(get_config())
  params, teacher = random_params(method, 0), {'encoder': random_params(method, 1)['encoder']}
  manager.save_weights(tmp_path / 'with_teacher', params, teacher, get_config())
  return tmp_path, params, teacher


def assert_same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_ours(ours):
  folder, params, teacher = ours
  found = weights.matching(folder / 'with_teacher', *jax.eval_shape(lambda *trees: trees, params, teacher))
  assert_same(found, (params, teacher))


def test_without_a_teacher_the_student_is_it(ours, tmp_path):
  _, params, teacher = ours
  manager.save_weights(tmp_path / 'alone', params, None, get_config())
  found, found_teacher = weights.matching(tmp_path / 'alone', params, teacher)
  assert_same(found_teacher, {'encoder': params['encoder']})
  # Student and teacher are donated together, so they must not share memory.
  ours, theirs = jax.tree.leaves(found['encoder']), jax.tree.leaves(found_teacher)
  assert not {leaf.unsafe_buffer_pointer() for leaf in ours} & {leaf.unsafe_buffer_pointer() for leaf in theirs}


def test_a_file_of_the_reference():
  imported = fairseq.import_checkpoint(RELEASED)
  method = Data2vec2(imported.config)
  params = jax.eval_shape(method.init, jax.random.key(0))
  found = weights.matching(RELEASED, params, jax.eval_shape(method.init_teacher, params))
  assert_same(found, (imported.params, imported.teacher))


def test_weights_of_another_model_are_refused_by_array_and_shapes(ours):
  folder, params, teacher = ours
  config = get_config()
  config.model.depth = 3
  deeper = jax.eval_shape(Data2vec2(config).init, jax.random.key(0))
  with pytest.raises(InputError, match=r'with_teacher: encoder/block_2/.* is missing there, \(.*\) in this config; use the'):
    weights.matching(folder / 'with_teacher', deeper, teacher)
  config.model.update(depth=2, embed_dim=32)
  wider = jax.eval_shape(Data2vec2(config).init, jax.random.key(0))
  with pytest.raises(InputError, match=r'decoder/conv_0/kernel is \(3, 3, 8, 16\) there, \(3, 3, 16, 16\) in this'):
    weights.matching(folder / 'with_teacher', wider, teacher)
  del params['decoder']['projection']
  with pytest.raises(InputError, match=r'decoder/projection/bias is \(16,\) there, not used in this config'):
    weights.matching(folder / 'with_teacher', params, teacher)


# --- from one task to another


@pytest.fixture
def speech(tmp_path):
  """Weights of a pretrained model whose network is no default in any way; returns their place, parameters and config."""
  config = speech_config()
  config.model.update(depth=1, alibi_per_layer=True, layer_drop=0.3, conv_layers=((8, 10, 5), (8, 3, 2)))
  config.model.conv_positions.layers = 1
  config.model.dropout.attention = 0.4
  config.data2vec2.average_top_k = 1
  method = Data2vec2(config)
  params = random_params(method, 0)
  manager.save_weights(tmp_path / 'pretrained', params, method.init_teacher(params), config)
  return tmp_path / 'pretrained', params, config


def shapes_of(objective):
  params = jax.eval_shape(objective.init, jax.random.key(0))
  return params, jax.eval_shape(objective.init_teacher, params)


def fine_tuning(place='', **fields):
  config = speech_config('ctc')
  config.init_from = str(place)
  config.update_from_flattened_dict(fields)
  return config


def test_fine_tuning_takes_the_network_of_its_weights_and_nothing_else(speech, tmp_path):
  place, _, pretrained = speech
  config = fine_tuning(place)
  found = weights.with_network(config, tmp_path / 'run')
  for name in ('depth', 'alibi_per_layer', 'conv_layers', 'embed_dim'):
    assert found.model[name] == pretrained.model[name], name
  assert found.model.conv_positions.layers == 1 and isinstance(found.model.conv_layers[0], tuple)
  assert found.model.layer_drop == 0.0 and found.model.dropout.attention == 0.0  # these are of the recipe
  assert found.is_locked
  unchanged = {**found.to_dict(), 'model': None}
  assert unchanged == {**config.to_dict(), 'model': None}
  assert config.model.depth == 2  # the config given stays


def test_where_the_network_of_a_fine_tuning_comes_from(speech, tmp_path):
  """--checkpoint, then the workdir, then config.init_from; without any it is the config's own."""
  place, _, _ = speech
  assert weights.with_network(fine_tuning(), tmp_path / 'run') == fine_tuning()
  assert weights.with_network(fine_tuning('nowhere'), tmp_path / 'run', place).model.depth == 1
  own = fine_tuning('nowhere', **{'model.depth': 5})
  open_workdir(tmp_path / 'run', own)
  assert weights.with_network(fine_tuning(place), tmp_path / 'run').model.depth == 5
  assert weights.with_network(own, tmp_path / 'run', place).model.depth == 1
  pretraining = get_config()
  pretraining.init_from = str(place)
  assert weights.with_network(pretraining, tmp_path / 'other') == pretraining


def test_fine_tuning_does_not_start_from_images(tmp_path):
  manager.save_weights(tmp_path / 'images', random_params(Data2vec2(get_config()), 0), None, get_config())
  with pytest.raises(InputError, match=r'images: is a model of image, config\.modality is audio'):
    weights.with_network(fine_tuning(tmp_path / 'images'), tmp_path / 'run')


def test_the_head_is_new_and_the_decoder_is_left_behind(speech, tmp_path):
  place, params, _ = speech
  objective = Ctc(weights.with_network(fine_tuning(place), tmp_path / 'run'))
  found, teacher = weights.matching(place, *shapes_of(objective))
  assert teacher == {}
  assert_same(found, {'encoder': params['encoder']})
  with pytest.raises(InputError, match=r'pretrained: has no head, which this task needs'):
    weights.matching(place, *shapes_of(objective), complete=True)


def test_weights_of_a_fine_tuned_model_are_complete(speech, tmp_path):
  place, params, _ = speech
  config = weights.with_network(fine_tuning(place), tmp_path / 'run')
  tuned = random_params(Ctc(config), 3)
  manager.save_weights(tmp_path / 'tuned', tuned, None, config)
  found, _ = weights.matching(tmp_path / 'tuned', *shapes_of(Ctc(config)), complete=True)
  assert_same(found, tuned)
  del tuned['encoder']['norm']
  with pytest.raises(InputError, match=r'tuned: encoder/norm/.* is \(16,\) there, not used'):
    params, teacher = shapes_of(Ctc(config))
    del params['encoder']['norm']
    weights.matching(tmp_path / 'tuned', params, teacher)


def test_a_teacher_that_shares_the_local_encoder_is_made_without_it(speech, tmp_path):
  _, params, config = speech
  manager.save_weights(tmp_path / 'alone', params, None, config)
  _, teacher = weights.matching(tmp_path / 'alone', *shapes_of(Data2vec2(config)))
  assert_same(teacher, Data2vec2(config).init_teacher(params))
  assert 'local_encoder' not in teacher['encoder']


# --- text


@pytest.fixture(scope='module')
def tokenizer():
  return train_tokenizer(['the old dog loves the old house', 'a quiet river, a green garden'] * 3, 280)


@pytest.fixture
def text(tmp_path, tokenizer):
  """Weights of a pretrained text model of 280 entries; returns their place, parameters and config."""
  config = text_config()
  config.model.update(vocab_size=280, max_positions=40)
  params = random_params(Data2vec2(config), 0)
  teacher = Data2vec2(config).init_teacher(random_params(Data2vec2(config), 1))
  assets = {'tokenizer': tokenizer.to_text(), 'labels': ['a', 'b']}
  manager.save_weights(tmp_path / 'text', params, teacher, config, assets)
  return tmp_path / 'text', params, config


def test_the_tokenizer_of_a_checkpoint(text, tokenizer, tmp_path):
  place, _, _ = text
  for below in (place, place / '0'):
    found = weights.read_tokenizer(below)
    assert found.size == 280 and found.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(found.encode('the green house'), tokenizer.encode('the green house'))
  found, assets = weights.read_meta(place)
  assert found.model.vocab_size == 280 and assets.keys() == {'tokenizer', 'labels'} and assets['labels'] == ['a', 'b']
  manager.save_weights(tmp_path / 'images', random_params(Data2vec2(get_config()), 0), None, get_config())
  with pytest.raises(InputError, match=r'images: is a model of image, without tokenizer; give a text model of ours'):
    weights.read_tokenizer(tmp_path / 'images')


def test_the_tokenizer_of_a_file_or_folder(tokenizer, tmp_path):
  (tmp_path / 'tokenizer.json').write_text(tokenizer.to_text())
  for place in (tmp_path, tmp_path / 'tokenizer.json'):
    assert weights.read_tokenizer(place).fingerprint == tokenizer.fingerprint
  with pytest.raises(InputError, match='nowhere'):
    weights.read_tokenizer(tmp_path / 'nowhere')


def other_tokenizer(folder):
  """Writes a tokenizer.json of as many entries that are others."""
  (folder / 'tokenizer.json').write_text(train_tokenizer(['winter walks by the sea'] * 5, 280).to_text())
  return folder


def test_the_tokenizer_of_a_run_is_that_of_the_weights_it_starts_from(text, tokenizer, tmp_path):
  place, _, _ = text
  for task in ('pretrain', 'sentence'):
    config = text_config(task)
    assert weights.tokenizer_of(config) is None
    config.init_from = str(place)
    assert weights.tokenizer_of(config).fingerprint == tokenizer.fingerprint
    config.data.tokenizer = str(place)
    assert weights.tokenizer_of(config).fingerprint == tokenizer.fingerprint
    config.data.tokenizer = str(other_tokenizer(tmp_path))
    with pytest.raises(
      InputError, match=rf'^config\.data\.tokenizer: {tmp_path} is another tokenizer than that of .*{place}'
    ):
      weights.tokenizer_of(config)
    config.init_from = ''
    assert weights.tokenizer_of(config).fingerprint != tokenizer.fingerprint
    config.data.tokenizer = 'nowhere'
    with pytest.raises(InputError, match=r'^config\.data\.tokenizer: nowhere'):
      weights.tokenizer_of(config)


def test_weights_without_a_tokenizer_take_that_of_the_config(text, tmp_path):
  """Those of the reference once they are converted."""
  _, params, pretrained = text
  manager.save_weights(tmp_path / 'converted', params, None, pretrained)
  config = text_config('sentence')
  config.init_from = str(tmp_path / 'converted')
  config.data.tokenizer = str(other_tokenizer(tmp_path))
  assert weights.tokenizer_of(config).size == 280
  config.data.tokenizer = ''
  with pytest.raises(InputError, match='converted'):
    weights.tokenizer_of(config)


def test_text_goes_on_with_the_tokenizer_and_the_classes_of_its_own_weights(text, tmp_path):
  place, _, _ = text
  config = text_config('sentence')
  found = weights.with_assets(config, tmp_path / 'run', place)
  assert found.data.tokenizer == str(place) and found.sentence.labels == ('a', 'b')
  assert config.data.tokenizer == '' and config.sentence.labels == ()  # the config given stays
  config.sentence.labels = ('b', 'a')
  with pytest.raises(InputError, match=r"^config\.sentence\.labels: found \('b', 'a'\); those of .* are \('a', 'b'\)"):
    weights.with_assets(config, tmp_path / 'run', place)
  config = text_config()
  config.data.tokenizer = str(other_tokenizer(tmp_path))
  with pytest.raises(InputError, match=rf'is another tokenizer than that of {place}'):
    weights.with_assets(config, tmp_path / 'run', place)
  # Weights it only starts from have their classes to themselves.
  config = text_config('sentence')
  config.init_from = str(place)
  assert weights.with_assets(config, tmp_path / 'run').sentence.labels == ()
  config.init_from = str(tmp_path / 'nowhere')
  with pytest.raises(InputError, match=r'^config\.init_from: .*nowhere does not exist'):
    weights.with_network(config, tmp_path / 'run')


def test_a_head_of_other_classes_is_left_behind(text, tmp_path):
  place, _, _ = text
  config = text_config('sentence')
  config.init_from = str(place)
  config = weights.with_network(config, tmp_path / 'run')
  tuned = random_params(SentencePrediction(config, 3), 5)
  manager.save_weights(tmp_path / 'tuned', tuned, None, config, {'labels': ['a', 'b', 'c']})
  same, _ = weights.matching(tmp_path / 'tuned', *shapes_of(SentencePrediction(config, 3)), labels=['a', 'b', 'c'])
  assert_same(same, tuned)
  for count, labels in ((2, ['a', 'b']), (3, ['b', 'a', 'c'])):
    other, _ = weights.matching(tmp_path / 'tuned', *shapes_of(SentencePrediction(config, count)), labels=labels)
    assert_same(other, {'encoder': tuned['encoder']})
  with pytest.raises(InputError, match=r'tuned: head/output/bias is \(3,\) there, \(2,\) in this config'):
    weights.matching(tmp_path / 'tuned', *shapes_of(SentencePrediction(config, 2)), complete=True)


def test_what_belongs_to_weights_of_the_reference_is_their_config(tmp_path):
  config, assets = weights.read_meta(RELEASED)
  assert config.modality == 'image' and assets == {}


def test_another_vocabulary_is_refused_with_the_reason(text):
  place, _, config = text
  config.model.vocab_size = 300
  objective = Data2vec2(config)
  with pytest.raises(InputError) as caught:
    weights.matching(place, *shapes_of(objective))
  assert str(caught.value).startswith(
    f'{place}: its vocabulary has 280 entries, config.model.vocab_size is 300; embeddings of another vocabulary mean nothing'
  )
  assert '\n' not in str(caught.value)
  # Another number of positions is another array like any other.
  config.model.update(vocab_size=280, max_positions=41)
  with pytest.raises(InputError, match=r'encoder/local_encoder/position_embedding is \(42, 16\) there, \(43, 16\) in this'):
    weights.matching(place, *shapes_of(Data2vec2(config)))


def test_sentences_take_the_network_and_not_the_recipe_of_their_weights(text, tmp_path):
  place, params, _ = text
  config = text_config('sentence')
  config.init_from = str(place)
  config.model.dropout.embedding = 0.25
  found = weights.with_network(config, tmp_path / 'run')
  assert (found.model.vocab_size, found.model.max_positions) == (280, 40) and found.model.dropout.embedding == 0.25
  objective = SentencePrediction(found, 3)
  started, teacher = weights.matching(place, *shapes_of(objective))
  assert teacher == {}
  assert_same(started, {'encoder': params['encoder']})


def test_a_teacher_of_blocks_is_read_and_made_of_blocks(text, tmp_path):
  place, params, config = text
  method = Data2vec2(config)
  _, teacher = weights.matching(place, *shapes_of(method))
  assert_same(teacher, method.init_teacher(random_params(method, 1)))
  manager.save_weights(tmp_path / 'alone', params, None, config)
  _, teacher = weights.matching(tmp_path / 'alone', *shapes_of(method))
  assert teacher['encoder'].keys() == {'block_0', 'block_1'}
  assert_same(teacher, method.init_teacher(params))


def test_nothing_there(tmp_path):
  for path in (tmp_path / 'nowhere', tmp_path):
    with pytest.raises(InputError, match=str(path)):
      weights.read(path)
