"""Gradients through a memory: the same with activation checkpointing, and gone at the interface's edge."""

import logging
from functools import partial

import pytest
import torch
from oracle import adapted, told
from tiny import FAMILIES, random_tokens
from torch.utils.checkpoint import checkpoint

from deltamem.layer import DeltaMemLayer

CHECKPOINTING = {"reentrant": {"use_reentrant": True}, "non-reentrant": {"use_reentrant": False}}


def train_step(model, start, linked):
    """The gradients of a write pass and a read pass (linked), or of one pass that writes and reads."""
    model.zero_grad()
    state = start.clone()
    if linked:
        with model.memory(state, detach=False):
            model(input_ids=random_tokens(2, 8), use_cache=False)
    with model.memory(state, write=not linked):
        loss = model(input_ids=random_tokens(2, 5, seed=5), use_cache=False).logits.pow(2).mean()
        loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}, state


@pytest.mark.parametrize("linked", [True, False], ids=["write and read pass", "one pass"])
@pytest.mark.parametrize("preloaded", [True, False], ids=["preloaded", "empty"])
@pytest.mark.parametrize("kind", CHECKPOINTING)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_gradients_with_activation_checkpointing(model_type, kind, preloaded, linked):
    model = adapted(model_type).train()
    start = told(model, rows=2) if preloaded else model.new_memory(2)
    expected, state = train_step(model, start, linked)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTING[kind])
    model.enable_input_require_grads()
    gradients, checkpointed = train_step(model, start, linked)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = (gradients[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-12)
        assert difference < 1e-5, name
    assert all(torch.equal(state.tensors[name], checkpointed.tensors[name]) for name in state.tensors)
    values = next(gradient for name, gradient in expected.items() if "delta_mem_in" in name)[8:12]
    if linked or preloaded:  # the control: the rows of the values are reached through what was written
        assert values.abs().max() > 0


def test_the_reentrant_kind_is_replaced_with_a_word(caplog):
    model = adapted().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    with caplog.at_level(logging.WARNING, "deltamem"):
        for _ in range(2):
            train_step(model, model.new_memory(2), linked=True)
    assert [message for message in caplog.messages if "use_reentrant=False" in message] == caplog.messages[:1]


def test_a_reentrant_checkpoint_of_ones_own_is_refused():
    """There is nothing to replace here, and its gradients would be wrong without a word."""
    model = adapted().train()
    state = model.new_memory()
    embeddings = model.get_input_embeddings()(random_tokens(1, 6)).detach().requires_grad_()
    model.enable_input_require_grads()
    with model.memory(state, detach=False):
        model(input_ids=random_tokens(1, 6), use_cache=False)
    layer = model.get_base_model().model.layers[0]
    forward = layer.forward
    layer.forward = lambda hidden, **kwargs: checkpoint(lambda x: forward(x, **kwargs), hidden, use_reentrant=True)
    with pytest.raises(NotImplementedError, match="use_reentrant=False"), model.memory(state, detach=False):
        model(inputs_embeds=embeddings, use_cache=False)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_three_steps_without_a_reset(model_type):
    """The memory of a step is a plain value in the next, so no graph grows and none is walked twice."""
    model = adapted(model_type).train()
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    state, sizes = model.new_memory(2), []
    for step in range(3):
        with model.memory(state):
            loss = model(input_ids=random_tokens(2, 8, seed=step), use_cache=False).logits.pow(2).mean()
        assert not any(tensor.requires_grad for tensor in state.snapshot.to_flat().values())
        sizes.append(nodes(loss))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sizes[0] == sizes[1] == sizes[2]


def nodes(loss):
    """The size of an autograd graph."""
    seen, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
    return len(seen)


def test_a_graph_that_is_kept_would_grow():
    """The control for the count."""
    model, sizes = adapted().train(), []
    state = model.new_memory()
    for step in range(2):
        with model.memory(state, detach=False):
            sizes.append(nodes(model(input_ids=random_tokens(1, 8, seed=step), use_cache=False).logits.sum()))
    assert sizes[1] > sizes[0] + 50


@pytest.mark.parametrize("corrections", [("q", "o"), ("o",)], ids="".join)
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_gradient_comes_back_from_the_padding(model_type, attn, corrections):
    """Kernels may give NaN where a row of the attention sees nothing, as cuDNN's does."""
    ids, mask = random_tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    gradients = []
    for spoilt in (False, True):
        model = adapted(model_type, attn=attn, corrections=corrections).train()
        layers = [module for module in model.modules() if isinstance(module, DeltaMemLayer)]
        for layer in layers if spoilt else []:
            layer.projections["q"].module.register_forward_hook(partial(spoil, mask))
        state = model.new_memory(2)
        with model.memory(state, detach=False):
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        with model.memory(state, write=False):
            logits = model(input_ids=ids.flip(1), attention_mask=mask, use_cache=False).logits
        logits[mask.bool()].pow(2).mean().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    for name, expected in gradients[0].items():
        assert torch.equal(gradients[1][name], expected), name
        assert expected.isfinite().all()


def spoil(mask, module, args, output):
    """A hook: what comes back to a projection's output `[batch, tokens, width]` from the padding is NaN."""
    if output.requires_grad:
        output.register_hook(lambda gradient: torch.where(mask.bool()[:, :, None], gradient, torch.nan))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_memory_made_under_inference_mode_can_be_trained_from(model_type):
    model = adapted(model_type).train()
    state = model.new_memory(2)
    with torch.inference_mode(), model.memory(state):
        model(input_ids=random_tokens(2, 8))
    gradients, _ = train_step(model, state, linked=True)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())
