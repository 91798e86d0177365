"""Decoding: every format comes out as the same 16 kHz wave, and what is no sound file is refused with a reason."""

import io

import numpy as np
import pytest
import soundfile

from d2v_jax.data import audio


def tone(seconds=1.0, rate=16_000, hertz=440.0):
  return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(wave, rate=16_000, format='WAV', subtype=None):
  content = io.BytesIO()
  soundfile.write(content, wave, rate, format=format, subtype=subtype)
  return content.getvalue()


@pytest.mark.parametrize(
  ('format', 'subtype', 'tolerance'),
  [
    ('WAV', 'PCM_U8', 1e-2),
    ('WAV', 'PCM_16', 1e-4),
    ('WAV', 'PCM_24', 1e-6),
    ('WAV', 'PCM_32', 1e-6),
    ('WAV', 'FLOAT', 0),
    ('WAV', 'DOUBLE', 0),
    ('AIFF', 'PCM_16', 1e-4),
    ('FLAC', 'PCM_16', 1e-4),
    ('FLAC', 'PCM_24', 1e-6),
    ('OGG', 'VORBIS', 5e-2),
    ('MP3', None, 5e-2),
  ],
)
def test_formats(tmp_path, format, subtype, tolerance):
  wave = tone()
  path = tmp_path / 'a.wrong'  # libsndfile looks at the content
  path.write_bytes(encoded(wave, format=format, subtype=subtype))
  for data in (str(path), path.read_bytes()):
    assert audio.info(data) == (16_000, 16_000)
    found = audio.decode(data)
    assert found.dtype == np.float32 and found.shape == (16_000,)
    np.testing.assert_allclose(found[500:-500], wave[500:-500], atol=tolerance)


@pytest.mark.parametrize('name', ['a.flac', 'a.wav', 'a.raw', 'a.mp3', 'a'])
def test_names_do_not_matter(tmp_path, name):
  for format in ('FLAC', 'MP3', 'WAV'):
    (tmp_path / name).write_bytes(encoded(tone(), format=format))
    assert len(audio.decode(str(tmp_path / name))) == 16_000


@pytest.mark.parametrize('rate', [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_and_channels(rate):
  left, right = tone(0.73, rate), tone(0.73, rate, 880.0)
  found = audio.decode(encoded(np.stack([left, right], 1), rate, subtype='FLOAT'))
  assert found.shape == (audio.resampled_length(len(left), rate),) and found.dtype == np.float32
  expected = (tone(0.73) + tone(0.73, hertz=880.0)) / 2
  np.testing.assert_allclose(found[200:-200], expected[200 : len(found) - 200], atol=2e-3)


def test_lengths_are_known_before_decoding():
  for rate in (8_000, 11_025, 22_050, 44_100, 48_000, 16_000):
    for frames in (401, 997, 12_345):
      wave = np.zeros(frames, np.float32)
      assert len(audio.conform(wave, rate)) == audio.resampled_length(frames, rate)
  np.testing.assert_array_equal(audio.resampled_length(np.array([8000, 3]), np.array([8000, 44_100])), [16_000, 1])


@pytest.mark.parametrize('format', ['WAV', 'FLAC', 'OGG'])
def test_parts_are_read(format):
  content = encoded(np.random.default_rng(0).uniform(-0.5, 0.5, 20_000), format=format)
  np.testing.assert_array_equal(audio.decode(content, 5_000, 6_000), audio.decode(content)[5_000:6_000])
  np.testing.assert_array_equal(audio.decode(content, 5_000), audio.decode(content)[5_000:])
  with pytest.raises(ValueError, match='frames 5000 to 20001 are wanted, it has 20000'):
    audio.decode(content, 5_000, 20_001)
  assert len(audio.decode(content, expected=(20_000, 16_000))) == 20_000
  with pytest.raises(ValueError, match=r'has 20000 frames at 16000 Hz.* says 19999 at 16000 Hz'):
    audio.decode(content, expected=(19_999, 16_000))


def test_a_part_of_a_long_file_reads_only_that(tmp_path):
  path = tmp_path / 'zeros.wav'
  path.write_bytes(encoded(np.zeros(8_000, np.int16), 8_000))
  with open(path, 'r+b') as file:  # 3 hours as a sparse file
    size = 3 * 3600 * 8_000 * 2
    file.seek(4)
    file.write((36 + size).to_bytes(4, 'little'))
    file.seek(40)
    file.write(size.to_bytes(4, 'little'))
    file.truncate(44 + size)
  assert audio.info(str(path)) == (size // 2, 8_000)
  import resource

  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert len(audio.decode(str(path), 60_000_000, 60_080_000)) == 160_000
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB; the whole is 350 MB as float32


def bad_content():
  wave = tone()
  nan, infinite = wave.copy(), wave.copy()
  nan[77], infinite[77] = np.nan, np.inf
  flac, wav, mp3 = (encoded(wave, format=format) for format in ('FLAC', 'WAV', 'MP3'))
  return {
    'empty file': (b'', 'empty file'),
    'text': (b'THE DOG SEES TWO BIRDS\n' * 100, 'not audio that can be read'),
    'zeros': (bytes(4000), 'not audio that can be read'),
    'no samples': (encoded(wave[:0]), 'no samples'),
    'nan': (encoded(nan, subtype='FLOAT'), 'not finite'),
    'infinity': (encoded(infinite, subtype='DOUBLE'), 'not finite'),
    'cut wav': (wav[:-1000], 'cut off: 31000 of 32000 bytes'),
    'cut flac': (flac[: len(flac) // 2], 'damaged audio|cut off'),
    'cut mp3': (mp3[: len(mp3) // 2], 'cut off'),
    'header only': (flac[:4], 'not audio that can be read|damaged'),
    'damaged': (flac[:5000] + bytes(500) + flac[5500:], 'damaged audio|cut off'),
  }


@pytest.mark.parametrize('kind', bad_content())
def test_bad_files_are_refused(tmp_path, kind):
  content, reason = bad_content()[kind]
  path = tmp_path / 'bad.flac'
  path.write_bytes(content)
  for data in (str(path), content):
    with pytest.raises(ValueError, match=reason) as error:
      audio.decode(data)
    assert '\n' not in str(error.value) and len(str(error.value)) < 120


def test_missing_file_and_directory(tmp_path):
  for path, reason in ((tmp_path / 'none.wav', 'No such file'), (tmp_path, 'directory')):
    for function in (audio.info, audio.decode):
      with pytest.raises(ValueError, match=reason):
        function(str(path))


def test_streamed_wav_is_read():
  # Programs that write to a pipe leave the sizes at their largest value.
  content = bytearray(encoded(tone()))
  content[4:8] = content[40:44] = b'\xff' * 4
  assert len(audio.decode(bytes(content))) == 16_000


def test_standardise():
  wave = np.random.default_rng(0).normal(0.3, 0.02, 16_001).astype(np.float32)
  found = audio.standardise(wave)
  assert found.dtype == np.float32
  expected = (wave.astype(np.float64) - np.mean(wave, dtype=np.float64)) / np.sqrt(np.var(wave, dtype=np.float64) + 1e-5)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_array_equal(audio.standardise(np.full(500, 0.25, np.float32)), 0)
