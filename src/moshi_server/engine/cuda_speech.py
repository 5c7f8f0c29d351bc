"""Text to speech and dialogue on a GPU: each step in graphs of the bucket that its streams fill; knows no socket.

As in `engine.cuda` there is one slot more, the scratch, for rows that fill a bucket up. What only some streams of a
step do (make a sound, hear a frame) is done for the scratch in the rows of the others: shapes depend on no stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..audio import FRAME_SIZE
from ..speech.dialogue import DialogueSettings
from .cuda import counters
from .dialogue import Begin, DialogueRunner
from .dialogue import Spoken as SaidAndShown
from .frames import Frame
from .tts import TEXT_ONLY_BETWEEN, Cue, Delivery, Pcm, TtsRunner

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..model.dialogue import DialogueModel
    from ..model.tts import TtsModel


class CudaTtsRunner(TtsRunner):
    """A `TtsRunner` whose steps are captured: one graph up to the text token, which the stream answers, one from there.

    The second has two forms: the streams that make no sound yet go without the depth transformer and the codec. A model
    that can be guided has both for batches with a guided stream, and for those without.
    """

    def __init__(
        self,
        model: TtsModel,
        slots: int,
        device: torch.device,
        *,
        begin: Callable[[Any, int, Delivery], None],
        default: Delivery,
        text_only: int = TEXT_ONLY_BETWEEN,
        on_words: Callable[[int, int], None] = lambda missing, running: None,
        graphs: bool = True,
    ) -> None:
        import torch

        from ..model.graphs import BucketedStep, graph_pool
        from ..model.tts import Sampling

        super().__init__(
            model, slots, device, begin=begin, default=default, text_only=text_only, on_words=on_words, spare=1
        )
        model.begin(self._state, slots, Sampling())  # the scratch slot draws tokens like any other
        self._counters = list(counters(self._state))
        width, parts = model.lm.spec.transformer.d_model, 2 if model.spec.guidance else 1
        self._hidden = torch.zeros(parts, slots, width, dtype=model.lm.dtype, device=device)
        pool = graph_pool(device)

        def bucketed(step: Callable[[Tensor], Tensor], *padding: float) -> BucketedStep:
            return BucketedStep(step, slots, torch.tensor(padding), device, graphs=graphs, pool=pool)

        ways = (False, True) if model.spec.guidance else (False,)
        # Rows: a slot; or a slot, its row among the hidden states, the text token that stands.
        self._voice = {guided: bucketed(self._voicing(guided), slots, 0, 0) for guided in ways}
        self._think = {guided: bucketed(self._thinking(guided), slots) for guided in ways}
        self._quiet = bucketed(self._say_nothing, slots, 0, 0)
        self.reset(range(slots))

    def _pass(self, pairs: Sequence[tuple[int, Cue]]) -> dict[int, Pcm]:
        if not pairs:
            return {}
        spec, numbers = self._model.spec, [slot for slot, _ in pairs]
        guided = spec.guidance and any(self._guided[slot] for slot in numbers)
        think = self._think[guided]
        think.inputs[: len(numbers), 0] = numbers
        tokens = think.run(len(numbers))[:, 0].tolist()
        rows = [
            (slot, row, cue.force(int(token)))
            for row, ((slot, cue), token) in enumerate(zip(pairs, tokens, strict=True))
        ]
        quiet = [row for row in rows if self._steps[row[0]] < spec.delay]
        voiced = [row for row in rows if self._steps[row[0]] >= spec.delay]
        if quiet:
            self._quiet.inputs[: len(quiet)] = quiet
            self._quiet.run(len(quiet))
        sound: dict[int, Pcm] = {}
        if voiced:
            voice = self._voice[guided]
            voice.inputs[: len(voiced)] = voiced
            made = voice.run(len(voiced)).numpy()
            sound = {
                slot: pcm.copy()
                for (slot, _, _), pcm in zip(voiced, made, strict=True)
                if self._steps[slot] >= spec.first_sound
            }
        for slot in numbers:
            self._steps[slot] += 1
        return sound

    def _thinking(self, guided: bool) -> Callable[[Tensor], Tensor]:
        def step(rows: Tensor) -> Tensor:
            """(N, 1) -> (N, 1): the text tokens that were drawn; hidden states are kept here."""
            tokens, hidden = self._model.think(self._state, rows[:, 0].long(), guided=guided)
            parts = 2 if guided else 1
            self._hidden[:parts, : len(rows)] = hidden.view(parts, len(rows), -1)
            self._rewind()
            return tokens.float().unsqueeze(1)

        return step

    def _voicing(self, guided: bool) -> Callable[[Tensor], Tensor]:
        import torch

        from ..model.streaming import leaf

        def step(rows: Tensor) -> Tensor:
            """(N, 3) -> (N, 1920): the sound of each frame that is whole; of those not so far, anything."""
            slots, at, text = (rows[:, column].long() for column in range(3))
            hidden = self._hidden[: 2 if guided else 1].index_select(1, at).flatten(0, 1)
            frames = self._model.speak(text, hidden, self._state, slots, None)
            sounds = leaf(self._state, "steps").index_select(0, slots) > self._model.spec.first_sound
            pcm = self._model.sound(frames, self._state, torch.where(sounds, slots, self._slots))
            self._rewind()
            return pcm.float()

        return step

    def _say_nothing(self, rows: Tensor) -> Tensor:
        slots, text = rows[:, 0].long(), rows[:, 2].long()
        # Its hidden states are looked at by the depth transformer alone.
        self._model.speak(text, self._hidden[0], self._state, slots, slots[:0])
        self._rewind()
        return rows[:, :1].clone()

    def _rewind(self) -> None:
        """The scratch slot stays at its beginning, where it has least to look at."""
        for counter in self._counters:
            counter[self._slots :: self._slots + 1].zero_()


class CudaDialogueRunner(DialogueRunner):
    """A `DialogueRunner` whose step is one graph, from the frames heard to those spoken.

    A row is its slot, whether it hears (not in a conversation's first step), and the samples of its frame.
    """

    def __init__(
        self,
        model: DialogueModel,
        slots: int,
        device: torch.device,
        *,
        condition: Callable[[Mapping[str, str]], torch.Tensor | None],
        settings: DialogueSettings | None = None,
        graphs: bool = True,
    ) -> None:
        import torch

        from ..model.graphs import BucketedStep

        super().__init__(model, slots, device, condition=condition, settings=settings, spare=1)
        self._begin(slots, self._default)
        self._counters = list(counters(self._state))
        padding = torch.zeros(2 + FRAME_SIZE)
        padding[0] = slots
        self._bucketed = BucketedStep(self._advance, slots, padding, device, graphs=graphs)
        self.reset(range(slots))

    def step(self, slots: Sequence[int], inputs: Sequence[Begin | Frame]) -> list[SaidAndShown]:
        """One frame of 1920 samples, or `Begin`, for each slot."""
        rows = self._bucketed.inputs
        rows[: len(slots), 0] = slots
        with self._torch.inference_mode():
            for row, slot, given in zip(rows, slots, inputs, strict=False):
                if isinstance(given, Begin):
                    self._begin(slot, given.settings)
                    row[1:] = 0
                else:
                    row[1] = 1
                    row[2:] = given
        made = self._bucketed.run(len(slots)).numpy()
        said = []
        for slot, row in zip(slots, made, strict=True):
            self._steps[slot] += 1
            said.append(SaidAndShown(int(row[0]), row[1:].copy() if self._steps[slot] > self._model.delay else None))
        return said

    def _advance(self, rows: Tensor) -> Tensor:
        """(N, 2 + 1920) -> (N, 1 + 1920): each stream's text token, and the sound of its frame once one is whole."""
        from ..model.streaming import leaf

        where = self._torch.where
        slots, hears = rows[:, 0].long(), rows[:, 1] > 0
        codes = self._model.hear(rows[:, 2:], self._state, where(hears, slots, self._slots))
        codes = where(hears[:, None], codes, self._model.lm.spec.audio_pad_token)
        tokens, frames = self._model.think(codes, self._state, slots)
        speaks = leaf(self._state, "steps").index_select(0, slots) > self._model.delay
        pcm = self._model.speak(frames, self._state, where(speaks, slots, self._slots))
        for counter in self._counters:
            counter[self._slots :].zero_()
        made: Tensor = self._torch.cat((tokens.float().unsqueeze(1), pcm.float()), dim=1)
        return made
