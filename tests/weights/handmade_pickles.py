"""Writes PyTorch files by hand, opcode by opcode, so that tests need no PyTorch and can say what no library would."""

import dataclasses
import pickle
import struct
import zipfile

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {'f4': 'FloatStorage', 'f2': 'HalfStorage', 'V2': 'BFloat16Storage', 'i8': 'LongStorage', 'b1': 'BoolStorage'}


@dataclasses.dataclass
class Name:
  """A class or function: 'module name'."""

  text: str


@dataclasses.dataclass
class Call:
  """REDUCE of a callable with arguments, then BUILD with a state if there is one."""

  function: object
  arguments: tuple
  state: object = None


@dataclasses.dataclass
class New(Call):
  """NEWOBJ, then BUILD: an object of a class."""


@dataclasses.dataclass
class Storage:
  """A storage with the elements of an array; `kind` overrides the type that it claims."""

  key: str
  array: np.ndarray
  size: int | None = None

  def identity(self):
    kind = STORAGES['V2' if self.array.dtype.name == 'bfloat16' else self.array.dtype.str[1:]]
    return ('storage', Name(f'torch {kind}'), self.key, 'cpu', self.array.size if self.size is None else self.size)


@dataclasses.dataclass
class Raw:
  """Opcodes as they are."""

  code: bytes


def tensor(storage, shape=None, strides=None, offset=0):
  """A tensor that views a storage; by default all of it, with the shape of its array."""
  shape = storage.array.shape if shape is None else shape
  if strides is None:
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
  return Call(
    Name('torch._utils _rebuild_tensor_v2'),
    (storage, offset, shape, strides, False, Call(Name('collections OrderedDict'), ())),
  )


def dumps(value, legacy=False):
  """The pickle of a value built of the classes above and of plain ones."""
  return b'\x80\x02' + _code(value, legacy) + b'.'


def _code(value, legacy):
  code = lambda item: _code(item, legacy)
  match value:
    case Raw():
      return value.code
    case Name():
      return f'c{value.text.replace(" ", chr(10))}\n'.encode()
    case Call():
      end = b'' if value.state is None else code(value.state) + b'b'
      return code(value.function) + code(tuple(value.arguments)) + (b'\x81' if isinstance(value, New) else b'R') + end
    case Storage():
      return code(value.identity() + ((None,) if legacy else ())) + b'Q'
    case dict():
      return b'}(' + b''.join(code(key) + code(item) for key, item in value.items()) + b'u'
    case list():
      return b'](' + b''.join(map(code, value)) + b'e'
    case tuple():
      return b'(' + b''.join(map(code, value)) + b't'
  return pickle.dumps(value, 2)[2:-1]


def storages_of(value):
  """All storages in a value, once each."""
  found = {}

  def visit(item):
    match item:
      case Storage():
        found.setdefault(item.key, item)
      case Call():
        visit(item.function), visit(tuple(item.arguments)), visit(item.state)
      case dict():
        visit(list(item.values()))
      case list() | tuple():
        for part in item:
          visit(part)

  visit(value)
  return found


def write_zip(path, value, order='little', entries=None):
  """Writes the form of today; `entries` overrides or (None) removes parts, by their name inside the folder."""
  content = {'data.pkl': dumps(value), 'byteorder': order.encode(), 'version': b'3\n'}
  for key, storage in storages_of(value).items():
    array = storage.array.view(f'u{storage.array.itemsize}') if storage.array.dtype.name == 'bfloat16' else storage.array
    content[f'data/{key}'] = (array.byteswap() if order == 'big' else array).tobytes()
  content |= entries or {}
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in content.items():
      if data is not None:
        archive.writestr(f'archive/{name}', data)
  return path


def write_stream(path, value):
  """Writes the form of PyTorch before 1.6."""
  storages = storages_of(value)
  system = {'protocol_version': PROTOCOL, 'little_endian': True, 'type_sizes': {'short': 2, 'int': 4, 'long': 4}}
  data = pickle.dumps(MAGIC, 2) + pickle.dumps(PROTOCOL, 2) + pickle.dumps(system, 2) + dumps(value, legacy=True)
  data += pickle.dumps(list(storages), 2)
  for storage in storages.values():
    data += struct.pack('<q', storage.array.size) + storage.array.tobytes()
  path.write_bytes(data)
  return path
