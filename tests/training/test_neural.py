"""What the engines that take phonemes are given, and where each word lies in it."""

import random
import re

from training.accents import Accent
from training.synth.neural import _tokens, letters, pronounce


def test_words_are_found_again_among_spaces_and_pauses():
    text, ranges = _tokens([("sˈɛvən", False), ("dʒulˈaɪ", True), ("oʊ", False)])
    assert text == "sˈɛvən ʤulˈI, O"
    assert [text[a:b] for a, b in ranges] == ["sˈɛvən", "ʤulˈI", "O"]


def test_one_letter_a_diphthong():
    assert letters("tʃeɪndʒ əʊvəbɔɪ aʊt") == "ʧAnʤ QvəbY Wt"


def test_an_accent_is_heard_in_every_word_and_pauses_stay():
    accent = Accent(random.Random(0), 0)
    accent.rules = [(re.compile("n"), "m")]
    said = pronounce("seven, nine two", False, random.Random(1), accent)
    assert said == [("sˈɛvəm", True), ("mˈaɪm", False), ("tˈu", False)]
