"""Whoever calls `generate`, and however: the tuner, a PeftModel, the inner model; rows are prompts, not beams_per_row."""

import copy

import pytest
import torch
from oracle import GREEDY, TOLERANCE, adapted, error, replay, told
from tiny import random_tokens
from transformers import GenerationConfig

from deltamem.forward import generation
from deltamem.model import DeltaMemModel

PROMPT = random_tokens(1, 6)


def callers(model):
    return {"PeftModel": model, "tuner": model.base_model, "inner model": model.get_base_model()}


BRANCHES = [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}]


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, *BRANCHES])
def test_the_memory_does_not_depend_on_who_calls(options):
    outcomes = []
    for name in callers(adapted()):
        model = adapted()
        state = told(model)
        with model.memory(state):
            torch.manual_seed(0)
            tokens = callers(model)[name].generate(input_ids=PROMPT, **{**GREEDY, **options})
        outcomes.append((tokens, state))
    (tokens, state), *others = outcomes
    for other_tokens, other in others:
        assert torch.equal(other_tokens, tokens)
        assert other.tokens == state.tokens
        assert error(other, state) == 0


def test_left_alone_the_inner_model_would_write_its_prompt_again(monkeypatch):
    monkeypatch.setattr(generation, "carry_through_generate", lambda owner, model: None)
    monkeypatch.setattr("deltamem.forward.model_hooks.carry_through_generate", lambda owner, model: None)
    model = adapted()
    state = model.new_memory()
    with model.memory(state):
        model.get_base_model().generate(input_ids=PROMPT, **GREEDY, use_cache=False)
    assert state.tokens[0] > 6 + 7


@pytest.mark.parametrize("options", BRANCHES)
@pytest.mark.parametrize("name", ["PeftModel", "inner model"])
def test_a_branch_is_not_another_user(options, name):
    model = adapted()
    state = told(model, rows=2)
    before = state.clone()
    with pytest.raises(ValueError, match="holds 2 rows, but the prompt has 1"), model.memory(state):
        callers(model)[name].generate(input_ids=PROMPT, **{**GREEDY, **options})
    assert error(state, before) == 0


def test_every_row_has_its_branches():
    model = adapted()
    state = told(model, rows=2)
    rows = [state[0].clone(), state[1].clone()]
    with model.memory(state):
        model.generate(input_ids=PROMPT.repeat(2, 1), **GREEDY, num_beams=2)
    for row, start in enumerate(rows):
        assert error(state[row], replay(model, PROMPT[0], start)) <= TOLERANCE


def test_a_config_may_be_given_by_position():
    model = adapted()
    state = told(model)
    with pytest.raises(ValueError, match="holds 1 rows"), model.memory(state):
        model.generate(PROMPT.repeat(2, 1), GenerationConfig(**GREEDY))
    with model.memory(state):
        by_position = model.generate(PROMPT, GenerationConfig(**GREEDY, num_beams=2))
    with model.memory(told(model)):
        assert torch.equal(by_position, model.generate(input_ids=PROMPT, **GREEDY, num_beams=2))
    with pytest.raises(NotImplementedError, match="does not generate with"):
        model.generate(PROMPT, GenerationConfig(**GREEDY, penalty_alpha=0.6, top_k=4))


def test_a_config_leaves_the_rest_to_the_models_own():
    model = adapted()
    model.generation_config.num_beams = 2
    state = told(model)
    with model.memory(state):
        model.generate(PROMPT, GenerationConfig(**GREEDY))
    assert state.tokens == [12 + 6]  # of the prompt: two beams were generated


def test_drafts_of_the_first_layers_are_refused_before_anything_runs():
    model = adapted()
    state = told(model)
    before = state.clone()
    with pytest.raises(NotImplementedError, match="assistant_early_exit=1"), model.memory(state):
        model.generate(input_ids=PROMPT, **GREEDY, assistant_early_exit=1)
    assert error(state, before) == 0
    assert model.generate(input_ids=PROMPT, **GREEDY).shape == (1, 14)


def test_guidance_reads_a_memory_and_does_not_write_it():
    model = adapted()
    state = told(model)
    before = state.clone()
    with pytest.raises(NotImplementedError, match=r"guidance_scale=1\.5"), model.memory(state):
        model.generate(input_ids=PROMPT, **GREEDY, guidance_scale=1.5)
    with model.memory(state, write=False):
        model.generate(input_ids=PROMPT, **GREEDY, guidance_scale=1.5)
    assert error(state, before) == 0


def test_a_model_gets_its_own_generate_back():
    model = adapted()
    backbone = model.get_base_model()
    assert "generate" in vars(backbone)
    with model.disable_adapter():  # then nothing is refused
        model.generate(input_ids=PROMPT, **GREEDY, guidance_scale=1.5)
    assert "generate" not in vars(model.unload())


def test_a_copy_generates_with_its_own_memory():
    model = adapted()
    twin = copy.deepcopy(model)
    state = twin.new_memory()
    with twin.memory(state):
        twin.get_base_model().generate(input_ids=PROMPT, **GREEDY)
    assert state.tokens == [13]
    assert DeltaMemModel.of(twin.get_base_model()) is twin.base_model
