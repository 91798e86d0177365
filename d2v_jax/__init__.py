"""data2vec in JAX. `d2v_jax.load(path).features(images)` gives features; the commands are in the README."""


def __getattr__(name):
  # Loaded on first use: importing the package alone stays fast and starts no JAX backend.
  if name == 'load':
    from d2v_jax.model import load

    return load
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
