"""Parts of the tables that are of text: pretraining, and fine-tuning on a task of sentences."""

from d2v_jax.checkpoints.fairseq_tables.common import ALIBI_1D, DECODER_1D, EXAMPLES
from d2v_jax.checkpoints.fairseq_tables.table import Table, fields

ENCODER = Table.merge(
  [
    ALIBI_1D,
    Table(
      {
        **fields('model.', '@.', max_positions='max_source_positions'),
        **fields(
          'model.dropout.',
          '@.',
          embedding=('dropout', float),
          # Without prenet blocks nothing stands between the embeddings and the first block.
          entry=('prenet_dropout', 'prenet_depth', lambda rate, depth: float(rate) if depth else 0.0),
        ),
      },
      {
        **dict.fromkeys(('@.learned_pos', '@.no_scale_embedding', '@.layernorm_embedding'), True),
        '@.no_token_positional_embeddings': False,
      },
    ),
  ]
)

PRETRAINING = Table.merge(
  [
    EXAMPLES,
    DECODER_1D,
    Table(
      fields('data.', 'task.', block_tokens='tokens_per_sample'),
      # How the corpus is cut into blocks, and that no token is replaced before the encoder masks.
      training={
        **dict.fromkeys(('task.sample_break_mode', 'task.shorten_method'), 'none'),
        **dict.fromkeys(('task.skip_masking', 'task.d2v2_multi'), True),
      },
    ),
  ]
)

# The kind of task, regression or classification, shows in the tensors.
SENTENCES = Table.merge(
  [
    EXAMPLES,
    Table(
      fields(
        'sentence.',
        'criterion.',
        metric=(
          'report_mcc',
          'report_acc_and_f1',
          lambda matthews, accuracy_f1: 'matthews' if matthews else 'accuracy_f1' if accuracy_f1 else 'accuracy',
        ),
      ),
      {'model.pooler_activation_fn': 'tanh', 'model.spectral_norm_classification_head': False},
      {
        **dict.fromkeys(('model.pooler_dropout', 'model.quant_noise_pq', 'lr_scheduler.end_learning_rate'), 0),
        'lr_scheduler.power': 1,
        'optimization.max_epoch': 0,
      },
      {
        'model.quant_noise_pq_block_size': 'there is no quantisation noise',
        'model.model_path': 'of the pretraining',
      },
    ),
  ]
)
