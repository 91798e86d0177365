"""What the train step costs on TPU by the TPU compiler's own cost model. No TPU is needed, and none is measured.

  pip install 'libtpu==0.0.52'  # the one that belongs to the installed jax: `pip install 'jax[tpu]==...'` names it
  python benchmarks/tpu_estimate.py --config=configs/image_base.py --topology=v5e:4x4 --examples_per_chip=16

Compiles the real train step ahead of time for all chips of the topology and adds up the `estimated_cycles` of every
operation of the scheduled program, by part of the method. Prints a table, then one JSON object on the last line.

What the number is not: communication, prefetches, gathers, scatters and sorts have no estimate and count as free (all but
prefetches are listed). The body of a loop counts once: no MFU is given when a loop holds matrix products (accumulated
micro-batches). A custom kernel (Pallas) has no estimate either, so no MFU is given when there is one. The estimate is
deterministic for one pair of jax and libtpu: use it to compare two programs under the same pair, not as a promise of speed.
"""

import collections
import dataclasses
import itertools
import json
import os
import re
import time

from absl import flags

from d2v_jax import cli

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_string('topology', 'v5e:4x4', 'Chip and shape of the slice, as JAX names topologies.')
_EXAMPLES = flags.DEFINE_integer('examples_per_chip', 16, 'Examples per chip and micro-batch; replaces config.batch_size.')
_TOP = flags.DEFINE_integer('top', 0, 'Also list this many of the costliest groups of operations.')
_HLO = flags.DEFINE_string('hlo', '', 'Also write the scheduled program to this file.')

# The clocks behind the cycles. That of v6e is an assumption.
CLOCK_HZ = {'v5e': 1.5e9, 'v5p': 1.75e9, 'v6e': 1.75e9}
# The scopes that Data2vec2.forward and train_step name. What is outside them is the rest: masks, noise, loss, metrics.
PARTS = ('teacher', 'student', 'decoder', 'optimizer', 'rest')
_SCOPE = re.compile(r'(?:^|[/(])(teacher|student|decoder|optimizer)\)*(?:/|$)')
_PRODUCTS = ('convolution', 'dot')
# What fusions contain besides arithmetic.
_PLUMBING = ('bitcast', 'broadcast', 'constant', 'get-tuple-element', 'parameter', 'tuple')
# Opcodes that the compiler gives no estimate, by how they start: communication, and sorting, which draws the masks.
_KNOWN_UNCHARGED = ('all-', 'reduce-scatter', 'collective-', 'sort')
# Custom calls by which the compiler itself views several buffers as one: nothing is computed or moved.
_FREE_CALLS = ('ConcatBitcast',)


@dataclasses.dataclass(frozen=True)
class Operation:
  """One line of the scheduled program.

  Attributes:
    computation: the computation it stands in.
    opcode: as HLO names it.
    shape: of its result, with the layout.
    cycles: the estimate, or None.
    name: the path of scopes and modules it comes from; of a fusion, that of its last operation; '' where XLA made it up.
    called: computations that it calls.
    target: of a custom call, what is called, else ''.
  """

  computation: str
  opcode: str
  shape: str
  cycles: int | None
  name: str
  called: tuple[str, ...]
  target: str

  @property
  def scope(self) -> str:
    """Which of PARTS its name tells; a backward pass belongs to the part of its forward pass."""
    scope = _SCOPE.search(self.name)
    return scope[1] if scope else 'rest'


def parse(program: str) -> list[Operation]:
  """Reads all operations of a compiled program from its text."""
  operations, computation = [], ''
  for line in program.splitlines():
    if head := re.match(r'(?:ENTRY )?%?([\w.\-]+) \(.*\{$', line):
      computation = head[1]
    elif body := re.match(r' +(?:ROOT )?%[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(', line):
      first = lambda pattern, line=line: (re.search(pattern, line) or ('', ''))[1]
      cycles = first(r'"estimated_cycles":"(\d+)"')
      called = re.findall(r'(?:calls|body|condition|to_apply|true_computation|false_computation)=%([\w.\-]+)', line)
      for branches in re.findall(r'(?:branch|called)_computations=\{([^}]*)\}', line):
        called += re.findall(r'%([\w.\-]+)', branches)
      name, target = first(r'op_name="([^"]*)"'), first(r'custom_call_target="([^"]*)"')
      operations.append(
        Operation(computation, body[2], body[1], int(cycles) if cycles else None, name, tuple(called), target)
      )
  return operations


def by_computation(operations: list[Operation]) -> dict[str, list[Operation]]:
  """Operations by the computation that they stand in."""
  members = collections.defaultdict(list)
  for operation in operations:
    members[operation.computation].append(operation)
  return members


def cycles_by_part(operations: list[Operation]) -> collections.Counter:
  """Adds up the estimates by part.

  A fusion belongs to the part of its matrix product; without one, to the part that most of its arithmetic comes from: noise
  that is drawn where the decoder reads it is not decoder.
  """
  members = by_computation(operations)

  def inside(operation):
    for inner in itertools.chain.from_iterable(members[name] for name in operation.called):
      if inner.opcode == 'fusion':
        yield from inside(inner)
      elif inner.name and inner.opcode not in _PLUMBING:
        yield inner

  def part(operation):
    if operation.opcode != 'fusion':
      return operation.scope
    inner = list(inside(operation))
    inner = [operation for operation in inner if operation.opcode in _PRODUCTS] or inner
    return collections.Counter(operation.scope for operation in [*inner, operation]).most_common(1)[0][0]

  cycles = collections.Counter()
  for operation in operations:
    if operation.cycles:
      cycles[part(operation)] += operation.cycles
  return cycles


def uncharged(operations: list[Operation]) -> tuple[collections.Counter, collections.Counter]:
  """Counts what does work but has no estimate: (known kinds, which are listed; others, which forbid an MFU).

  What stands inside a fusion needs no estimate of its own: the fusion has one.
  """
  fused = {name for operation in operations if operation.opcode == 'fusion' for name in operation.called}
  known, others = collections.Counter(), collections.Counter()
  for operation in operations:
    if operation.cycles is not None or operation.computation in fused or operation.target in _FREE_CALLS:
      continue
    if operation.opcode == 'fusion':
      kind = operation.name.rpartition('/')[2]  # what its last operation is called in JAX
      (known if kind in ('gather', 'scatter-add') else others)[f'fusion of {kind or "unknown"}'] += 1
    elif operation.opcode in (*_PRODUCTS, 'custom-call'):
      others[operation.target or operation.opcode] += 1
    elif operation.opcode.startswith(_KNOWN_UNCHARGED) and not operation.opcode.endswith('-done'):
      known[operation.opcode.removesuffix('-start')] += 1
  return known, others


def loops(operations: list[Operation]) -> tuple[int, int]:
  """Counts loops, and those with matrix products or convolutions inside, at any depth."""
  members = by_computation(operations)

  def multiplies(computation):
    return any(operation.opcode in _PRODUCTS or any(map(multiplies, operation.called)) for operation in members[computation])

  whiles = [operation for operation in operations if operation.opcode == 'while']
  return len(whiles), sum(any(map(multiplies, operation.called)) for operation in whiles)


def costliest(operations: list[Operation], count: int) -> list[tuple[int, int, str]]:
  """The costliest groups of operations, as (cycles, operations, description): one group for all layers of a part."""
  cycles, members = collections.Counter(), collections.Counter()
  for operation in operations:
    # jit(train_step)/transpose(jvp(student))/.../block_3/mlp/fc1/dot_general -> student backward .../block_*/mlp/fc1/...
    path = re.sub(r'_\d+\b', '_*', operation.name.removeprefix('jit(train_step)/'))
    group = f'{operation.opcode} {path or "(unnamed)"} -> {operation.shape if len(operation.shape) < 80 else "(several)"}'
    cycles[group] += operation.cycles or 0
    members[group] += 1
  return [(total, members[group], group) for group, total in cycles.most_common(count)]


def compile_step(config, topology: str, examples_per_chip: int):
  """Compiles the train step of a config for a topology; returns (objective, device, compiled, seconds of compilation)."""
  import jax
  from jax.experimental import topologies

  from d2v_jax.data.examples import random_batch
  from d2v_jax.errors import InputError
  from d2v_jax.parallel import mesh as meshes
  from d2v_jax.tasks import TASKS
  from d2v_jax.train.step import abstract_state, sharded_step

  # The host must not look for TPUs: libtpu is here only to compile.
  jax.config.update('jax_platforms', 'cpu')
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  try:
    devices = topologies.get_topology_desc(topology, platform='tpu').devices
  except Exception as error:
    raise InputError(
      f'--topology: {topology} cannot be described ({error}); is the libtpu of this jax installed?'
    ) from error
  config.batch_size = examples_per_chip * config.accumulate_steps * len(devices)
  if 'rows_multiple' in config.data:
    config.data.rows_multiple = config.batch_size
  mesh = meshes.build(config, devices)
  objective = TASKS[config.task].objective_of(config)
  rows = meshes.batch_sharding(mesh)
  describe = lambda array: jax.ShapeDtypeStruct((config.batch_size, *array.shape[1:]), array.dtype, sharding=rows)
  batch = jax.tree.map(describe, random_batch(config, objective.modality.example, 1))
  step = sharded_step(objective, config, max(config.total_steps, 1), mesh)
  lowered = step.lower(abstract_state(objective, config, mesh), batch)
  start = time.perf_counter()
  compiled = lowered.compile()
  return objective, devices[0], compiled, time.perf_counter() - start


def estimate(config, topology: str, examples_per_chip: int) -> tuple[dict, list[Operation], str]:
  """Compiles the step and reads the estimate from it; returns (result, operations, program text)."""
  from d2v_jax.report.progress import peak_flops

  objective, device, compiled, seconds = compile_step(config, topology, examples_per_chip)
  text = compiled.as_text()
  operations = parse(text)
  clock = CLOCK_HZ[topology.partition(':')[0]]
  milliseconds = {part: 1e3 * cycles / clock for part, cycles in cycles_by_part(operations).items()}
  total = sum(milliseconds.values())

  model_flops = objective.flops_per_example(objective.modality.example)
  per_chip = examples_per_chip * config.accumulate_steps * sum(model_flops.values())
  compiled_flops = compiled.cost_analysis()['flops']
  (known, others), (loop_count, heavy_loops) = uncharged(operations), loops(operations)
  reasons = []
  if others:
    reasons.append(f'the estimate has for free: {dict(others)}')
  if heavy_loops:
    reasons.append(f'{heavy_loops} loops with matrix products, whose bodies count once')
  if compiled_flops < 0.95 * per_chip:
    reasons.append(f'the program has {compiled_flops / per_chip:.3f} times the model FLOPs: some are not in the estimate')
  peak = peak_flops(device)
  return (
    {
      'milliseconds': total,
      'milliseconds_by_part': {part: milliseconds.get(part, 0.0) for part in PARTS},
      'mfu': None if reasons else per_chip / (peak * total / 1e3),
      'no_mfu_because': reasons,
      'model_flops_per_example': sum(model_flops.values()),
      'model_flops_by_part': model_flops,
      'compiled_over_model_flops': compiled_flops / per_chip,
      'peak_flops': peak,
      'clock_hz': clock,
      'peak_memory_bytes': compiled.memory_analysis().peak_memory_in_bytes,
      'uncharged': dict(known + others),
      'loops': loop_count,
      'loops_with_products': heavy_loops,
      'compile_seconds': seconds,
    },
    operations,
    text,
  )


def show(result: dict) -> None:
  """Prints the table."""
  total, flops = result['milliseconds'], result['model_flops_by_part']
  print(f'{"part":<10} {"ms":>8} {"of time":>8} {"of FLOPs":>9}')
  for part, milliseconds in result['milliseconds_by_part'].items():
    share = flops.get(part, 0) / result['model_flops_per_example']
    print(f'{part:<10} {milliseconds:8.2f} {milliseconds / total:8.1%} {share:9.1%}')
  print(f'{"step":<10} {total:8.2f}')
  mfu = result['mfu']
  print(f'estimated MFU     {"not given" if mfu is None else format(mfu, ".1%")}')
  for reason in result['no_mfu_because']:
    print(f'!!! no MFU: {reason}')
  print(f'model FLOPs       {result["model_flops_per_example"] / 1e9:.1f} G an example')
  print(f'compiled FLOPs    {result["compiled_over_model_flops"]:.3f} of the model FLOPs')
  print(f'free in estimate  {", ".join(f"{count} {kind}" for kind, count in result["uncharged"].items())}')
  print(f'peak memory       {result["peak_memory_bytes"] / 2**30:.2f} GiB a chip')
  print(f'compile time      {result["compile_seconds"]:.0f} s')


def main() -> None:
  """The command; see the module's docstring."""
  config = cli.config_of(_CONFIG)
  import importlib.metadata

  import jax

  from d2v_jax import config as configs
  from d2v_jax.errors import InputError

  chip = _TOPOLOGY.value.partition(':')[0]
  if chip not in CLOCK_HZ:
    raise InputError(f'--topology: the clock of {chip!r} is not known; known are {", ".join(CLOCK_HZ)}')
  if _EXAMPLES.value < 1:
    raise InputError(f'--examples_per_chip: found {_EXAMPLES.value}; at least 1 is needed')
  configs.validate(config)
  result, operations, text = estimate(config, _TOPOLOGY.value, _EXAMPLES.value)
  if _HLO.value:
    with open(_HLO.value, 'w') as file:
      file.write(text)
  for cycles, count, group in costliest(operations, _TOP.value):
    print(f'{1e3 * cycles / result["clock_hz"]:8.3f} ms {count:4d} x {group}')
  show(result)
  result |= {
    'topology': _TOPOLOGY.value,
    'examples_per_chip': _EXAMPLES.value,
    'dtype': config.dtype,
    'jax': jax.__version__,
    'libtpu': importlib.metadata.version('libtpu'),
  }
  print(json.dumps(result))


if __name__ == '__main__':
  cli.run(main)
