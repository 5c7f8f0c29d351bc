"""Settings that clients send, and text tokens to what is shown."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from moshi_server.errors import InvalidMessageError
from moshi_server.speech.dialogue import DialogueSettings, TextPieces
from moshi_server.speech.tokenizer import TextTokenizer

DESCRIPTION = {"description": ("bad", "good")}


def test_what_a_client_names_is_changed_and_the_rest_stays() -> None:
    base = DialogueSettings(audio_topk=100, conditions={"description": "good"})
    changed = base.changed(
        {"text_temperature": "0", "text_topk": "7", "pad_mult": "-1.5", "description": "bad", "email": "a@b", "x": ""},
        DESCRIPTION,
    )
    assert (changed.text_temperature, changed.text_topk, changed.pad_mult) == (0.0, 7, -1.5)
    assert changed.audio_topk == 100
    assert changed.conditions == {"description": "bad"}
    assert base.changed({}, DESCRIPTION) == base
    assert base.changed({"description": "worse"}) == base, "not a conditioner of this model: just another name"


def test_one_seed_for_both_unless_each_is_named() -> None:
    changed = DialogueSettings().changed({"seed": "5", "audio_seed": "6"})
    assert (changed.text_seed, changed.audio_seed) == (5, 6)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"text_topk": "0"}, "text_topk=0 is not a whole number from 1 to 500"),
        ({"text_topk": "2.5"}, "text_topk=2.5 is not a whole number"),
        ({"audio_temperature": "nan"}, "audio_temperature=nan is not a number from 0 to 10"),
        ({"audio_temperature": "inf"}, "not a number"),
        ({"repetition_penalty": "0"}, "repetition_penalty=0"),
        ({"seed": "-1"}, "seed=-1"),
        ({"text_seed": "9" * 400}, "text_seed=9999"),
        ({"description": "worse"}, "description=worse is not a value that the model knows"),
    ],
)
def test_a_value_that_is_none_is_refused_by_name(values: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidMessageError, match=said):
        DialogueSettings().changed(values, DESCRIPTION)


@given(st.dictionaries(st.sampled_from(list(DialogueSettings().public())), st.text(max_size=9)))
def test_any_text_is_taken_or_refused(values: dict[str, str]) -> None:
    try:
        changed = DialogueSettings().changed(values, DESCRIPTION)
    except InvalidMessageError:
        return
    assert 1 <= changed.text_topk <= 500


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "bytes.model"
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello there hello world"]),
        model_writer=written,
        vocab_size=275,
        byte_fallback=True,
        pad_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(written.getvalue())
    return TextTokenizer(path)


def pieces(tokenizer: TextTokenizer) -> TextPieces:
    return TextPieces(tokenizer.piece, tokenizer.is_byte, silent=(0, 3))


def test_pieces_add_up_to_the_text_and_silence_adds_nothing(tokenizer: TextTokenizer) -> None:
    tokens = tokenizer.encode("hello world there")
    shown = pieces(tokenizer)
    parts = [shown.take(token) for token in [3, 3, 0, *tokens[:2], 3, *tokens[2:], 0]]
    assert "".join(parts) == "hello world there"
    assert parts[:3] == ["", "", ""]
    shown.restart()
    assert "".join(shown.take(token) for token in tokens) == "hello world there"


@given(st.text(alphabet="helo wrd€é🎈", max_size=20))
def test_characters_spelt_in_bytes_come_whole(tokenizer: TextTokenizer, text: str) -> None:
    shown = pieces(tokenizer)
    parts = [shown.take(token) for token in tokenizer.encode(text)]
    assert "".join(parts) == " ".join(text.split())
    assert all("\ufffd" not in part for part in parts)


def test_a_character_cut_off_is_marked_once(tokenizer: TextTokenizer) -> None:
    first_byte = next(token for token in tokenizer.encode("€") if tokenizer.is_byte(token))
    hello = tokenizer.encode("hello")[0]
    shown = pieces(tokenizer)
    assert shown.take(first_byte) == ""
    assert shown.take(hello).startswith("\ufffd")
    assert "\ufffd" not in shown.take(hello)


def test_ids_that_are_no_pieces_show_nothing(tokenizer: TextTokenizer) -> None:
    shown = pieces(tokenizer)
    assert [shown.take(token) for token in (-1, 1, 2, 10**6)] == ["", "", "", ""]
