"""Weights in: `python -m d2v_jax.convert --from=fairseq --input=FILE.pt --to=orbax --output=DIR`.

Prints where every tensor went and where the checkpoint's own config differs from the released recipe that is nearest.
"""

import re

from absl import flags

from d2v_jax import cli
from d2v_jax.checkpoints import fairseq, fairseq_config, manager


def convert(source: str, output: str) -> None:
  """Converts a `.pt` file of the reference into a checkpoint of ours in the new directory `output`.

  Raises:
    InputError: the file cannot be read or is of another model, or the directory is not empty.
    RunError: the directory cannot be written.
  """
  imported = fairseq.import_checkpoint(source)
  print(f'{source}:')
  _print_account('student', imported.student_account)
  if imported.teacher_account:
    _print_account('teacher', imported.teacher_account)
  print('notes:')
  for note in imported.notes:
    print(f'  {note}')
  _print_differences(imported.config)
  manager.save_weights(output, imported.params, imported.teacher, imported.config)
  print(f'written to {output}')


def _print_account(name, account):
  total = len(account.used) + len(account.unused)
  print(
    f'{name}: {total} tensors, {len(account.used)} used, {len(account.unused)} unused, {account.parameters:,} parameters'
  )
  groups = {}  # the same tensor of all blocks on one line
  number = lambda text: re.sub(r'(?<=[._])\d+', '*', text)
  for tensor, ours in account.used.items():
    group = (number(tensor), ', '.join(map(number, ours)))
    groups[group] = groups.get(group, 0) + 1
  for (tensor, ours), count in groups.items():
    print(f'  {count:3} x {tensor} -> {ours}')
  for tensor, reason in account.unused.items():
    print(f'  unused {tensor}: {reason}')


def _print_differences(config):
  nearest = fairseq_config.differences(config)
  if nearest is None:
    print(f'its config is compared with no recipe: configs/ has none of {config.task} on {config.modality} here')
    return
  name, fields = nearest
  print(f'its config {"differs from" if fields else "equals"} configs/{name}.py, the nearest recipe{":" if fields else ""}')
  for field, (found, recipe) in fields.items():
    print(f'  {field}: {found!r}, recipe {recipe!r}')


def main():
  """The command; see the module's docstring."""
  convert(flags.FLAGS.input, flags.FLAGS.output)


if __name__ == '__main__':
  flags.DEFINE_enum('from', None, ['fairseq'], 'Format of the input; fairseq: a .pt file of the reference.', required=True)
  flags.DEFINE_string('input', None, 'File to read.', required=True)
  flags.DEFINE_enum('to', None, ['orbax'], 'Format of the output; orbax: a checkpoint of this package.', required=True)
  flags.DEFINE_string('output', None, 'New folder to write.', required=True)
  cli.run(main)
