"""Keeps the C allocator from returning memory to the system between steps, for training on CPU."""

import ctypes
import platform

# Parameters of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
  """Makes the process reuse freed memory; call it before the first computation. Returns whether that is possible here.

  XLA's CPU backend allocates a program's temporary memory, gigabytes for a real model, anew at every call. glibc takes such
  blocks from the system and gives them back when freed, so every step pays for hundreds of thousands of page faults: a fifth
  of the time of a ViT-B step. Afterwards the process keeps the memory of its largest moment.
  """
  if platform.libc_ver()[0] != 'glibc':
    return False
  mallopt = ctypes.CDLL(None).mallopt
  return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)])
