"""What a model of the first tier knows, one of both tiers knows too."""

import torch
from training.grow import grow
from training.model import CODE_DIM, LAYERS, WIDTH, TrainingModel
from training.vocabulary import FIRST_TIER, WORDS

from training import targets


def test_a_words_rows_move_to_where_the_word_is_now():
    torch.manual_seed(0)
    before = sorted(FIRST_TIER)
    old = TrainingModel().state_dict()
    size = 4 + len(before)
    old["lm.text_emb.weight"] = torch.randn(size + 1, old["lm.text_emb.weight"].shape[1])
    old["lm.text_linear.weight"] = torch.randn(size, old["lm.text_linear.weight"].shape[1])
    new = grow(old, before)
    TrainingModel().load_state_dict(new)
    for name in ("lm.text_emb.weight", "lm.text_linear.weight"):
        for row, word in enumerate(before, 4):
            assert torch.equal(new[name][targets.TOKENS[word]], old[name][row])
        assert torch.equal(new[name][:4], old[name][:4])
    assert torch.equal(new["lm.text_emb.weight"][-1], old["lm.text_emb.weight"][-1]), "the start token"
    assert torch.equal(new["semantic_map.weight"], old["semantic_map.weight"])


def test_layers_that_are_new_change_nothing_yet():
    torch.manual_seed(0)
    old = TrainingModel(layers=LAYERS - 1).eval()
    new = TrainingModel().eval()
    new.load_state_dict(grow(old.state_dict(), sorted(WORDS)))
    pcm, text = 0.1 * torch.randn(1, 1920 * 12), torch.randint(0, targets.VOCABULARY, (1, 12))
    with torch.no_grad():
        before, after = old(pcm, text), new(pcm, text)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.pauses, after.pauses)


def test_what_both_halves_of_the_quantizer_passed_on_goes_through_one_of_another_width():
    torch.manual_seed(1)
    old = TrainingModel().state_dict()
    narrow = CODE_DIM // 2
    for half in ("semantic", "acoustic"):
        old[f"{half}_map.weight"] = torch.randn(WIDTH, narrow)
        for name in old:
            if name.endswith((f"{half}.input_proj.weight", f"{half}.quantizer.input_proj.weight")):
                old[name] = torch.randn(narrow, WIDTH)
    old["semantic_map.bias"] = torch.randn(WIDTH)
    latents = torch.randn(1, 9, WIDTH)
    wanted = old["semantic_map.bias"].expand(1, 9, -1)
    for half in ("semantic", "acoustic"):
        projection = old[f"mimi.quantizer.{half}.input_proj.weight"]
        wanted = wanted + latents @ projection.t() @ old[f"{half}_map.weight"].t()
    new = TrainingModel().eval()
    new.load_state_dict(grow(old, sorted(WORDS)))
    found, _ = new.audio_inputs(latents, learn=False)
    assert torch.allclose(found[:, 1:], wanted[:, :-1], atol=1e-2 * float(wanted.std()))
    columns = new.acoustic_map.weight.detach()
    assert torch.allclose(columns.t() @ columns, torch.eye(CODE_DIM), atol=1e-4), "what a code is off by stays as much"
