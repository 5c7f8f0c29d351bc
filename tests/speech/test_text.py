"""Text to words and pauses: upstream's rules by example, and by property that cutting the text changes nothing."""

from __future__ import annotations

import time
from importlib import resources
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_server.speech.text import (
    MAX_WORD_CHARACTERS,
    Pause,
    PieceJoiner,
    SpokenText,
    TextQueue,
    TextSplitter,
    Word,
    normalize,
)
from moshi_server.speech.tokenizer import TextTokenizer

relaxed = settings(deadline=None)
BOS = 1

pieces_of_text = [
    "hello",
    "it’s",
    "a:b",
    "(one)",
    "–",
    " ",
    "  ",
    "\n",
    "<",
    "<break",
    '<break time="1.5s"/>',
    'time="',
]
pieces_of_text += ["2", 's"', "/>", '<break  time="0.5s" />', "\x00", "\x1f", "🙂", "é", "x" * 300, "<break" + " " * 17]
pieces_of_text += ["1.2.3", '<break time="1.2.3s"/>', "y" * 250]
texts = st.lists(st.sampled_from(pieces_of_text) | st.text(max_size=8), max_size=12).map("".join)


def words(*messages: str) -> list[str | Pause]:
    splitter = TextSplitter()
    parts = [part for message in messages for part in splitter.push(message)]
    return parts + splitter.finish()


def joined(pieces: list[str]) -> list[str | Pause]:
    joiner = PieceJoiner()
    return words(*[joiner.push(piece) for piece in pieces], joiner.finish())


class Letters:
    """A tokenizer whose pieces are characters; what is not ASCII has none, as with an unknown character."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) if letter.isascii() else 0 for letter in text]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (["Hello world"], ["Hello", "world"]),
        (["Hello", "world"], ["Hello", "world"]),
        (["Hel", "lo"], ["Hel", "lo"]),
        (["it’s 10:30 (or so) – yes"], ["it's", "10", "30", "or", "so", "yes"]),
        (['Hello <break time="0.5s"/> world'], ["Hello", Pause(0.5), "world"]),
        (['yay!<break time="1.0s"/>yo'], ["yay!", Pause(1.0), "yo"]),
        (['<break\n time="1s"  />'], [Pause(1.0)]),
        (['<break time="60s"/>'], [Pause(10.0)]),
        (['<break time="0s"/>'], []),
        (['<break time="1.2.3s"/>'], []),
        (['<break time="..s"/>'], []),
        (['<break time="1s">'], ["<break", 'time="1s">']),
        (["<break", 'time="1.5s"/>', "on"], [Pause(1.5), "on"]),
        (['go <break time="1.', '5s"/> on'], ["go", Pause(1.5), "on"]),
        (["<", "3"], ["<", "3"]),
        (["go<break", "dance"], ["go<break", "dance"]),
        (["one <", ""], ["one", "<"]),
        (["", "   ", "\n"], []),
        (["a\x00b\x07 \x7f c"], ["ab", "c"]),
        (["y" * 600], ["y" * 256, "y" * 256, "y" * 88]),
    ],
)
def test_words_and_pauses(messages: list[str], expected: list[str | Pause]) -> None:
    assert words(*messages) == expected


def test_pauses_in_frames_and_in_words() -> None:
    assert [Pause(seconds).frames for seconds in (0.01, 0.08, 0.5, 1.5, 10)] == [1, 1, 6, 18, 125]
    assert Pause(1.5).text == '<break time="1.50s">'


def test_a_word_is_given_out_at_once_unless_a_pause_may_come_of_it() -> None:
    splitter = TextSplitter()
    assert splitter.push("one two") == ["one", "two"]
    assert splitter.push("three<br") == []
    assert splitter.push("four") == ["three<br", "four"]
    assert splitter.push("<break" + " " * 100) == ["<break"]


@relaxed
@given(texts, st.data())
def test_text_cut_anywhere_gives_the_words_of_the_whole(text: str, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    pieces = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    assert joined(pieces) == words(text)
    assert joined(list(text)) == words(text)


@relaxed
@given(st.lists(texts.filter(lambda text: "<" not in text), max_size=8))
def test_the_end_of_a_message_is_the_end_of_a_word(messages: list[str]) -> None:
    assert words(*messages) == words(" ".join(messages))


@relaxed
@given(texts)
def test_words_are_short_and_hold_no_space_and_no_control_character(text: str) -> None:
    for part in words(text):
        if isinstance(part, str):
            assert 0 < len(part) <= MAX_WORD_CHARACTERS
            assert part == normalize(part)
            assert not any(letter.isspace() or letter < " " for letter in part)
        else:
            assert 0 < part.seconds <= 10


@relaxed
@given(st.lists(texts, max_size=4))
def test_only_the_first_word_with_tokens_begins_the_turn(messages: list[str]) -> None:
    spoken = SpokenText(Letters(), BOS)
    parts = [part for message in messages for part in spoken.push(message)] + spoken.finish()
    first, *others = [part for part in parts if isinstance(part, Word)] or [None]
    if first is not None:
        assert first.tokens[0] == BOS
        assert first.tokens[1:] == tuple(ord(letter) for letter in first.text if letter.isascii())
    assert all(part.tokens and BOS not in part.tokens for part in others if part)


def test_a_word_without_tokens_is_passed_over_and_a_turn_can_be_marked() -> None:
    spoken = SpokenText(Letters(), BOS)
    assert spoken.push("🙂 a") == [Word("a", (BOS, 97))]
    assert spoken.push("b <br") == [Word("b", (98,))]
    assert spoken.begin_turn(marked=False) == [Word("<br", tuple(b"<br"))]
    assert spoken.push("c") == [Word("c", (99,))]
    assert spoken.begin_turn() == []
    assert spoken.push("d") == [Word("d", (BOS, 100))]


def test_a_real_tokenizer() -> None:
    tokenizer = TextTokenizer(str(resources.files("moshi_server") / "demo" / "tokenizer.model"))
    spoken = SpokenText(tokenizer, BOS)
    assert spoken.push("eight zebras 🙂 \x00 and") == [Word("eight", (BOS, 38)), Word("and", (11,))]


@relaxed
@given(st.lists(texts, max_size=4), st.integers(1, 5))
def test_a_queue_gives_the_same_words_however_they_are_pulled(messages: list[str], count: int) -> None:
    spoken, queue = SpokenText(Letters(), BOS), TextQueue(SpokenText(Letters(), BOS))
    expected = [part for message in messages for part in spoken.push(message)] + spoken.finish()
    for message in messages:
        queue.put(message)
    queue.end()
    got: list[Word | Pause] = []
    while parts := queue.pull(count):
        assert len(parts) <= count
        got += parts
    assert got == expected
    assert queue.empty
    assert queue.characters_in == queue.characters_out == sum(map(len, messages))


def test_a_queue_makes_words_only_as_they_are_pulled() -> None:
    class Counting(Letters):
        encoded = 0

        def encode(self, text: str) -> list[int]:
            self.encoded += len(text)
            return super().encode(text)

    tokenizer = Counting()
    queue = TextQueue(SpokenText(tokenizer, BOS))
    queue.put("word " * 200_000)
    assert tokenizer.encoded == 0
    assert [part.text for part in queue.pull(3) if isinstance(part, Word)] == ["word"] * 3
    assert tokenizer.encoded <= 1024
    assert queue.characters_in - queue.characters_out > 990_000


def test_turns_in_a_queue() -> None:
    queue = TextQueue(SpokenText(Letters(), BOS))
    queue.put("a <br")
    queue.next_turn(marked=False)
    queue.put("b")
    queue.next_turn()
    queue.put("c")
    words = [(part.text, part.tokens[0] == BOS) for part in queue.pull(9) if isinstance(part, Word)]
    assert words == [("a", True), ("<br", False), ("b", False), ("c", True)]


def test_a_megabyte_is_split_quickly() -> None:
    for text in ("word " * 200_000, "x" * 1_000_000, "<break" * 160_000, "<break " + " " * 1_000_000, "<" * 1_000_000):
        start = time.perf_counter()
        joiner = PieceJoiner()
        words(joiner.push(text), joiner.finish())
        assert time.perf_counter() - start < 5
