"""The kinds of docs/studies/structure: each passes what every kind must, and is what its docstring says."""

from pathlib import Path

import pytest
import torch
from tiny import random_tokens, tiny_adapted, tiny_config

from deltamem.rule import DeltaKind
from deltamem.study.grid import read_grid

STUDY = Path(__file__).parents[2] / "docs" / "studies" / "structure"
OPTIONS = {
    "read_gate": {"num_states": 2, "decay": "learned"},
    "normalised": {"num_states": 2, "decay": "none"},
    "gated_cell": {"num_states": 2},
}


@pytest.fixture
def kinds(monkeypatch):
    monkeypatch.syspath_prepend(STUDY)
    import kinds

    return kinds


@pytest.fixture(params=OPTIONS)
def kind(request, kinds):
    return tiny_config(kind=request.param, **OPTIONS[request.param]).memory_kind


def random_passage(kind, tokens=9):
    """The rows of tokens, of which some are padding with NaN, the bias, and which are real."""
    torch.manual_seed(0)
    weight, bias = torch.empty(kind.read_rows + kind.write_rows, 16), torch.empty(kind.bias_rows)
    kind.initialise(weight, bias)
    valid = torch.rand(3, tokens) > 0.3
    rows = torch.randn(3, tokens, 16) @ (weight + 0.3 * torch.randn_like(weight)).T
    return torch.where(valid[..., None], rows, torch.nan), bias, valid


def test_tokens_one_by_one_are_tokens_at_once(kind):
    rows, bias, valid = random_passage(kind)
    at_once, state, reads = kind.read_and_write(rows, bias, None, valid), None, []
    for token in range(rows.shape[1]):
        here = slice(token, token + 1)
        outcome = kind.read_and_write(rows[:, here], bias, state, valid[:, here])
        state = outcome.state
        reads.append(outcome.reads)
    torch.testing.assert_close(torch.cat(reads, dim=1), at_once.reads)
    assert at_once.reads.shape[2] == kind.read_width
    assert at_once.reads[valid].any()
    assert not at_once.reads[~valid].any()
    for part, shape in kind.state_parts.items():
        assert state[part].shape[1:] == shape
        torch.testing.assert_close(state[part], at_once.state[part])


def test_writing_alone_and_reading_alone_are_halves_of_both(kind):
    rows, bias, valid = random_passage(kind)
    both = kind.read_and_write(rows, bias, None, valid)
    written = kind.write(rows[..., kind.read_rows :], bias, None, valid)
    for part in kind.state_parts:
        torch.testing.assert_close(written.state[part], both.state[part])
    torch.testing.assert_close(written.write_gate_sum, both.write_gate_sum)
    alone = kind.read(rows[..., : kind.read_rows], both.state, valid)
    first = kind.read_and_write(rows[:, :1], bias, both.state, valid[:, :1])
    torch.testing.assert_close(alone[:, :1], first.reads)


def test_a_new_read_gate_is_open(kinds):
    """Then the kind is the delta rule; with rows that close the gate, it reads nothing."""
    gated, delta = kinds.ReadGate(4, 2), DeltaKind(4, 2)
    rows = torch.randn(1, 7, delta.read_rows + delta.write_rows)
    bias = torch.zeros(delta.bias_rows)
    expected = delta.read_and_write(rows, bias, None, None).reads
    opened = torch.cat([torch.zeros(1, 7, 2), rows], dim=-1)
    torch.testing.assert_close(gated.read_and_write(opened, bias, None, None).reads, expected)
    closed = torch.cat([torch.full((1, 7, 2), -30.0), rows], dim=-1)
    assert gated.read_and_write(closed, bias, None, None).reads.abs().max() < 1e-6


def test_a_normalised_read_does_not_depend_on_how_far_the_gate_opened(kinds):
    """After one write, a token with the same key reads the value itself; the delta rule reads a share of it."""
    key, value = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0.5, -1.0, 2.0, 0.1])
    for opened in (0.2, 0.5, 0.9):
        gate = torch.logit(torch.full((4,), opened))
        rows = torch.cat([key, key, value, gate]).expand(1, 2, -1)
        read = kinds.Normalised(4, 1, "none").read_and_write(rows, torch.zeros(4), None, None).reads[0, 1]
        torch.testing.assert_close(read, value)
        torch.testing.assert_close(
            DeltaKind(4, 1, "none").read_and_write(rows, torch.zeros(4), None, None).reads[0, 1], opened * value
        )


def test_a_gated_cell_is_an_lstm_cell_with_a_key(kinds):
    """With one key for all tokens, each row is a cell of an LSTM: compared with a loop over numbers."""
    kind = kinds.GatedCell(2, 1, -1.0, False)
    key = torch.tensor([3.0, 0.0])
    values, gates = torch.randn(5, 2), torch.randn(5, 6)
    rows = torch.cat([key.expand(5, 2), key.expand(5, 2), values, gates], dim=-1)[None]
    outcome = kind.read_and_write(rows, torch.zeros(6), None, None)
    i, f, o = gates.sigmoid().chunk(3, dim=-1)
    cell = hidden = torch.zeros(2)
    for token in range(5):
        torch.testing.assert_close(outcome.reads[0, token], hidden)
        cell = f[token] * cell + i[token] * values[token].tanh()
        hidden = o[token] * cell.tanh()
    torch.testing.assert_close(outcome.state["hidden"][0, 0, :, 0], hidden)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_model_learns_with_it(kinds, name):
    model = tiny_adapted(tiny_config(kind=name, **OPTIONS[name]))
    with model.memory(model.new_memory(2)):
        model(random_tokens(2, 12)).logits.square().mean().backward()  # later tokens read what earlier ones wrote
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in trained)


def test_the_grid_compares_seven_structures_with_three_seeds(kinds):
    runs = read_grid(STUDY / "structure.yaml").runs()
    assert len(runs) == 21
    assert {run.variant.adapter.get("kind", "delta") for run in runs} == {"delta", *OPTIONS}
