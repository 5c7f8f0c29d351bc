"""`PyBatchedAsr` without a model: it writes a token for each loud stretch, and says "pause" in between.

[modules.loud]
type = "PyBatchedAsr"
path = "/api/loud"
script = "examples/scripts/asr_loudness.py"
batch_size = 8
text_tokenizer_file = "demo://tokenizer.model"
asr_delay_in_tokens = 1
[modules.loud.py]
threshold = 0.05
token = 10
"""

import numpy as np

FRAME = 1920  # samples: 80 ms at 24 kHz

# What `updates` says of each slot; a number above zero is a marker, with the frames that wait before it.
NO_DATA, ACTIVE, RESET = 0, -1, -2
# What the script answers in `flags_out`.
HEARD, MARKER_RECEIVED = 1, 2
# Tokens that end a word; every other one is a piece of it.
END_OF_PADDING, PADDING = 0, 3


class Loudness:
    def __init__(self, batch_size: int, threshold: float = 0.05, token: int = 10) -> None:
        self.threshold = threshold
        self.token = token
        self.loud = [False] * batch_size  # what each slot's stream did last

    def step(
        self,
        pcm: np.ndarray,  # in: float32 (batch_size * 1920,), one frame a slot
        flags_out: np.ndarray,  # out: uint8 (batch_size,)
        tokens_out: np.ndarray,  # out: uint32 (batch_size,)
        extra_heads: np.ndarray,  # out: float32 (batch_size, 4), the chance of a pause of 0.5, 1, 2, 3 s
        updates: list[int],  # in: what each slot's stream does
    ) -> None:
        frames = pcm.reshape(-1, FRAME)
        for slot, update in enumerate(updates):
            if update == NO_DATA:
                flags_out[slot] = 0
                continue
            if update > 0:
                flags_out[slot] = MARKER_RECEIVED  # the server answers the client by itself
                continue
            if update == RESET:  # a new stream, whose first frame this is
                self.loud[slot] = False
            was_loud, is_loud = self.loud[slot], float(np.abs(frames[slot]).mean()) > self.threshold
            self.loud[slot] = is_loud
            tokens_out[slot] = (
                self.token if is_loud and not was_loud else END_OF_PADDING if was_loud and not is_loud else PADDING
            )
            extra_heads[slot] = 0.0 if is_loud else 1.0
            flags_out[slot] = HEARD


def init(batch_size: int, config: dict) -> Loudness:
    return Loudness(batch_size, **config)
