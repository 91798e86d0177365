"""Reads PyTorch's checkpoint files without PyTorch, and without running anything that stands in them.

A `.pt` file is a pickle, and unpickling runs code: a pickle names functions and has them called. So the pickle is not
unpickled here but interpreted, by a machine that knows the operations on data and nothing else. A name never becomes a
Python object: it is looked up in tables of what such files contain (tensors, containers, numpy values, the config classes of
omegaconf and fairseq), where it stands for one of the builders below or for an inert record of its arguments and state.
Any other name is refused. What comes out are dicts, lists, numbers, strings and numpy arrays.
"""

import dataclasses
import io
import pickletools
import re
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from d2v_jax.errors import InputError

_STORAGE_DTYPES = {
  'DoubleStorage': np.dtype(np.float64),
  'FloatStorage': np.dtype(np.float32),
  'HalfStorage': np.dtype(np.float16),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'LongStorage': np.dtype(np.int64),
  'IntStorage': np.dtype(np.int32),
  'ShortStorage': np.dtype(np.int16),
  'CharStorage': np.dtype(np.int8),
  'ByteStorage': np.dtype(np.uint8),
  'BoolStorage': np.dtype(np.bool_),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first object of a file written before torch 1.6
_LEGACY_PROTOCOL = 1001
# What interpreting bytes that were not written by torch.save can end in.
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, EOFError, struct.error)

_PLAIN_TYPES = ('dict', 'list', 'tuple', 'int', 'long', 'float', 'str', 'bool')
# Names that may stand for a type or a value but build nothing: they come out as the string 'module.name'.
_TYPES = {
  *(f'{module}.{name}' for module in ('torch', 'torch.cuda') for name in _STORAGE_DTYPES),
  *(f'torch.{name}' for name in ('float32', 'float', 'float64', 'float16', 'bfloat16', 'int64', 'int32', 'uint8', 'bool')),
  *(f'{module}.{name}' for module in ('builtins', '__builtin__') for name in _PLAIN_TYPES),
  'torch.nn.parameter.Parameter',
  'torch.Tensor',
  'torch._tensor.Tensor',
  'numpy.ndarray',
}
# Classes of other programs: an object of theirs becomes its state or arguments. Their code is neither needed nor looked for.
_RECORDS = re.compile(
  r'(argparse\.Namespace|_?operator\.getitem|(omegaconf|fairseq|examples\.data2vec|data2vec|typing)\..+)'
)


@dataclasses.dataclass(frozen=True)
class _Name:
  """A class or function that the pickle names; only ever a string to us."""

  name: str


@dataclasses.dataclass(eq=False)
class _Record:
  """What the pickle says about an object of a class that is not built here."""

  name: str
  arguments: tuple
  state: Any = None


@dataclasses.dataclass(eq=False)
class _Storage:
  """The flat data of one or more tensors, read after the pickle."""

  key: str
  dtype: np.dtype
  size: int  # elements


@dataclasses.dataclass(eq=False)
class _Tensor:
  storage: _Storage
  offset: int
  shape: tuple
  strides: tuple  # in elements


@dataclasses.dataclass(eq=False)
class _NumpyArray:
  """A numpy array or dtype on its way: its content arrives with the state."""

  value: Any = None


def read(path, only=None) -> dict:
  """Returns the content of a PyTorch file as dicts, lists, scalars, strings and read-only numpy arrays.

  Tensors keep their dtype (bfloat16 as `ml_dtypes.bfloat16`), shape and order of elements.

  Args:
    path: a file written by `torch.save`, of the zip form or the older stream form.
    only: keys of the top-level dict to read; the rest, an optimizer's state say, is left in the file.

  Raises:
    InputError: the file is missing, damaged, no PyTorch file, or names a class or function that has no place in one.
  """
  try:
    with open(path, 'rb') as file:
      start = file.read(2)
      if start == b'PK':
        return _read_zip(path, only)
      file.seek(0)
      return _read_stream(path, file, only)
  except OSError as error:
    raise InputError(f'{path}: cannot be read ({error.strerror or error}); give a PyTorch checkpoint file') from error
  except zipfile.BadZipFile as error:
    raise InputError(f'{path}: damaged or truncated ({error}); fetch or copy it again') from error
  except _MALFORMED as error:
    raise InputError(
      f'{path}: not a readable PyTorch checkpoint ({_one_line(error)}); give a file written by torch.save'
    ) from error


def _read_zip(path, only):
  with zipfile.ZipFile(path) as archive:
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.endswith('/data.pkl')]
    if len(pickles) != 1:
      raise InputError(f'{path}: a zip with {len(pickles)} data.pkl entries, not one; give a file written by torch.save')
    folder = pickles[0].removesuffix('data.pkl')
    content = _Interpreter(path).run(io.BytesIO(archive.read(pickles[0])))
    order = archive.read(folder + 'byteorder').decode() if folder + 'byteorder' in entries else 'little'

    def load(storage):
      name = f'{folder}data/{storage.key}'
      if name not in entries:
        raise InputError(f'{path}: entry {name} of a tensor is missing; fetch or copy the file again')
      expected = storage.size * storage.dtype.itemsize
      if entries[name].file_size != expected:
        raise InputError(f'{path}: entry {name} has {entries[name].file_size} bytes, not {expected}; fetch the file again')
      return _decode(archive.read(name), storage.dtype, order)

    return _plain(path, content, only, load)


def _read_stream(path, file, only):
  """The older form: five pickles, then every storage as its size (int64) and its elements."""
  if file.read(1) != b'\x80':
    raise InputError(f'{path}: neither a zip nor a pickle; give a file written by torch.save')
  file.seek(0)
  interpreter = _Interpreter(path)
  magic, protocol, system = (interpreter.run(file) for _ in range(3))
  if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
    raise InputError(f'{path}: a pickle, but not of PyTorch; give a file written by torch.save')
  content = interpreter.run(file)
  order = 'little' if system['little_endian'] else 'big'
  blocks = {}
  for key in interpreter.run(file):
    storage = interpreter.storages[str(key)]
    (size,) = struct.unpack('<q' if order == 'little' else '>q', file.read(8))
    data = file.read(size * storage.dtype.itemsize) if size == storage.size else b''
    if len(data) != storage.size * storage.dtype.itemsize:
      raise InputError(f'{path}: storage {key} is cut short or has another size than its tensor; fetch the file again')
    blocks[storage.key] = _decode(data, storage.dtype, order)
  return _plain(path, content, only, lambda storage: blocks[storage.key])


def _decode(data: bytes, dtype, order: str):
  if order == 'little':
    return np.frombuffer(data, dtype)
  return np.frombuffer(data, f'u{dtype.itemsize}').byteswap().view(dtype)


def _one_line(error) -> str:
  return f'{type(error).__name__}: {error}'.splitlines()[0]


class _Interpreter:
  """Runs pickles as data: a stack, a memo, and the tables above. It calls nothing but this file's builders."""

  def __init__(self, path):
    self.path = path
    self.storages = {}  # key to _Storage, over all pickles of a file

  def run(self, stream):
    """Returns the object that the next pickle of the stream describes."""
    stack, memo, marks = [], {}, []

    def take_to_mark():
      start = marks.pop()
      values = stack[start:]
      del stack[start:]
      return values

    for operation, argument, _ in pickletools.genops(stream):
      match operation.name:
        case 'PROTO' | 'FRAME':
          pass
        case 'STOP':
          return stack.pop()
        case 'MARK':
          marks.append(len(stack))
        case 'POP':
          stack.pop()
        case 'POP_MARK':
          take_to_mark()
        case 'DUP':
          stack.append(stack[-1])
        case 'NONE':
          stack.append(None)
        case 'NEWTRUE' | 'NEWFALSE':
          stack.append(operation.name == 'NEWTRUE')
        case 'EMPTY_LIST':
          stack.append([])
        case 'EMPTY_DICT':
          stack.append({})
        case 'EMPTY_SET':
          stack.append(set())
        case 'EMPTY_TUPLE':
          stack.append(())
        case 'LIST':
          stack.append(take_to_mark())
        case 'TUPLE':
          stack.append(tuple(take_to_mark()))
        case 'FROZENSET':
          stack.append(frozenset(take_to_mark()))
        case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
          count = int(operation.name[-1])
          stack[-count:] = [tuple(stack[-count:])]
        case 'DICT':
          values = take_to_mark()
          stack.append(dict(zip(values[::2], values[1::2], strict=True)))
        case 'APPEND':
          value = stack.pop()
          self._expect(stack[-1], list).append(value)
        case 'APPENDS':
          values = take_to_mark()
          self._expect(stack[-1], list).extend(values)
        case 'ADDITEMS':
          values = take_to_mark()
          self._expect(stack[-1], set).update(values)
        case 'SETITEM':
          value, key = stack.pop(), stack.pop()
          self._expect(stack[-1], dict)[key] = value
        case 'SETITEMS':
          values = take_to_mark()
          self._expect(stack[-1], dict).update(zip(values[::2], values[1::2], strict=True))
        case 'PUT' | 'BINPUT' | 'LONG_BINPUT':
          memo[argument] = stack[-1]
        case 'MEMOIZE':
          memo[len(memo)] = stack[-1]
        case 'GET' | 'BINGET' | 'LONG_BINGET':
          stack.append(memo[argument])
        case 'GLOBAL':
          stack.append(self._name('.'.join(argument.split(' ', 1))))
        case 'STACK_GLOBAL':
          name, module = stack.pop(), stack.pop()
          stack.append(self._name(f'{module}.{name}'))
        case 'REDUCE' | 'NEWOBJ':
          arguments, name = stack.pop(), stack.pop()
          stack.append(self._build(name, self._expect(arguments, tuple)))
        case 'NEWOBJ_EX':
          _, arguments, name = stack.pop(), stack.pop(), stack.pop()
          stack.append(self._build(name, self._expect(arguments, tuple)))
        case 'BUILD':
          state = stack.pop()
          self._set_state(stack[-1], state)
        case 'BINPERSID':
          stack.append(self._storage(stack.pop()))
        case _ if argument is not None and isinstance(argument, (int, float, str, bytes, bytearray)):
          if operation.name in ('INST', 'EXT1', 'EXT2', 'EXT4', 'PERSID'):
            raise InputError(f'{self.path}: pickle operation {operation.name} is refused; torch.save does not write it')
          stack.append(argument)
        case _:
          raise InputError(f'{self.path}: pickle operation {operation.name} is refused; torch.save does not write it')
    raise EOFError('the pickle has no end')

  def _expect(self, value, kind):
    if not isinstance(value, kind):
      raise InputError(f'{self.path}: the pickle treats a {type(value).__name__} as a {kind.__name__}; the file is damaged')
    return value

  def _name(self, name):
    if name in _BUILDERS or name in _TYPES or _RECORDS.fullmatch(name):
      return _Name(name)
    raise InputError(
      f'{self.path}: refused: it names {name!r}, which has no place in a checkpoint and may run code; nothing was executed'
    )

  def _build(self, name, arguments):
    self._expect(name, _Name)
    if name.name in _BUILDERS:
      return _BUILDERS[name.name](*arguments)
    if _RECORDS.fullmatch(name.name):
      return _Record(name.name, arguments)
    raise InputError(f'{self.path}: refused: it calls {name.name!r}, which only names a type; nothing was executed')

  def _set_state(self, target, state):
    if isinstance(target, _Record):
      target.state = state
    elif isinstance(target, _NumpyArray):
      target.value = _numpy_state(target.value, state)
    elif not isinstance(target, (dict, _Tensor)):  # of an OrderedDict or a tensor: attributes, that carry no weights
      raise InputError(f'{self.path}: the pickle sets the state of a {type(target).__name__}; the file is damaged')

  def _storage(self, identity):
    kind, name, key, _, size, *view = self._expect(identity, tuple)
    dtype = _STORAGE_DTYPES.get(self._expect(name, _Name).name.rpartition('.')[2])
    if kind != 'storage' or dtype is None or any(part is not None for part in view):
      raise InputError(f'{self.path}: refused: a persistent object {kind!r} of {name.name!r}; only storages are known')
    storage = self.storages.setdefault(str(key), _Storage(str(key), dtype, self._expect(size, int)))
    if (storage.dtype, storage.size) != (dtype, size):
      raise InputError(f'{self.path}: storage {key} is described in two ways; the file is damaged')
    return storage


def _rebuild_tensor(storage, offset, shape, strides, *_):
  """A view into a storage; refuses one that reaches outside it."""
  numbers = (offset, *shape, *strides)
  if not isinstance(storage, _Storage) or not all(isinstance(number, int) and number >= 0 for number in numbers):
    raise ValueError('a tensor is not described by a storage and sizes')
  last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
  if 0 not in shape and last >= storage.size:
    raise ValueError(f'a tensor reaches to element {last} of a storage of {storage.size}')
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_from_type(function, _, arguments, __):
  """A tensor subclass: what remains of it is the tensor."""
  if not isinstance(function, _Name) or function.name not in _TENSOR_BUILDERS:
    raise ValueError('a tensor is to be rebuilt by something else than a tensor builder')
  return _TENSOR_BUILDERS[function.name](*arguments)


def _numpy_dtype(code, *_):
  if not re.fullmatch(r'[<>|=]?[biufS?]\d*', code):
    raise ValueError(f'numpy dtype {code!r} is not a plain number or byte string')
  return _NumpyArray(np.dtype(code))


def _numpy_scalar(dtype, data):
  (value,) = np.frombuffer(data, dtype.value)
  return value.item()


def _numpy_state(value, state):
  if isinstance(value, np.dtype):
    return value.newbyteorder(state[1]) if state[1] in '<>' else value
  _, shape, dtype, fortran, data = state
  return np.frombuffer(data, dtype.value).reshape(shape, order='F' if fortran else 'C')


def _encoded(text, encoding):
  if encoding != 'latin1':
    raise ValueError(f'bytes stored as {encoding!r}')
  return text.encode('latin1')


_TENSOR_BUILDERS = {'torch._utils._rebuild_tensor': _rebuild_tensor, 'torch._utils._rebuild_tensor_v2': _rebuild_tensor}
_BUILDERS = {
  **_TENSOR_BUILDERS,
  'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
  'torch._utils._rebuild_parameter_with_state': lambda tensor, *_: tensor,
  'torch._tensor._rebuild_from_type_v2': _rebuild_from_type,
  'torch.Size': lambda sizes: tuple(sizes),
  'torch.device': lambda *parts: ':'.join(map(str, parts)),
  'collections.OrderedDict': lambda pairs=(): dict(pairs),
  'collections.defaultdict': lambda *_: {},
  '_codecs.encode': _encoded,
  'numpy.dtype': _numpy_dtype,
  **{f'numpy.{core}.multiarray.scalar': _numpy_scalar for core in ('core', '_core')},
  **{f'numpy.{core}.multiarray._reconstruct': lambda *_: _NumpyArray() for core in ('core', '_core')},
  **{
    f'{module}.{name}': kind
    for module in ('builtins', '__builtin__')
    for name, kind in (('set', set), ('frozenset', frozenset))
  },
}


def _plain(path, content, only, load):
  """Turns the interpreter's values into plain ones; `load(storage)` gives the elements of a storage."""
  if only is not None:
    if not isinstance(content, dict):
      raise InputError(f'{path}: holds a {type(content).__name__}, not a dict of {", ".join(only)}')
    content = {key: value for key, value in content.items() if key in only}
  done = {}  # id of a container or storage (all alive in `content`) to its plain form: sharing stays, cycles end

  def convert(value):
    match value:
      case _Name():
        return value.name
      case _NumpyArray():
        return value.value
      case _Record():
        return convert(_record_content(value))
      case _Tensor(storage=storage):
        if id(storage) not in done:
          done[id(storage)] = load(storage)
        elements = done[id(storage)]
        strides = [stride * elements.itemsize for stride in value.strides]
        return np.lib.stride_tricks.as_strided(elements[value.offset :], value.shape, strides, writeable=False)
      case dict():
        if id(value) not in done:
          done[id(value)] = result = {}
          result.update((_key(convert(key)), convert(item)) for key, item in value.items())
        return done[id(value)]
      case list():
        if id(value) not in done:
          done[id(value)] = result = []
          result.extend(map(convert, value))
        return done[id(value)]
      case tuple():
        if id(value) not in done:
          done[id(value)] = tuple(map(convert, value))
        return done[id(value)]
      case set() | frozenset():
        return list(map(convert, value))
    return value

  return convert(content)


def _key(key):
  return key if isinstance(key, (str, int, float, bytes, type(None))) else str(key)


def _record_content(record):
  """What stands for an object in plain data: an omegaconf node's content, a state, or arguments (an enum's value)."""
  state = record.state
  if isinstance(state, dict) and record.name.startswith('omegaconf.'):
    return state.get('_content', state.get('_val'))
  if state is not None:
    return state
  return record.arguments[0] if len(record.arguments) == 1 else record.arguments
