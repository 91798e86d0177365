"""Parts of the tables that are of images."""

from d2v_jax.checkpoints.fairseq_tables.common import EXAMPLES
from d2v_jax.checkpoints.fairseq_tables.table import Table, fields

ENCODER = Table(
  {
    **fields('data.', '@.', image_size='input_size'),
    **fields(
      'model.',
      '@.',
      patch_size='patch_size',
      alibi=('use_alibi_encoder', 'alibi_distance', lambda used, distance: distance if used else ''),
    ),
  },
  {
    '@.in_chans': 3,
    '@.fixed_positions': True,
    '@.alibi_dims': 2,
    '@.transformer_decoder': False,
    '@.enc_dec_transformer': False,
  },
  irrelevant={'@.embed_dim': 'the width of the tensors is checked'},
)

PRETRAINING = Table.merge(
  [
    EXAMPLES,
    Table(
      {
        **fields('data2vec2.', 'dataset.', cls_loss_examples='batch_size'),
        **fields(
          'decoder.',
          '@.decoder.',
          positions=(
            'add_positions_masked',
            'add_positions_all',
            lambda masked, everywhere: 'all' if everywhere else 'masked' if masked else '',
          ),
        ),
      },
      training=dict.fromkeys(
        ('@.init_extra_token_zero', 'task.beit_transforms', 'task.target_transform', 'task.no_transform'), False
      ),
      irrelevant=dict.fromkeys(
        ('@.decoder.projection_layers', '@.decoder.projection_ratio'), 'the 2-D decoder does not read it'
      ),
    ),
  ]
)
