"""What the model is fed of its own text in training."""

import torch
from training.train import drop_text

from training import targets

START = targets.VOCABULARY


def fed_and_true(rows: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    frames = 60
    text = torch.full((rows, frames), targets.PAD)
    text[:, 3::8], text[:, 7::8] = targets.BOUNDARY, targets.BOUNDARY
    text[:, 6::8] = torch.randint(targets.FIRST_WORD, targets.VOCABULARY, text[:, 6::8].shape)
    return drop_text(text, START), torch.cat([torch.full((rows, 1), START), text[:, :-1]], 1)


def test_a_hidden_word_can_be_seen_to_have_been_written():
    fed, true = fed_and_true()
    word = true[:, 1:] >= targets.FIRST_WORD
    hidden = (fed[:, 1:] == targets.UNKNOWN) & word
    gone = (fed[:, 1:] == targets.PAD) & word
    assert 0.12 < hidden.sum() / word.sum() < 0.22, "it has to listen"
    assert gone.sum() / word.sum() < 0.02, "and knows, but for a slip in a hundred, that the word is out"


def test_slips_of_its_own_kind_are_rare_and_the_start_stays():
    fed, true = fed_and_true()
    assert (fed[:, 0] == START).all()
    boundary = true == targets.BOUNDARY
    assert 0.003 < (fed[boundary] == targets.PAD).float().mean() < 0.02
    assert 0.001 < (fed[true == targets.PAD] == targets.BOUNDARY).float().mean() < 0.01
    word = (true >= targets.FIRST_WORD) & (true != START)
    wrong = word & (fed >= targets.FIRST_WORD) & (fed != true)
    assert 0.005 < wrong.sum() / word.sum() < 0.025


def test_rows_differ_in_how_much_is_hidden():
    fed, true = fed_and_true()
    shares = ((fed == targets.UNKNOWN) & (true >= targets.FIRST_WORD)).sum(1)
    assert (shares == 0).float().mean() > 0.3, "some hide nothing"
    assert (shares >= 3).float().mean() > 0.05, "some hide half"
