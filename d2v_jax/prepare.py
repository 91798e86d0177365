"""`python -m d2v_jax.prepare --config=configs/NAME.py --output=DIR [--workers=N]`: a corpus of text to tokens on disk, once.

A training prepares its corpus by itself, in a cache; large ones are better made beforehand, by many processes. Run again,
the command goes on where it was interrupted, or checks that all is there and unchanged.
"""

import re
import sys

from absl import flags
from ml_collections import config_flags

from d2v_jax import cli
from d2v_jax.config import validate
from d2v_jax.errors import InputError

_CONFIG = cli.define_config()


def main() -> None:
  """The command; see the module's docstring."""
  values, config = flags.FLAGS, cli.config_of(_CONFIG)
  output = cli.required(values['output'], 'the folder to write')
  validate(config)
  if (config.modality, config.task) != ('text', 'pretrain'):
    raise InputError(f'--config: is one of {config.task} on {config.modality}; text is prepared for pretrain on text only')
  from d2v_jax.data import prepared

  about, speed = prepared.prepare(config, output, values.workers)
  print(f'{output}: {about["source"]}, lines={about["lines"]}, a tokenizer of {about["vocab_size"]:,} entries')
  for part, made in about['parts'].items():
    print(
      f'  {part}: {made["documents"]:,} documents, {made["sentences"]:,} sentences, {made["tokens"]:,} tokens,'
      f' {made["bytes"]:,} bytes'
    )
  print(f'made, {speed:,.0f} tokens per second' if speed else 'it is complete: sizes and hashes are right')
  config_file = config_flags.get_config_filename(values['config'])
  changed = [argument for argument in sys.argv[1:] if re.match(r'--config\.(?!data\.(source|workers)=)', argument)]
  next_command = ['python -m d2v_jax.main', f'--config={config_file}', *changed, f'--config.data.source=prepared:{output}']
  print('next:', *next_command, '--workdir=DIR')


if __name__ == '__main__':
  flags.DEFINE_string('output', None, 'The folder to write: a new one, or one that this command has begun.')
  flags.DEFINE_integer('workers', None, 'Worker processes; by default config.data.workers. 0: none.', lower_bound=0)
  cli.run(main)
