"""The model in training: the server's own Mimi and LM, with a linear map where codes will be embedded."""

import dataclasses

import torch
from torch import Tensor, nn

from moshi_server.model.lm import LmModel, LmSpec
from moshi_server.model.mimi import Mimi, MimiSpec
from moshi_server.model.quantizer import QuantizerSpec
from moshi_server.model.seanet import SeanetSpec
from moshi_server.model.transformer import TransformerSpec
from training import targets
from training.quantize import QuantizerTrainer

CODEBOOKS, BINS, CODE_DIM = 32, 128, 48
WIDTH = 192
MELS = 40
MEL_HOPS = 4  # mel columns regressed a frame


ENCODER_LAYERS, LAYERS = 2, 6
"""Transformer layers of the encoder and of the LM."""


def mimi_spec(layers: int = ENCODER_LAYERS) -> MimiSpec:
    """The tiny encoder: SEANet of 16 filters, transformer layers of 2 s, 32 codebooks of 128."""
    return MimiSpec(
        seanet=SeanetSpec(dimension=WIDTH, filters=16),
        transformer=TransformerSpec(
            d_model=WIDTH,
            num_heads=4,
            num_layers=layers,
            dim_feedforward=3 * WIDTH,
            context=50,
            norm="layer_norm",
            layer_scale=0.3,
        ),
        quantizer=QuantizerSpec(CODE_DIM, BINS, CODEBOOKS, 1),
        decoder=False,
    )


def lm_spec(layers: int = LAYERS) -> LmSpec:
    """The tiny LM: layers of width 192 that see 3.2 s each."""
    return LmSpec(
        text_in_vocab_size=targets.VOCABULARY + 1,
        text_out_vocab_size=targets.VOCABULARY,
        audio_vocab_size=BINS + 1,
        audio_codebooks=CODEBOOKS,
        transformer=TransformerSpec(
            d_model=WIDTH, num_heads=4, num_layers=layers, dim_feedforward=4 * WIDTH, context=40, gating="silu"
        ),
        extra_heads_num=len(targets.PAUSES),
        extra_heads_dim=2,
    )


@dataclasses.dataclass
class Outputs:
    logits: Tensor  # (B, T, V)
    pauses: Tensor  # (B, T, 4, 2)
    phones: Tensor  # (B, T, 2, classes)
    mels: Tensor  # (B, T, hops * mels)
    commitment: Tensor


class TrainingModel(nn.Module):
    """Audio and text in, everything the loss looks at out."""

    def __init__(self, encoder_layers: int = ENCODER_LAYERS, layers: int = LAYERS) -> None:
        super().__init__()
        self.mimi = Mimi(mimi_spec(encoder_layers))
        self.lm = LmModel(lm_spec(layers))
        self.quantizer = QuantizerTrainer(self.mimi.quantizer)
        # One codebook is too little for anything: the semantic half, which the format asks for, passes nothing on.
        self.semantic_map = nn.Linear(CODE_DIM, WIDTH)
        nn.init.zeros_(self.semantic_map.weight.requires_grad_(False))
        self.acoustic_map = nn.Linear(CODE_DIM, WIDTH, bias=False)
        self.first = nn.Parameter(torch.zeros(WIDTH))
        self.phone_head = nn.Linear(WIDTH, targets.PHONES_A_FRAME * targets.PHONE_CLASSES)
        self.mel_head = nn.Linear(WIDTH, MEL_HOPS * MELS)
        nn.init.normal_(self.lm.text_emb.weight, std=0.3)
        nn.init.normal_(self.lm.text_linear.weight, std=0.02)
        # Torch's default shrinks the signal threefold a layer; speech at -30 dB would begin as nothing.
        first = True
        for module in self.mimi.encoder.seanet.modules():
            if isinstance(module, nn.Conv1d):
                fan_in = module.in_channels * module.kernel_size[0]
                nn.init.normal_(module.weight, std=(4.0 if first else 1.1) * fan_in**-0.5)
                nn.init.zeros_(module.bias)
                first = False

    def encode(self, pcm: Tensor) -> Tensor:
        """(B, L) -> latents (B, T, D)."""
        return self.mimi.latents(pcm[:, None]).transpose(1, 2)

    def audio_inputs(self, latents: Tensor, learn: bool) -> tuple[Tensor, Tensor]:
        """Latents to what the LM adds to its text embedding, one step late (B, T, D), and the commitment loss."""
        semantic, acoustic, commitment = self.quantizer(latents, learn)
        x = self.semantic_map(semantic) + self.acoustic_map(acoustic)
        first = self.first.to(x.dtype).expand(x.shape[0], 1, -1)
        return torch.cat([first, x[:, :-1]], dim=1), commitment

    def forward(self, pcm: Tensor, text: Tensor, learn: bool = False) -> Outputs:
        latents = self.encode(pcm)
        audio, commitment = self.audio_inputs(latents, learn)
        logits, pauses = self.say(text, audio)
        phones = self.phone_head(latents).unflatten(-1, (targets.PHONES_A_FRAME, -1))
        return Outputs(logits, pauses, phones, self.mel_head(latents), commitment)

    def say(self, text: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens fed (B, T) and `audio_inputs` (B, T, D) -> logits of text and of the pause heads."""
        logits, hidden = self.lm._read_out(self.lm.transformer(self.lm.text_emb(text) + audio))
        return logits, self.lm.extra_head_logits(hidden)

    @torch.no_grad()
    def greedy(self, pcm: Tensor) -> Tensor:
        """(B, L) -> tokens (B, T), each step fed the one before: what streaming gives, but for the codes' folding."""
        audio, _ = self.audio_inputs(self.encode(pcm), learn=False)
        rows, steps, _ = audio.shape
        state = self.lm.transformer.init_state(rows, device=pcm.device, dtype=torch.float32)
        slots = torch.arange(rows, device=pcm.device)
        text = torch.full((rows,), self.lm.spec.text_start_token, device=pcm.device)
        tokens = []
        for step in range(steps):
            x = (self.lm.text_emb(text) + audio[:, step]).float()
            logits, _ = self.lm._read_out(self.lm.transformer.step(x[:, None], state, slots)[:, 0])
            text = logits.argmax(-1)
            tokens.append(text)
        return torch.stack(tokens, 1)


class MelTarget(nn.Module):
    """Log-mel columns of clean speech, four a frame, roughly unit size: an auxiliary target only."""

    bank: Tensor
    window: Tensor

    def __init__(self, size: int = 1024, hop: int = 480) -> None:
        super().__init__()
        self.size, self.hop = size, hop
        mel = lambda f: 2595 * torch.log10(1 + f / 700)  # noqa: E731
        points = torch.linspace(float(mel(torch.tensor(60.0))), float(mel(torch.tensor(7800.0))), MELS + 2)
        edges = 700 * (10 ** (points / 2595) - 1)
        f = torch.fft.rfftfreq(size, 1 / 24000)[:, None]
        up = (f - edges[:-2]) / (edges[1:-1] - edges[:-2])
        down = (edges[2:] - f) / (edges[2:] - edges[1:-1])
        self.register_buffer("bank", torch.minimum(up, down).clamp(min=0))
        self.register_buffer("window", torch.hann_window(size))

    @torch.no_grad()
    def forward(self, clean: Tensor) -> Tensor:
        """(B, L) -> (B, T, hops * mels)."""
        padded = nn.functional.pad(clean, (self.size - self.hop, 0))
        spectrum = torch.stft(padded, self.size, self.hop, window=self.window, center=False, return_complex=True)
        power = spectrum.abs().square().transpose(1, 2) @ self.bank
        mels = (power.clamp(min=1e-4).log() + 2) / 4
        return mels[:, : clean.shape[1] // self.hop].unflatten(1, (-1, MEL_HOPS)).flatten(2)
