"""A program of its own that speaks lines of text: what espeak-ng says depends on what it said before, in its process.

It reads lines VOICE TAB RATE (words per minute) TAB PITCH (0 to 99) TAB TEXT, and writes the sample rate and the number of
samples of each line, native int64, and then all samples, native int16. Only this file imports `espeakng_loader`.
"""

import array
import ctypes
import os
import sys

import espeakng_loader

_SYNCHRONOUS, _WORDS, _UTF8 = 2, 2, 1  # AUDIO_OUTPUT_SYNCHRONOUS, POS_WORD, espeakCHARS_UTF8
_RATE, _PITCH = 1, 3  # espeak_PARAMETER


def main():
  library = ctypes.CDLL(espeakng_loader.get_library_path())
  rate = library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(espeakng_loader.get_data_path()), 0)
  if rate <= 0:
    sys.exit(f'its data cannot be read in {espeakng_loader.get_data_path()}')
  library.espeak_ng_SetRandSeed(ctypes.c_long(1))
  pieces = []

  @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
  def collect(samples, count, events):
    if samples:
      pieces.append(ctypes.string_at(samples, 2 * count))
    return 0

  library.espeak_SetSynthCallback(collect)
  waves = []
  for line in sys.stdin.buffer:
    voice, words_per_minute, pitch, text = line.rstrip(b'\n').split(b'\t')
    if library.espeak_SetVoiceByName(voice):
      sys.exit(f'it has no voice {voice.decode()}')
    library.espeak_SetParameter(_RATE, int(words_per_minute), 0)
    library.espeak_SetParameter(_PITCH, int(pitch), 0)
    pieces.clear()
    library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, _WORDS, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    waves.append(b''.join(pieces))
  sys.stdout.buffer.write(array.array('q', [rate, *(len(wave) // 2 for wave in waves)]).tobytes() + b''.join(waves))


if __name__ == '__main__':
  main()
