"""The reader of PyTorch files: it gets the numbers right, and nothing in a file can run."""

import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from d2v_jax.checkpoints import torch_pickle
from d2v_jax.errors import InputError
from tests.weights.handmade_pickles import Call, Name, New, Raw, Storage, dumps, tensor, write_stream, write_zip

ORDERED = Name('collections OrderedDict')


@pytest.fixture(params=['zip', 'stream'])
def write(request, tmp_path):
  """Both forms of a file."""
  writer = write_zip if request.param == 'zip' else write_stream
  return lambda value: writer(tmp_path / 'checkpoint.pt', value)


def refused(path) -> str:
  """Reads a file that must be refused with one line, which is returned."""
  with pytest.raises(InputError) as error:
    torch_pickle.read(path)
  message = str(error.value)
  assert '\n' not in message
  assert str(path) in message
  return message


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_])
def test_dtypes(write, dtype):
  array = (np.arange(6) % 4).reshape(2, 3).astype(dtype)
  found = torch_pickle.read(write({'w': tensor(Storage('0', array))}))['w']
  assert found.dtype == array.dtype
  np.testing.assert_array_equal(found, array)


def test_views_of_a_shared_storage(write):
  storage = Storage('7', np.arange(24, dtype=np.float32))
  found = torch_pickle.read(
    write(
      {
        'whole': tensor(storage, (4, 6)),
        'transposed': tensor(storage, (6, 4), (1, 6)),
        'part': tensor(storage, (2, 2), (6, 1), offset=8),
        'scalar': tensor(storage, (), (), offset=23),
        'repeated': tensor(storage, (3, 2), (0, 1), offset=4),
        'empty': tensor(storage, (0, 6), (6, 1)),
      }
    )
  )
  grid = np.arange(24, dtype=np.float32).reshape(4, 6)
  expected = {
    'whole': grid,
    'transposed': grid.T,
    'part': grid[1:3, 2:4],
    'scalar': grid[3, 5],
    'repeated': np.tile(grid[0, 4:6], (3, 1)),
    'empty': grid[:0],
  }
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize('dtype', [np.float32, np.int64, ml_dtypes.bfloat16])
def test_big_endian(tmp_path, dtype):
  array = np.arange(1, 7).astype(dtype)
  path = write_zip(tmp_path / 'checkpoint.pt', {'w': tensor(Storage('0', array))}, order='big')
  np.testing.assert_array_equal(torch_pickle.read(path)['w'], array)


def test_objects_become_plain_data(write):
  any_node = lambda value: New(
    Name('omegaconf.nodes AnyNode'), (), {'_metadata': {'ref_type': Name('typing Any')}, '_val': value}
  )
  dict_config = New(Name('omegaconf.dictconfig DictConfig'), (), {
    '_metadata': Name('builtins dict'),
    '_content': {
      'depth': any_node(12),
      'betas': New(Name('omegaconf.listconfig ListConfig'), (), {'_content': [any_node(0.9), any_node(0.95)]}),
      'backend': any_node(Call(Name('fairseq.dataclass.constants DDP_BACKEND'), ('c10d',))),
    },
  })  # fmt: skip
  state = Call(ORDERED, (), {'_metadata': Call(ORDERED, ())})
  found = torch_pickle.read(
    write(
      {
        'cfg': dict_config,
        'args': New(Name('argparse Namespace'), (), {'arch': 'x', 'lr': [0.1]}),
        'model': state,
        'parameter': Call(
          Name('torch._utils _rebuild_parameter'), (tensor(Storage('0', np.ones(2, np.float32))), True, state)
        ),
        'modality': Call(Name('examples.data2vec.data.modality Modality'), (2,)),
        'counts': Call(Name('collections defaultdict'), (Name('builtins int'),)),
        'lr': Call(
          Name('numpy.core.multiarray scalar'),
          (
            Call(Name('numpy dtype'), ('f8', False, True), (3, '<', None, None, None, -1, -1, 0)),
            Call(Name('_codecs encode'), (np.float64(0.25).tobytes().decode('latin1'), 'latin1')),
          ),
        ),
        'dtype': Name('torch float16'),
        'size': Call(Name('torch Size'), ((2, 3),)),
      }
    )
  )
  assert found['cfg'] == {'depth': 12, 'betas': [0.9, 0.95], 'backend': 'c10d'}
  assert found['args'] == {'arch': 'x', 'lr': [0.1]}
  assert (found['model'], found['modality'], found['counts'], found['lr']) == ({}, 2, {}, 0.25)
  assert (found['dtype'], found['size']) == ('torch.float16', (2, 3))
  np.testing.assert_array_equal(found['parameter'], [1, 1])


def test_a_container_that_holds_itself(write):
  # Memo 0 is the list; it gets itself as its element.
  found = torch_pickle.read(write({'loop': Raw(b']q\x00h\x00a')}))['loop']
  assert found[0] is found


def test_only_reads_what_is_asked_for(tmp_path):
  storages = {name: Storage(name, np.ones(3, np.float32)) for name in ('model', 'optimizer')}
  path = write_zip(
    tmp_path / 'c.pt', {key: tensor(value) for key, value in storages.items()}, entries={'data/optimizer': None}
  )
  assert set(torch_pickle.read(path, only=('model',))) == {'model'}
  assert 'data/optimizer' in refused(path)


class Evil:
  """What an attacker would pickle."""

  def __init__(self, function, *arguments):
    self.function, self.arguments = function, arguments

  def __reduce__(self):
    return self.function, self.arguments


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('evil', ['system', 'eval', 'popen', 'exec'])
def test_a_pickle_that_runs_code_runs_nothing(tmp_path, protocol, evil):
  import os

  marker = tmp_path / 'marker'
  statement = f'open({str(marker)!r}, "w").close()'
  payload = {
    'system': Evil(os.system, f'touch {marker}'),
    'eval': Evil(eval, statement),
    'exec': Evil(exec, statement),
    'popen': Evil(subprocess.check_call, ['touch', str(marker)]),
  }[evil]
  data = pickle.dumps({'model': {'w': payload}}, protocol)
  pickle.loads(data)
  assert marker.exists(), 'the payload must work, or this test shows nothing'
  marker.unlink()

  path = write_zip(tmp_path / 'checkpoint.pt', None, entries={'data.pkl': data})
  message = refused(path)
  assert 'refused' in message
  assert {'system': 'system', 'eval': 'eval', 'exec': 'exec', 'popen': 'check_call'}[evil] in message
  path.write_bytes(data)
  refused(path)
  assert not marker.exists()


def attacks(marker):
  """Ways to smuggle a call of os.system past a list of allowed names, and what the refusal must name."""
  system, command = Name('os system'), f'touch {marker}'
  storage = Storage('0', np.ones(2, np.float32))
  return {
    'reduce': (Call(system, (command,)), 'os.system'),
    'posix': (Call(Name('posix system'), (command,)), 'posix.system'),
    'in the arguments of a tensor': (
      Call(Name('torch._utils _rebuild_tensor_v2'), (storage, 0, (2,), (1,), False, Call(system, (command,)))),
      'os.system',
    ),
    'as a subclass builder': (
      Call(Name('torch._tensor _rebuild_from_type_v2'), (Name('builtins list'), Name('torch Tensor'), (command,), None)),
      'tensor builder',
    ),
    'as the function of a defaultdict': (Call(Name('collections defaultdict'), (system,)), 'os.system'),
    'as the state of an object': (New(Name('argparse Namespace'), (), {'__setstate__': system}), 'os.system'),
    'by a state on a class': (Call(ORDERED, (), Call(system, (command,))), 'os.system'),
    'in the state of a name': (Raw(dumps(Name('argparse Namespace'))[2:-1] + dumps({'__init__': 1})[2:-1] + b'b'), '_Name'),
    'getattr': (Call(Name('builtins getattr'), (Name('builtins dict'), 'x')), 'builtins.getattr'),
    'import': (Call(Name('builtins __import__'), ('os',)), 'builtins.__import__'),
    'partial': (Call(Name('functools partial'), ('x',)), 'functools.partial'),
    'a type that is called': (Call(Name('builtins dict'), ((),)), 'builtins.dict'),
    'torch.load inside': (Call(Name('torch.storage _load_from_bytes'), (b'x',)), 'torch.storage._load_from_bytes'),
    'other codec': (Call(Name('_codecs encode'), ('x', 'rot13')), 'rot13'),
    'python objects in numpy': (Call(Name('numpy dtype'), ('O', False, True)), "'O'"),
    'object of the old kind': (Raw(b'(' + dumps(command)[2:-1] + b'ios\nsystem\n'), 'INST'),
    'call of the old kind': (Raw(b'(' + dumps(system)[2:-1] + dumps(command)[2:-1] + b'o'), 'os.system'),
    'extension registry': (Raw(b'\x82\x01'), 'EXT1'),
    'persistent id as text': (Raw(b'Pos.system\n'), 'PERSID'),
    'persistent object': (Raw(dumps(('module', Name('torch Tensor'), 'x', 'y', 1))[2:-1] + b'Q'), 'module'),
    'name on the stack': (Raw(dumps('os')[2:-1] + dumps('system')[2:-1] + b'\x93'), 'os.system'),
    'name with dots': (
      Raw(dumps('torch')[2:-1] + dumps('serialization.os.system')[2:-1] + b'\x93'),
      'serialization.os.system',
    ),
  }


@pytest.mark.parametrize('attack', attacks(''))
def test_attacks_are_refused_by_name(write, tmp_path, attack):
  value, named = attacks(tmp_path / 'marker')[attack]
  assert named in refused(write({'model': {'w': value}, 'cfg': {}}))
  assert not (tmp_path / 'marker').exists()


def test_records_of_other_programs_run_nothing(write, tmp_path):
  # Anything of omegaconf or fairseq is a record: not imported, not called, with its state as data.
  function = Call(Name('fairseq.utils import_user_module'), ({'user_dir': 'x'},))
  odd = New(Name('argparse Namespace'), ('x',), {'__class__': 'y', '__setstate__': 'z'})
  found = torch_pickle.read(write({'a': function, 'b': odd}))
  assert found == {'a': {'user_dir': 'x'}, 'b': {'__class__': 'y', '__setstate__': 'z'}}


def test_needs_none_of_the_writers(tmp_path):
  path = write_zip(tmp_path / 'c.pt', {'cfg': New(Name('omegaconf.nodes AnyNode'), (), {'_val': 1})})
  code = (
    f'import sys; from d2v_jax.checkpoints import torch_pickle; assert torch_pickle.read({str(path)!r}) == {{"cfg": 1}}; '
    'assert not {"torch", "omegaconf", "fairseq", "argparse.Namespace"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def example():
  weights = {f'layer.{i}': tensor(Storage(str(i), np.full((3, 4), i, np.float32))) for i in range(3)}
  return {'model': weights, 'args': New(Name('argparse Namespace'), (), {'depth': 3})}


def test_truncated_files(write):
  path = write(example())
  assert torch_pickle.read(path)['args'] == {'depth': 3}
  data = path.read_bytes()
  for size in (0, 1, 2, 3, 20, len(data) // 2, len(data) - 100, len(data) - 1):
    path.write_bytes(data[:size])
    refused(path)


def test_wrong_entries(tmp_path):
  path = tmp_path / 'c.pt'
  assert 'data/1' in refused(write_zip(path, example(), entries={'data/1': None}))
  assert '44 bytes, not 48' in refused(write_zip(path, example(), entries={'data/1': bytes(44)}))
  assert '0 data.pkl' in refused(write_zip(path, example(), entries={'data.pkl': None}))
  assert '2 data.pkl' in refused(write_zip(path, example(), entries={'more/data.pkl': b'.'}))
  path.write_text('no pickle')
  assert 'neither a zip nor a pickle' in refused(path)
  path.write_bytes(pickle.dumps({'model': 1}, 2))
  assert 'refused' in refused(path) or 'not of PyTorch' in refused(path) or 'not a readable' in refused(path)
  path.unlink()
  assert 'No such file' in refused(path)
  assert 'directory' in refused(tmp_path)


def test_damaged_numbers_are_noticed(tmp_path):
  path = write_zip(tmp_path / 'c.pt', {'w': tensor(Storage('0', np.full(64, 3, np.float32)))})
  data = bytearray(path.read_bytes())
  data[data.index(np.float32(3).tobytes() * 8) + 5] ^= 1
  path.write_bytes(bytes(data))
  assert 'CRC' in refused(path)


@pytest.mark.parametrize(
  ('shape', 'strides', 'offset'), [((3,), (1,), 4), ((7,), (1,), 0), ((2, 2), (5, 1), 0), ((2,), (-1,), 3), ((2,), (1,), -1)]
)
def test_views_outside_their_storage(write, shape, strides, offset):
  refused(write({'w': tensor(Storage('0', np.arange(6, dtype=np.float32)), shape, strides, offset)}))


def test_a_storage_described_in_two_ways(write):
  array = np.arange(6, dtype=np.float32)
  assert 'two ways' in refused(write({'a': tensor(Storage('0', array)), 'b': tensor(Storage('0', array, size=5))}))


def test_random_damage_never_escapes(tmp_path):
  data = dumps(example())
  random = np.random.default_rng(0)
  outcomes = set()
  for _ in range(400):
    broken = bytearray(data)
    broken[random.integers(len(data))] = random.integers(256)
    path = write_zip(tmp_path / 'c.pt', example(), entries={'data.pkl': bytes(broken)})
    try:
      torch_pickle.read(path)
      outcomes.add('read')
    except InputError as error:
      assert '\n' not in str(error)
      outcomes.add('refused')
  assert outcomes == {'read', 'refused'}


@pytest.mark.parametrize('zipped', [True, False])
def test_what_pytorch_writes(tmp_path, zipped):
  torch = pytest.importorskip('torch', reason='PyTorch is not installed')
  base = torch.arange(12.0).reshape(3, 4)
  content = {
    'base': base,
    'view': base.T[1:, ::2],
    'half': torch.randn(3).half(),
    'brain': torch.randn(3).bfloat16(),
    'parameter': torch.nn.Parameter(torch.randn(2, 2)),
    'int': torch.tensor([1, 2]),
    'empty': torch.zeros(0, 3),
    'module': torch.nn.Linear(3, 2).state_dict(),
    'dtype': torch.float16,
    'size': torch.Size([1, 2]),
    'list': [1, 'a', None, {2}, (True, 1.5)],
  }
  torch.save(content, tmp_path / 'c.pt', _use_new_zipfile_serialization=zipped)
  found = torch_pickle.read(tmp_path / 'c.pt')
  for name in ('base', 'view', 'half', 'parameter', 'int', 'empty'):
    np.testing.assert_array_equal(found[name], content[name].detach().numpy(), err_msg=name)
  np.testing.assert_array_equal(found['brain'].astype(np.float32), content['brain'].float().numpy())
  np.testing.assert_array_equal(found['module']['weight'], content['module']['weight'].numpy())
  assert (found['dtype'], found['size'], found['list']) == ('torch.float16', (1, 2), [1, 'a', None, [2], (True, 1.5)])
