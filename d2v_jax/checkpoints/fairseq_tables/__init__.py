"""What the reference's config means in our terms: a table for each modality and task, made of parts.

Names of the reference are those of its own config tree, `model.modalities.image.mask_prob` and so on; in the parts '@'
stands for the modality's section. Of the optimisers only the default group counts, so its fields stand under `optimizer`,
`lr_scheduler` and `optimization.lr` whether the file used groups or not. A fine-tuned file holds the config of its
pretraining too, all of it in one field of its model.
"""

from d2v_jax.checkpoints.fairseq_tables import image, speech, text
from d2v_jax.checkpoints.fairseq_tables.common import ENCODER, PRETRAINING, RATES, RUN
from d2v_jax.checkpoints.fairseq_tables.table import Table

# The reference's model -> our task, and the field of the model that holds the config of its pretraining.
MODELS = {
  'data2vec_multi': ('pretrain', ''),
  'wav2vec_ctc': ('ctc', 'w2v_args'),
  'data2vec_text_classification': ('sentence', 'pretrained_model_args'),
}


def _table(modality, *parts):
  """The parts as one table, with the modality's section spelt out."""
  return Table.merge(parts).renamed(lambda name: name.replace('@', f'model.modalities.{modality}'))


def _fine_tuning(modality, task, network, *parts):
  """A table whose `network` parts are about the pretraining, of which nothing else counts."""
  pretrained = next(field for other, field in MODELS.values() if other == task)
  inside = lambda name: f'model.{pretrained}.{name}'
  rest = {
    **dict.fromkeys(map(inside, TABLES[modality, 'pretrain'].known), 'of the pretraining'),
    **{f'model.{name}': 'of the pretraining' for name in (pretrained, 'no_pretrained_weights')},
    'model.supported_modality': 'shows in the names of the tensors',
  }
  return _table(modality, *(part.renamed(inside) for part in network), Table({}, irrelevant=rest), *parts)


TABLES = {
  ('image', 'pretrain'): _table('image', RUN, ENCODER, RATES, image.ENCODER, PRETRAINING, image.PRETRAINING),
  ('audio', 'pretrain'): _table('audio', RUN, ENCODER, RATES, speech.ENCODER, speech.INPUT, PRETRAINING, speech.PRETRAINING),
  ('text', 'pretrain'): _table('text', RUN, ENCODER, RATES, text.ENCODER, PRETRAINING, text.PRETRAINING),
}
TABLES['audio', 'ctc'] = _fine_tuning('audio', 'ctc', (ENCODER, speech.ENCODER), RUN, speech.INPUT, speech.CTC)
TABLES['text', 'sentence'] = _fine_tuning('text', 'sentence', (ENCODER, RATES, text.ENCODER), RUN, text.SENTENCES)
