"""Writes the sentencepiece model: ids 0 to 3 as in Kyutai's tokenizers, then one whole-word piece a word."""

import io
from pathlib import Path

import sentencepiece

from training.targets import TOKENS, VOCABULARY


def write_tokenizer(path: Path) -> None:
    """A word model whose ids are exactly `targets.TOKENS`."""
    model = io.BytesIO()
    # Pieces are ordered by frequency: the first word is fed most often.
    names = list(TOKENS)
    corpus = [w for i, w in enumerate(names) for _ in range(2 * (len(names) - i))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        model_type="word",
        vocab_size=VOCABULARY,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        unk_surface="",
        character_coverage=1.0,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for word, token in TOKENS.items():
        if processor.piece_to_id("▁" + word) != token or processor.decode([token]) != word:
            raise AssertionError(f"the tokenizer has {word} elsewhere")
