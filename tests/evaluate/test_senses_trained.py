"""The claim of the method on text, in a small world: after training, one word in two senses has two kinds of targets."""

import numpy as np

from d2v_jax.config import default_config
from d2v_jax.data.tokenizer import read_tokenizer
from d2v_jax.evaluate import senses
from d2v_jax.tasks import TASKS
from d2v_jax.train.loop import train_and_evaluate

WORDS = {
  'river': (('boat', 'fish', 'duck', 'swan', 'reed'), ('swam by', 'lay near', 'drifted to'), ('wet', 'muddy', 'green')),
  'money': (('clerk', 'loan', 'debt', 'coin', 'note'), ('paid at', 'went to', 'was kept in'), ('rich', 'old', 'busy')),
}


def sentence(rng, sense):
  noun, verb, adjective = (rng.choice(words) for words in WORDS[sense])
  return f'the {noun} {verb} the {adjective} bank .'


def test_two_senses_of_a_word_have_different_targets(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  lines = [sentence(rng, ('river', 'money')[number % 2]) for number in range(3000)]
  (tmp_path / 'corpus.txt').write_text('\n'.join(lines))
  config = default_config('text')
  config.data.update(source=f'folder:{tmp_path}', cache=str(tmp_path / 'cache'), block_tokens=32, workers=0)
  config.update(total_steps=400, batch_size=16, learning_rate=2e-3, dtype='float32', pictures=False)
  config.model.update(vocab_size=320, max_positions=32, embed_dim=48, depth=2, num_heads=4, init_std=0.08)
  config.model.update(positions='none', alibi='manhattan')
  config.model.dropout.update(dict.fromkeys(config.model.dropout, 0.0))
  config.data2vec2.update(masks_per_example=2, average_top_k=1, target_layer_norms=('layer',), target_norms=('instance',))
  config.data2vec2.update(ema_decay=0.98, ema_end_decay=0.98)
  config.decoder.update(dim=32, layers=2, kernel=5, input_dropout=0.0)
  config.optimizer.clip_norm = 4.0
  config.schedule.warmup_steps = 40
  state = train_and_evaluate(config, tmp_path / 'run')

  monkeypatch.setattr(senses, 'SENTENCES', {name: [sentence(rng, name) for _ in range(6)] for name in WORDS})
  objective = TASKS['pretrain'].objective_of(config)
  (prepared,) = (tmp_path / 'cache').iterdir()
  found = senses.word_targets(objective, state.params, state.teacher, read_tokenizer(prepared))
  assert np.ptp(found['embeddings'], axis=0).max() == 0
  targets = found['targets'] / np.linalg.norm(found['targets'], axis=1, keepdims=True)
  distance = 1 - targets @ targets.T
  same = np.equal.outer(found['groups'], found['groups'])
  within, between = distance[same & ~np.eye(len(same), dtype=bool)].mean(), distance[~same].mean()
  assert between > 1.25 * within > 0
