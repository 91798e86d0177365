"""All that changes during training."""

from typing import Any

import jax
from flax import struct


@struct.dataclass
class TrainState:
  """The train state.

  Attributes:
    step: int32, batches consumed. Schedules, random keys and the position in the data are functions of it.
    params: student parameters, float32.
    teacher: teacher parameters, float32; an empty dict for tasks without one.
    opt_state: of the optimiser; its count is the number of updates applied, `step` minus the skipped ones.
  """

  step: jax.Array
  params: Any
  teacher: Any
  opt_state: Any
