"""Parts of the tables that several modalities share."""

from d2v_jax.checkpoints.fairseq_tables.table import Table, fields, first, numbers

_SCHEDULES = {'polynomial_decay': 'linear'}
_names_of = lambda *names: lambda *flags: tuple(name for name, flag in zip(names, flags) if flag)

RUN = Table(
  {
    **fields(
      '',
      '',
      seed='common.seed',
      total_steps='optimization.max_update',
      learning_rate=('optimization.lr', lambda values: float(first(values))),
    ),
    **fields(
      'optimizer.',
      'optimizer.',
      beta1=('adam_betas', lambda betas: numbers(betas)[0]),
      beta2=('adam_betas', lambda betas: numbers(betas)[1]),
      eps=('adam_eps', float),
      weight_decay=('weight_decay', float),
    ),
    **fields('optimizer.', 'optimization.', clip_norm=('clip_norm', float)),
    **fields(
      'schedule.',
      'lr_scheduler.',
      name=('_name', lambda name: _SCHEDULES.get(name, name)),
      warmup_steps='warmup_updates',
      min_learning_rate=('min_lr', float),
    ),
  }
)

ENCODER = Table(
  {
    **fields(
      'model.',
      'model.',
      embed_dim='embed_dim',
      depth='depth',
      num_heads='num_heads',
      mlp_ratio=('mlp_ratio', lambda ratio: int(ratio) if ratio == int(ratio) else ratio),
      norm_eps=('norm_eps', float),
    ),
    **fields(
      'model.',
      '@.',
      prenet_depth='prenet_depth',
      extra_tokens='num_extra_tokens',
      alibi_scale=('alibi_scale', float),
      alibi_learned=('use_alibi_encoder', 'learned_alibi_scale', lambda used, learned: used and learned),
      alibi_per_head='learned_alibi_scale_per_head',
      alibi_per_layer='learned_alibi_scale_per_layer',
    ),
  },
  {'model.layer_norm_first': False, 'model.norm_affine': True, '@.learned_alibi': False},
  dict.fromkeys(
    (
      *('model.start_drop_path_rate', 'model.end_drop_path_rate', 'model.dropout_input'),
      *('@.start_drop_path_rate', '@.end_drop_path_rate'),
    ),
    0,
  ),
  {
    '@.num_alibi_heads': 'equals model.num_heads',
    '@.model_depth': 'equals model.depth',
    '@.type': 'shows in the names of the tensors',
    '@.alibi_max_pos': 'only of learned ALiBi tables',
    'model.supported_modality': 'shows in the names of the tensors',
  },
)
# ALiBi where tokens stand in a line: all distances are the same.
ALIBI_1D = Table(fields('model.', '@.', alibi=('use_alibi_encoder', lambda used: 'manhattan' if used else '')))

RATES = Table(
  {
    **fields('model.', 'model.', layer_drop=('layerdrop', float)),
    **fields('model.', '@.', prenet_layer_drop=('prenet_layerdrop', float)),
    **fields('model.dropout.', '@.', entry=('prenet_dropout', float)),
    **fields(
      'model.dropout.',
      'model.',
      attention=('attention_dropout', float),
      attention_output=('encoder_dropout', float),
      activation=('activation_dropout', float),
      mlp_output=('post_mlp_drop', float),
    ),
  }
)

PRETRAINING = Table(
  {
    **fields(
      'mask.',
      '@.',
      ratio=('mask_prob', float),
      adjust=('mask_prob_adjust', float),
      block_size='mask_length',
      inverse='inverse_mask',
    ),
    **fields(
      'data2vec2.',
      'model.',
      masks_per_example='clone_batch',
      average_top_k='average_top_k_layers',
      block_output_targets='end_of_block_targets',
      target_layer_norms=(
        'batch_norm_target_layer',
        'instance_norm_target_layer',
        'layer_norm_target_layer',
        _names_of('batch', 'instance', 'layer'),
      ),
      target_norms=('layer_norm_targets', 'instance_norm_targets', _names_of('layer', 'instance')),
      loss_beta=('loss_beta', float),
      loss_scale=('loss_scale', lambda scale: 0.0 if scale is None else float(scale)),
      regression_loss=('d2v_loss', float),
      cls_loss=('cls_loss', float),
      ema_decay=('ema_decay', float),
      ema_end_decay=('ema_end_decay', float),
      ema_anneal_steps='ema_anneal_end_step',
    ),
    **fields('data2vec2.', '@.', mask_noise_std=('mask_noise_std', float)),
    **fields(
      'data2vec2.',
      '',
      teacher_scope=(
        'model.ema_encoder_only',
        '@.ema_local_encoder',
        lambda blocks, everything: 'blocks' if blocks else 'all' if everything else 'context',
      ),
    ),
    **fields(
      'decoder.',
      '@.decoder.',
      dim='decoder_dim',
      layers='decoder_layers',
      kernel='decoder_kernel',
      groups='decoder_groups',
      residual='decoder_residual',
      input_dropout=('input_dropout', float),
    ),
    **fields('health.', 'model.', min_target_std=('min_target_var', float), min_pred_std=('min_pred_var', float)),
  },
  {'model.shared_decoder': None, '@.decoder.final_layer_norm': False},
  {
    **dict.fromkeys(('model.recon_loss', '@.keep_masked_pct', '@.mask_dropout', '@.mask_channel_prob'), 0),
    **dict.fromkeys(('model.mae_init', 'model.skip_ema', 'model.decoder_group', '@.add_masks', '@.remove_masks'), False),
    '@.mask_prob_min': None,
    '@.local_grad_mult': 1,
    'task.subsample': 1,
  },
  {
    '@.encoder_zero_mask': 'masked tokens are removed, not replaced',
    '@.mask_channel_length': 'channels are not masked',
    'model.max_update': 'equals optimization.max_update',
    'model.seed': 'equals common.seed',
    'model.ema_same_dtype': 'the teacher is always float32',
    'model.log_norms': 'logging',
  },
)
DECODER_1D = Table(
  fields('decoder.', '@.decoder.', projection_layers='projection_layers', projection_ratio=('projection_ratio', float)),
  dict.fromkeys(('@.decoder.add_positions_masked', '@.decoder.add_positions_all'), False),
  irrelevant={'@.init_extra_token_zero': 'only the start of extra tokens'},
)
# Batches of so many examples.
EXAMPLES = Table(
  fields(
    '',
    '',
    accumulate_steps=('optimization.update_freq', first),
    batch_size=(
      'dataset.batch_size',
      'distributed_training.distributed_world_size',
      'optimization.update_freq',
      lambda examples, workers, frequency: examples * workers * first(frequency),
    ),
  ),
  training={'dataset.max_tokens': None},
)
