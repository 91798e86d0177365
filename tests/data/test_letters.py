"""Letters: fairseq's order, transcripts as people write them, and what must be refused."""

import numpy as np
import pytest

from d2v_jax.data.letters import BLANK, BOUNDARY, SPECIAL, VOCABULARY, decode, encode, normalise


def test_vocabulary_is_in_the_order_of_fairseq():
  assert ' '.join(VOCABULARY) == "<s> <pad> </s> <unk> | E T A O N I H S R D L U M W C F G Y P B V K ' X J Q Z"
  assert (VOCABULARY[BLANK], VOCABULARY[BOUNDARY]) == ('<s>', '|')
  assert [VOCABULARY[id_] for id_ in SPECIAL] == ['<pad>', '</s>', '<unk>']


@pytest.mark.parametrize(
  'text, expected',
  [
    ('IT IS', 'IT IS'),
    ('  in being\tcomparatively\n modern. ', 'IN BEING COMPARATIVELY MODERN'),
    ('Don\u2019t, won\u2018t, can\u00b4t, shan`t', "DON'T WON'T CAN'T SHAN'T"),
    ('Café naïve Ångström', 'CAFE NAIVE ANGSTROM'),
    ('Cafe\u0301', 'CAFE'),
    ('stra\u00dfe \ufb01ne \uff21\uff22 \u00e6on', 'STRASSE FINE AB AEON'),
    ('well-known\u2014so\u2013so and/or a \\ b', 'WELL KNOWN SO SO AND OR A B'),
    ('"Oh!" (he said); [yes]: \u201cno?\u201d U.S. \u00abla\u00bb _so_ *it*', 'OH HE SAID YES NO US LA SO IT'),
    ('wait...what\u2026now', 'WAIT WHAT NOW'),
    ("''quoted'' ' alone ' the boys' 'tis", "QUOTED ALONE THE BOYS' 'TIS"),
    ('no\u00a0break soft\u00adhyphen zero\u200bwidth', 'NO BREAK SOFTHYPHEN ZEROWIDTH'),
    ('R&D at 5%', 'R&D AT 5%'),  # spoken: not for us to drop
    ('', ''),
    ('?!', ''),
  ],
)
def test_normalise(text, expected):
  assert normalise(text) == expected
  assert normalise(expected) == expected


def test_encode_ends_every_word():
  ids = encode("It's a ")
  assert ids.dtype == np.int32
  assert [VOCABULARY[id_] for id_ in ids] == ['I', 'T', "'", 'S', '|', 'A', '|']


def test_decode_undoes_encode():
  text = "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG'S VEXING BACK"
  assert decode(encode(text)) == text


def test_decode_drops_special_ids_and_idle_boundaries():
  assert decode([4, 4, 0, 7, 1, 24, 4, 2, 4, 3, 19, 4, 4]) == 'AB C'
  assert decode(np.array([], np.int32)) == ''


@pytest.mark.parametrize('text', ['', ' \n', '...', "'", '\u0301'])
def test_empty_transcripts(text):
  with pytest.raises(ValueError, match='empty transcript'):
    encode(text)


@pytest.mark.parametrize(
  'text, named',
  [
    ('chapter 12', "'1' '2'"),
    ('\u0434\u0430', "'\u0410' '\u0414'"),
    ('R&D', "'&'"),
    ('a|b', r"'\|'"),
    ('a\x00', r"'\\x00'"),
  ],
)
def test_characters_outside_are_named(text, named):
  with pytest.raises(ValueError, match=f'vocabulary: {named} in '):
    encode(text)
