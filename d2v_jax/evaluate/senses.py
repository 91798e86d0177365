"""Are targets contextualised? A word in sentences where it means two things: one input embedding, different targets."""

import jax
import jax.numpy as jnp
import numpy as np

from d2v_jax.data.tokenizer import padded
from d2v_jax.methods.targets import targets

WORD = 'bank'
SENTENCES = {
  'river': (
    'They sat down on the bank of the river and watched the water.',
    'The boat was tied to a tree on the bank of the stream.',
    'He swam across and climbed up the muddy bank on the other side.',
    'Flowers grew along the bank where the water was quiet.',
  ),
  'money': (
    'She put all her money in the bank and lived upon the interest.',
    'The bank refused to lend him a thousand pounds.',
    'He worked as a clerk at the bank and counted the notes.',
    'The bank paid the debts of the company with gold.',
  ),
}


def word_targets(objective, params: dict, teacher: dict, tokenizer) -> dict | None:
  """What the teacher makes of `WORD` in each of `SENTENCES`, and what goes in.

  Args:
    objective: `Data2vec2` on text.
    params, teacher: of the student and the teacher.
    tokenizer: of the model.

  Returns:
    Keywords of `text_pictures.senses`: 'word', 'sentences', 'groups' and, one row for each sentence, 'targets' float32
    [n, D], the word's contextual targets, and 'embeddings' float32 [n, D], its input embeddings without their positions;
    means over the word's tokens where it has several. None where the model takes no texts as long as these.
  """
  sentences = [sentence for group in SENTENCES.values() for sentence in group]
  groups = [name for name, group in SENTENCES.items() for _ in group]
  rows, places = [], []
  for sentence in sentences:
    ids, offsets = tokenizer.encode_framed(sentence)
    if len(ids) > objective.config.model.max_positions:
      return None
    start = sentence.index(WORD)
    rows.append(ids)
    places.append(np.flatnonzero((offsets[:, 0] < start + len(WORD)) & (offsets[:, 1] > start)))
  tokens, lengths = padded(rows)
  encode = jax.jit(lambda weights, *inputs: objective.encoder.apply({'params': weights}, *inputs).mlps)
  padding = objective.modality.padding({'length': lengths}, tokens.shape[1])
  layers = encode(params['encoder'] | teacher['encoder'], tokens, padding)[-objective.options.average_top_k :]
  options, table = objective.options, np.asarray(params['encoder']['local_encoder']['token_embedding'])
  found = {'targets': [], 'embeddings': []}
  for row, (length, place) in enumerate(zip(lengths, places)):
    # Each sentence by itself: its statistics are over its own tokens.
    own = [jnp.asarray(layer[row : row + 1, :length]) for layer in layers]
    found['targets'].append(np.asarray(targets(own, options.target_layer_norms, options.target_norms))[0, place].mean(0))
    found['embeddings'].append(table[tokens[row, place]].mean(0))
  return {'word': WORD, 'sentences': sentences, 'groups': groups, **{key: np.stack(rows) for key, rows in found.items()}}
