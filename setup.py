"""Installs the package: `pip install -e .` plus any of the extras tpu, cuda, tensorflow, tfds, speech-sample and dev."""

from setuptools import find_packages, setup

SPEECH_SAMPLE = ['espeakng-loader>=0.2.4']
TFDS = ['tensorflow-datasets>=4.9.9', 'array_record>=0.5', 'importlib_resources']

setup(
  name='d2v_jax',
  version='0.1.0',
  description='data2vec 2.0 in JAX: one self-supervised learning algorithm for images, speech and text',
  license='Apache-2.0',
  packages=find_packages(include=['d2v_jax', 'd2v_jax.*']),
  python_requires='>=3.11',
  install_requires=[
    'absl-py>=2.0',
    'clu>=0.0.12',
    'flax>=0.12',
    'grain>=0.2.18',
    'jax>=0.10.2',
    'matplotlib>=3.8',
    'ml_collections>=1.1',
    'numpy>=2.0',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12',
    'pillow>=10.0',
    'soundfile>=0.13',
    'soxr>=0.5',
    'tensorboardX>=2.6',
    'tokenizers>=0.21',
  ],
  extras_require={
    'tpu': ['jax[tpu]>=0.10.2'],
    'cuda': ['jax[cuda12]>=0.10.2'],
    # TensorFlow is needed for nothing but TensorBoard events by clu's writer, and to prepare datasets with TFDS.
    'tensorflow': ['tensorflow>=2.16', 'tensorboard>=2.16', *TFDS],
    'tfds': TFDS,
    # Speech made on the spot, for the source sample:sentences.
    'speech-sample': SPEECH_SAMPLE,
    'dev': ['pytest>=8', 'pytest-xdist>=3', 'ruff>=0.9', 'scikit-learn>=1.5', 'jiwer>=3', 'regex', *SPEECH_SAMPLE, *TFDS],
  },
)
