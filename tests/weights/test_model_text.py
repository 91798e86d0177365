"""A model of text through the public door: features, where tokens are in the text, labels, and what is refused."""

import functools

import jax
import numpy as np
import pytest

import d2v_jax
from d2v_jax.checkpoints import manager
from d2v_jax.data.tokenizer import BOS, EOS, PAD, UNK, framed, train_tokenizer
from d2v_jax.errors import InputError
from d2v_jax.methods.data2vec2 import Data2vec2
from d2v_jax.methods.sentence import SentencePrediction
from d2v_jax.model import Model
from tests.train import tiny
from tests.weights.test_fairseq import GOLDEN

TEXTS = ('the river', 'É 👍🏽 漢字 the rain', '  a dog \t', '', 'my old teacher loves the sea')
SECONDS = ('every dog fears', 'rain', 'the 🐕', 'long walks', '')
LABELS = ('sad', 'so so', 'happy')


@functools.cache
def tokenizer():
  return train_tokenizer(['the river the rain the sea my old dog the teacher'] * 2, 300)


def model_of(method, params=None, **assets):
  params = tiny.random_params(method, 0) if params is None else params
  model = Model(params, method.config, {'tokenizer': tokenizer().to_text()} | assets)
  model._run = tiny.fast_jit(functools.partial(Model._run.__wrapped__, model))
  return model


@pytest.fixture(scope='module')
def method():
  config = tiny.text_config()
  config.dtype = 'bfloat16'
  config.model.dropout.update(dict.fromkeys(config.model.dropout, 0.5))
  return Data2vec2(config)


@pytest.fixture(scope='module')
def model(method):
  """Of random weights; in training it had every kind of dropout."""
  return model_of(method)


def sentence_method(kind):
  config = tiny.text_config('sentence')
  config.sentence.update(kind=kind, metric='accuracy' if kind == 'classification' else 'pearson_spearman')
  return SentencePrediction(config, len(LABELS) if kind == 'classification' else 1)


def ids_of(text):
  return tokenizer().encode(text.strip()).tolist()


# --- features


def test_features_are_the_references():
  with np.load(GOLDEN / 'd2v2_text' / 'checkpoint_expected.npz') as expected:
    tokens, padding, features = expected['source'], expected['padding_mask'], expected['features/x']
  model = d2v_jax.load(GOLDEN / 'd2v2_text' / 'checkpoint.pt')
  assert model.tokenizer is None and model.labels == ()
  for lengths in (None, (~padding).sum(1)):
    found = model.features(tokens, lengths)
    np.testing.assert_allclose(np.asarray(found)[~padding], features[~padding], atol=1e-5 * np.abs(features).max())
    assert not np.asarray(found)[padding].any()


def test_texts_and_their_ids_have_the_features_of_the_encoder(model):
  features = np.asarray(model.features(list(TEXTS)))
  tokens, lengths, _ = model.tokenize(list(TEXTS))
  assert features.shape == (*tokens.shape, 16) and features.dtype == np.float32
  for given in (tokens, tokens.astype(np.int64), jax.numpy.asarray(tokens), tokens.tolist()):
    np.testing.assert_array_equal(model.features(given, lengths), features)
    np.testing.assert_array_equal(model.features(given), features)  # the padding tells
  np.testing.assert_array_equal(model.layers(tokens)[-1], features)
  assert len(model.layers(tokens)) == 2
  encode = tiny.fast_jit(Data2vec2(tiny.text_config()).encoder.apply)  # in float32, without dropout
  for row, text in enumerate(TEXTS):
    assert not features[row, lengths[row] :].any()
    if row in (1, 3):  # the longest and the empty one
      alone = np.array([[BOS, *ids_of(text), EOS]])
      expected = encode({'params': model.params['encoder']}, alone).output[0]
      np.testing.assert_allclose(features[row, : alone.size], expected, atol=1e-4)


def test_padding_and_what_stands_there_do_not_matter(model):
  tokens, lengths, _ = model.tokenize(list(TEXTS))
  expected = np.asarray(model.features(tokens, lengths))
  wide = np.full((len(tokens), 32), 9)
  wide[:, : tokens.shape[1]] = np.where(tokens == PAD, 77, tokens)
  found = np.asarray(model.features(wide, lengths))
  np.testing.assert_allclose(found[:, : tokens.shape[1]], expected, atol=1e-4)
  assert not found[:, tokens.shape[1] :].any()
  assert np.abs(np.asarray(model.features(tokens[:, :3])) - expected[:, :3]).max() > 0.1  # but the context does


# --- tokens and where they are


def test_tokens_of_texts(model):
  tokens, lengths, spans = model.tokenize(list(TEXTS))
  assert tokens.dtype == lengths.dtype == np.int32
  assert lengths.tolist() == [len(ids_of(text)) + 2 for text in TEXTS] and tokens.shape[1] == lengths.max()
  for row, text in enumerate(TEXTS):
    assert tokens[row].tolist() == [BOS, *ids_of(text), EOS] + [PAD] * (lengths.max() - lengths[row])
    assert spans[row].dtype == np.int64 and spans[row].shape == (lengths[row], 2)
    assert not spans[row][[0, -1]].any()


def test_offsets_are_characters_of_the_whole_text(model):
  text = '\t  É 👍🏽 the river  '
  _, _, (spans,) = model.tokenize([text])
  own = spans[1:-1].tolist()
  # Tokens of parts of a character all have the whole of it; a space is a token of its own before what is not known.
  assert [text[start:end] for start, end in own] == list('ÉÉ ') + ['👍'] * 4 + ['🏽'] * 4 + [' the', ' river']
  assert own[0] == [3, 4] and own[-2:] == [[7, 11], [11, 17]]


def test_tokens_of_pairs(model):
  tokens, lengths, spans = model.tokenize(list(TEXTS), list(SECONDS))
  for row, (first, second) in enumerate(zip(TEXTS, SECONDS)):
    one, other = ids_of(first), ids_of(second)
    assert tokens[row, : lengths[row]].tolist() == [BOS, *one, EOS, EOS, *other, EOS]
    alone = [model.tokenize([text])[2][0][1:-1].tolist() for text in (first, second)]
    assert spans[row].tolist() == [[0, 0], *alone[0], [0, 0], [0, 0], *alone[1], [0, 0]]


# --- labels


@pytest.mark.parametrize('pairs', (False, True))
def test_classify_gives_what_the_objective_scores_highest(pairs):
  method = sentence_method('classification')
  params = tiny.random_params(method, 0)
  texts = [f'{text} {number}' for number in range(4) for text in TEXTS]
  seconds = [f'{text} {number}' for number in range(4) for text in SECONDS] if pairs else None
  model = model_of(method, params, labels=list(LABELS))
  tokens, lengths, _ = model.tokenize(texts, seconds)
  scores = np.asarray(tiny.fast_jit(method.scores)(params, {'tokens': tokens, 'length': lengths}))
  best = scores.argmax(1).tolist()
  assert len(set(best)) > 1  # the texts are told apart
  assert model.labels == LABELS
  assert model.classify(texts, seconds) == [LABELS[number] for number in best]
  unnamed = model_of(method, params).classify(texts, seconds)  # as of a file of fairseq
  assert unnamed == best and all(type(number) is int for number in unnamed)


def test_a_regression_gives_numbers():
  method = sentence_method('regression')
  model = model_of(method)
  tokens, lengths, _ = model.tokenize(list(TEXTS), list(SECONDS))
  scores = np.asarray(method.scores(model.params, {'tokens': tokens, 'length': lengths}))
  found = model.classify(list(TEXTS), list(SECONDS))
  np.testing.assert_allclose(found, scores[:, 0], atol=1e-4)
  assert np.ptp(found) > 0.1 and type(found[0]) is float


def test_white_space_at_the_ends_does_not_matter():
  """It did not in training either."""
  model = model_of(sentence_method('regression'))
  found = model.classify([' the sea\n', 'the sea', 'the  sea'], ['\u3000rain', 'rain', 'rain'])
  assert found[0] == found[1] != found[2]


# --- loading


def test_a_workdir_brings_tokenizer_and_labels(tmp_path):
  method = sentence_method('classification')
  params = tiny.random_params(method, 0)
  assets = {'tokenizer': tokenizer().to_text(), 'labels': list(LABELS)}
  manager.save_weights(tmp_path / 'checkpoints', params, None, method.config, assets)
  for path in (tmp_path, tmp_path / 'checkpoints'):
    model = d2v_jax.load(path)
    assert model.tokenizer.fingerprint == tokenizer().fingerprint and model.labels == LABELS
  assert model.classify(list(TEXTS)) == model_of(method, params, labels=list(LABELS)).classify(list(TEXTS))


def test_a_tokenizer_can_be_given(method):
  model = Model(tiny.random_params(method, 0), method.config)
  assert model.tokenizer is None
  for function in (model.tokenize, model.features):
    with pytest.raises(InputError, match=r'has no tokenizer; set model\.tokenizer'):
      function(['the'])
  with pytest.raises(InputError, match=r'has 301 entries, .* model 300; .*trained with'):
    model.tokenizer = train_tokenizer(['the'], 301)
  assert model.tokenizer is None
  model.tokenizer = tokenizer()
  assert model.tokenize(['the'])[0].tolist() == [[BOS, *ids_of('the'), EOS]]


# --- what is refused


@pytest.mark.parametrize(
  ('texts', 'seconds', 'named'),
  [
    (['the', 'a' * 31], None, ('text 1: has 33 tokens', 'takes 32')),
    (['the', 'a' * 15], ['the', 'a' * 14], ('text 1: has 33 tokens',)),
    (['the', '\ud800'], None, ('text 1: ',)),
    ('the', None, ('a list of str',)),
    ([b'the'], None, ('a list of str',)),
    (['the'], 'a', ('a list of str',)),
    (['the'], ['a', 'b'], ('as long a list',)),
  ],
)
def test_texts_that_do_not_fit(model, texts, seconds, named):
  with pytest.raises(InputError) as error:
    model.tokenize(texts, seconds)
  assert '\n' not in str(error.value)
  for part in named:
    assert part in str(error.value)
  assert model.tokenize(['a' * 30])[1].tolist() == [32]


@pytest.mark.parametrize(
  ('tokens', 'lengths', 'named'),
  [
    (np.zeros((1, 4), np.float32), None, ('text: found float32 [1, 4]', 'list of str', 'token ids [examples, tokens]')),
    (np.zeros(4, np.int32), None, ('text: found int32 [4]',)),
    (np.zeros((1, 33), np.int32), None, ('[1, 33]', '1 to 32 tokens')),
    (np.zeros((1, 0), np.int32), None, ('[1, 0]', '1 to 32 tokens')),
    ('the', None, ('text: found <U3 []', 'list of str')),
    ([], None, ('text: found int32 [0, 1]', 'at least one')),
    ([[0, 300]], None, ('found the token 300', '0 to 299')),
    ([[-1, 0]], None, ('found the token -1', '0 to 299')),
    ([[0, 5, 2]], [4], ('lengths: found [4]', '1 to 3')),
    ([[0, 5, 2]], [0], ('lengths: found [0]',)),
    ([[0, 5, 2]], [3, 3], ('lengths: found [3, 3]', 'each of the 1 texts')),
    ([[0, 5, 2]], [2.5], ('lengths: found [2.5]', 'whole number')),
    ([[PAD, PAD]], None, ('lengths: found [0]',)),
  ],
)
def test_token_ids_that_do_not_fit(model, tokens, lengths, named):
  for method in (model.features, model.layers):
    with pytest.raises(InputError) as error:
      method(tokens, lengths)
    assert '\n' not in str(error.value)
    for part in named:
      assert part in str(error.value)


def test_only_models_with_a_head_for_it_classify(model):
  recogniser = model_of(sentence_method('regression'))
  with pytest.raises(InputError, match=r'classify: this model has no sentence head; .*sentence\.py'):
    model.classify(['the'])
  with pytest.raises(InputError, match='transcribe: this model has no CTC head'):
    recogniser.transcribe(['the'])


def test_padding_within_a_text_is_not_its_end(model):
  """What follows it is still text."""
  tokens = framed(np.array([9, PAD, UNK], np.int32))[None]
  assert np.asarray(model.features(tokens))[0, -1].any()
