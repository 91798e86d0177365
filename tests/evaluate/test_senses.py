"""A word in its sentences: where it is, what goes in and what the teacher makes of it, each sentence by itself."""

import jax
import numpy as np

from d2v_jax.data.tokenizer import BOS, EOS, train_tokenizer
from d2v_jax.evaluate.senses import SENTENCES, WORD, word_targets
from d2v_jax.methods.data2vec2 import Data2vec2
from d2v_jax.methods.targets import targets
from tests.train import tiny


def test_targets_of_a_word_are_those_of_its_sentence_alone():
  config = tiny.text_config()
  config.model.max_positions = 80
  method = Data2vec2(config)
  params = tiny.random_params(method, 0)
  teacher = method.init_teacher(tiny.random_params(method, 1))
  tokenizer = train_tokenizer(['the river and the stream where they sat'] * 2, 300)  # of 'bank' it knows only letters
  found = word_targets(method, params, teacher, tokenizer)
  sentences = [sentence for group in SENTENCES.values() for sentence in group]
  assert found['word'] == WORD and found['sentences'] == sentences and len(sentences) == 8
  assert found['groups'] == [group for group, members in SENTENCES.items() for _ in members]
  assert found['targets'].shape == found['embeddings'].shape == (8, 16)
  assert {found[name].dtype for name in ('targets', 'embeddings')} == {np.dtype(np.float32)}
  table = params['encoder']['local_encoder']['token_embedding']
  weights = {'params': jax.tree.map(jax.numpy.asarray, params['encoder'] | teacher['encoder'])}
  encode = tiny.fast_jit(lambda tokens: method.encoder.apply(weights, tokens).mlps)
  for row in (0, 3, 4):
    before, after = sentences[row].split(WORD, 1)
    ids = [tokenizer.encode(text).tolist() for text in (before, WORD, after)]
    assert len(ids[1]) > 1
    place = slice(1 + len(ids[0]), 1 + len(ids[0]) + len(ids[1]))
    layers = encode(np.array([[BOS, *ids[0], *ids[1], *ids[2], EOS]]))[-config.data2vec2.average_top_k :]
    options = config.data2vec2
    own = np.asarray(targets(layers, options.target_layer_norms, options.target_norms))[0, place]
    np.testing.assert_allclose(found['targets'][row], own.mean(0), atol=1e-4)
    np.testing.assert_allclose(found['embeddings'][row], table[ids[1]].mean(0), atol=1e-6)
  assert np.ptp(found['embeddings'], axis=0).max() < 1e-6  # the same word goes in
  assert np.ptp(found['targets'], axis=0).min() > 1e-2
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves((found['targets'], found['embeddings'])))
