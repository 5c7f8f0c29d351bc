"""Which voices there are, which are for training, and under what licence; the held-out ones are fixed by a seed."""

import dataclasses
import random

SEED = 20261124

ESPEAK_ACCENTS = [
    "en-us",
    "en-us-nyc",
    "en",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-gb-scotland",
    "en-029",
]
ESPEAK_VARIANTS = (
    "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt2 klatt3 klatt4 klatt5 klatt6 Alex Alicia Andrea Andy "
    "Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario Michael Mike Nguyen RicishayMax adam anika "
    "antonio aunty belinda benjamin boris caleb david ed edward grandma grandpa gustave iven iven2 john "
    "kaukovalta linda marcelo max michel miguel norbert pablo paul pedro quincy rob robert sandro shelby steph "
    "steph2 travis victor zac"
).split()
KOKORO_ENGLISH = (
    "af_alloy af_aoede af_bella af_heart af_jessica af_kore af_nicole af_nova af_river af_sarah af_sky am_adam "
    "am_echo am_eric am_fenrir am_liam am_michael am_onyx am_puck am_santa bf_alice bf_emma bf_isabella bf_lily "
    "bm_daniel bm_fable bm_george bm_lewis"
).split()
# Voices of other languages speak English phonemes with an accent of their own.
KOKORO_FOREIGN = (
    "ef_dora em_alex em_santa ff_siwis hf_alpha hf_beta hm_omega hm_psi if_sara im_nicola jf_alpha jf_gongitsune "
    "jf_nezumi jf_tebukuro jm_kumo pf_dora pm_alex pm_santa zf_xiaobei zf_xiaoni zf_xiaoxiao zf_xiaoyi zm_yunjian "
    "zm_yunxi zm_yunxia zm_yunyang"
).split()
RHVOICE = ["alan", "bdl", "clb", "slt"]  # its other English ones may not be changed or sold
FLITE = ["kal", "kal16", "awb", "rms", "slt"]
FESTIVAL = ["kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts"]
MBROLA = ["mb-us1", "mb-us2", "mb-us3", "mb-en1"]
PICO = ["en-US", "en-GB"]

_rng = random.Random(SEED)
HELD_OUT = {
    "espeak": sorted(_rng.sample(ESPEAK_VARIANTS, 14)),
    "kokoro": sorted(_rng.sample(KOKORO_ENGLISH[:20], 4) + _rng.sample(KOKORO_ENGLISH[20:], 2)),
    "flite": ["awb"],
    "festival": ["ked_diphone"],
}


@dataclasses.dataclass(frozen=True)
class Engine:
    licence: str
    trained_on: bool
    note: str


ENGINES = {
    "espeak": Engine("GPL-3.0-or-later (program)", True, "formant synthesis, 8 accents of English x 75 variants"),
    "flite": Engine("BSD-like (CMU)", True, "diphones and clustergen; awb held out"),
    "festival": Engine("BSD-like (CMU, Edinburgh)", True, "diphones and HTS; ked held out"),
    "rhvoice": Engine("LGPL-2.1-or-later", True, "statistical, voices of four people"),
    "hibari": Engine("Apache-2.0", True, "a small student of Kokoro's heart, its pitch set here"),
    "joined": Engine("as the donors'", True, "diphones cut from Kokoro, hibari, Piper and RHVoice"),
    "music": Engine("as each recording's", True, "nobody speaks"),
    "piper": Engine("voice joe: CC0; inference: onnxruntime", True, "VITS, one voice"),
    "kokoro": Engine("Apache-2.0", True, "StyleTTS 2, 54 voices and blends of them; 6 held out"),
    "mbrola": Engine("non-free, evaluation only", False, "diphones of real voices; espeak-ng's prosody"),
    "pico": Engine("Apache-2.0 (Debian: non-free), evaluation only", False, "SVOX HMM voices"),
    "asterisk": Engine(
        "CC-BY-SA-3.0, evaluation only", False, "a human: prompts of Allison Smith, joined with short gaps"
    ),
}


def pick_espeak(rng: random.Random, held_out: bool) -> str:
    """An espeak-ng voice name `accent+variant`."""
    variants = HELD_OUT["espeak"] if held_out else [v for v in ESPEAK_VARIANTS if v not in HELD_OUT["espeak"]]
    return f"{rng.choice(ESPEAK_ACCENTS)}+{rng.choice(variants)}"


def is_british(donor: str) -> bool:
    """Whether a donor of diphones is one of Kokoro's Britons."""
    return donor.startswith(("bf_", "bm_"))


def pick_kokoro(rng: random.Random, held_out: bool, british: float = 0.0) -> str:
    """A Kokoro voice, or for training also a blend of two; ``british`` is a share for which the first is a Briton."""
    if held_out:
        return rng.choice(HELD_OUT["kokoro"])
    english = [v for v in KOKORO_ENGLISH if v not in HELD_OUT["kokoro"]]
    # Without a share nothing is drawn: evaluation sets stay as they were.
    if british and rng.random() < british:
        first = rng.choice([v for v in english if v.startswith("b")])
    else:
        first = rng.choice(english) if rng.random() < 0.7 else rng.choice(KOKORO_FOREIGN)
    if rng.random() < 0.5:
        return first
    second = rng.choice(english if first in KOKORO_FOREIGN else english + KOKORO_FOREIGN)
    weight = round(rng.uniform(0.3, 0.7), 2)
    return f"{first}*{weight}+{second}*{round(1 - weight, 2)}"
