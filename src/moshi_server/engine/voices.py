"""The voices of a model that attends to one: found by name, read on first use, and kept as its layers need them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from ..errors import CheckpointError, ConfigError, InvalidMessageError
from ..hub import resolve
from ..speech.voices import Voices, unknown_voice
from .tts import Attended, VoiceChoice

if TYPE_CHECKING:
    import torch

    from ..model.speaker import SpeakerSpec
    from ..model.transformer import StreamingTransformer

KEPT: Final = 8
"""Voices whose keys and values are kept beside those of the slots."""

EmbeddingOf = Callable[[str], "torch.Tensor"]
"""A named speaker's embedding, (1, dim, frames) f32, or a source that is attended to as it is, (length, width)."""


def voice_files(folder: str, suffix: str) -> dict[str, Path]:
    """The voices of a folder, of a hub's snapshot, or of one file, by name: the path in the folder without ``suffix``.

    Raises:
        ConfigError: there is none.
        DownloadError: the snapshot cannot be had.
    """
    path = resolve(folder)
    if path.is_file():
        return {path.name.removesuffix(suffix): path}
    found = {
        file.relative_to(path).as_posix().removesuffix(suffix): file
        for file in sorted(path.rglob("*"))
        if file.name.endswith(suffix) and file.is_file()
    }
    if not found:
        raise ConfigError(f"no voices in {folder}", key="py.voice_folder", hint=f"their names end in {suffix}")
    return found


class VoiceShelf:
    """A model's voices. Checked on the event loop or the model thread; taken on the model thread only.

    Args:
        voices: names, and the default.
        embedding_of: reads one.
        source_of: embeddings of (1, dim, frames), none for nobody, to what is attended to, (length, width).
        transformer: makes keys and values of it.
        spec: the shape of an embedding.
        repeated: how often a single named voice is given, as if it were several speakers.
        dtype: of the model.
    """

    def __init__(
        self,
        voices: Voices,
        embedding_of: EmbeddingOf,
        source_of: Callable[[list[torch.Tensor]], torch.Tensor],
        transformer: StreamingTransformer,
        spec: SpeakerSpec,
        *,
        repeated: int,
        dtype: torch.dtype,
    ) -> None:
        self.voices = voices
        self._embedding_of = embedding_of
        self._source_of = source_of
        self._transformer = transformer
        self._spec = spec
        self._repeated = repeated
        self._dtype = dtype
        self._kept: OrderedDict[tuple[str, ...], list[torch.Tensor]] = OrderedDict()
        self._nobody: list[torch.Tensor] | None = None

    def check(self, choice: VoiceChoice) -> None:
        """Return if there is such a voice.

        Raises:
            ResourceNotFoundError: there is none; the sentence names near matches.
            InvalidMessageError: the embedding is of another shape, or these are too many.
        """
        from ..model.speaker import check_embedding

        if choice.embedding is not None:
            check_embedding(choice.embedding.shape, self._spec)
            return
        if len(choice.names) > self._spec.speakers:
            raise InvalidMessageError(f"{len(choice.names)} voices, but this model tells {self._spec.speakers} apart")
        for name in choice.names:
            self.voices.check(name)
        if not choice.names and self.voices.default is None:
            raise InvalidMessageError("no voice was chosen", hint="GET /api/voices lists them")

    def take(self, choice: VoiceChoice) -> Attended:
        """What a stream with this voice attends to; one that was taken lately costs nothing.

        Raises:
            ResourceNotFoundError, InvalidMessageError: as `check`.
        """
        if self._nobody is None:
            self._nobody = self._made(self._source_of([]))
        if choice.embedding is not None:
            import torch

            embedding = torch.from_numpy(np.ascontiguousarray(choice.embedding))
            return Attended(self._made(self._source_of([embedding])), self._nobody)
        names = choice.names or ((self.voices.default,) if self.voices.default is not None else ())
        if names not in self._kept:
            self._kept[names] = self._made(self._source(names))
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(names)
        return Attended(self._kept[names], self._nobody)

    def _source(self, names: Sequence[str]) -> torch.Tensor:
        try:
            read = [self._embedding_of(name) for name in names]
        except CheckpointError as error:
            raise unknown_voice(names[0], self.voices.names) from error
        if read and read[0].dim() == 2:
            return read[0]
        repeated = self._repeated if len(read) == 1 else 1
        return self._source_of(read * repeated)

    def _made(self, source: torch.Tensor) -> list[torch.Tensor]:
        import torch

        with torch.inference_mode():
            weight = next(self._transformer.parameters())
            return self._transformer.keys_values(source.to(weight.device, self._dtype))


def named_files(files: Mapping[str, Path], spec: SpeakerSpec) -> EmbeddingOf:
    """Reads the embedding of a name from its file, the first of its speakers."""
    from ..model.speaker import check_embedding, read_voice

    def embedding_of(name: str) -> torch.Tensor:
        if name not in files:
            raise unknown_voice(name, tuple(files))
        embedding = read_voice(files[name])
        try:
            check_embedding(tuple(embedding.shape), spec)
        except InvalidMessageError as error:
            raise CheckpointError(f"{files[name]}: {error.message}") from error
        return embedding

    return embedding_of
