"""The text tokenizer: token ids to text and back, over sentencepiece; it knows no timing."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath

from ..errors import CheckpointError

END_OF_PADDING = 0
"""The token that closes a word and, in the same breath, marks where the next one starts."""
PADDING = 3
"""The token of a frame in which nothing is written."""


class TextTokenizer:
    """A sentencepiece model, loaded from a file."""

    def __init__(self, path: str | PathLike[str]) -> None:
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=fspath(path))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{fspath(path)}: not a sentencepiece model: {error}",
                hint="text_tokenizer_file must name the .model file that belongs to the checkpoint",
            ) from error

    @property
    def vocab_size(self) -> int:
        """How many pieces there are."""
        return int(self._processor.get_piece_size())

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of these pieces; an id outside the vocabulary gives nothing rather than an error."""
        size = self.vocab_size
        return str(self._processor.decode([token for token in tokens if 0 <= token < size]))

    def encode(self, text: str) -> list[int]:
        """The piece ids of a text."""
        return [int(token) for token in self._processor.encode(text)]

    def piece(self, token: int) -> str:
        """One piece as it stands in the vocabulary, its leading space a ``▁``; "" for control and strange ids."""
        if not 0 <= token < self.vocab_size or self._processor.is_control(token) or self._processor.is_unknown(token):
            return ""
        return str(self._processor.id_to_piece(token))

    def is_byte(self, token: int) -> bool:
        """Whether the piece stands for one byte of UTF-8, written ``<0xE9>``."""
        return 0 <= token < self.vocab_size and bool(self._processor.is_byte(token))
