"""The form of the tables, and what their entries share."""

import ast
import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple


class Field(NamedTuple):
  """Where the value of one of our fields comes from."""

  names: tuple[str, ...]  # of the reference
  convert: Callable  # their values -> ours


@dataclasses.dataclass(frozen=True)
class Table:
  """What becomes of the reference's fields."""

  fields: dict[str, Field]  # our field -> the reference's field or fields and the conversion
  # Fields without a counterpart whose other values mean another network: refused.
  network: dict[str, object] = dataclasses.field(default_factory=dict)
  # Those whose other values mean that we would train differently: reported.
  training: dict[str, object] = dataclasses.field(default_factory=dict)
  # Those of the model that say nothing more, with the reason.
  irrelevant: dict[str, str] = dataclasses.field(default_factory=dict)

  @classmethod
  def merge(cls, parts: Iterable['Table']) -> 'Table':
    """Several as one; where two have the same entry, the later one's counts."""
    kinds = [field.name for field in dataclasses.fields(cls)]
    return cls(*({name: value for part in parts for name, value in getattr(part, kind).items()} for kind in kinds))

  @property
  def known(self) -> set[str]:
    """Every field of the reference that has a place."""
    named = {name for field in self.fields.values() for name in field.names}
    return {*self.network, *self.training, *self.irrelevant, *named}

  def renamed(self, rename: Callable[[str], str]) -> 'Table':
    """The same with other names for the reference's fields."""
    keys = lambda part: {rename(name): value for name, value in part.items()}
    fields = {ours: Field(tuple(map(rename, field.names)), field.convert) for ours, field in self.fields.items()}
    return Table(fields, keys(self.network), keys(self.training), keys(self.irrelevant))


def fields(ours, theirs, /, **sources):
  """Fields that share a prefix in our names and one in theirs; `ours=name` or `ours=(names..., convert)`."""
  table = {}
  for name, source in sources.items():
    *names, convert = source if isinstance(source, tuple) else (source, lambda value: value)
    table[f'{ours}{name}'] = Field(tuple(theirs + other for other in names), convert)
  return table


def first(values):
  """The first of a list; of anything else itself."""
  return values[0] if isinstance(values, (list, tuple)) else values


def numbers(values):
  """Numbers from a list, or from one as text."""
  return tuple(float(v) for v in (ast.literal_eval(values) if isinstance(values, str) else values))
