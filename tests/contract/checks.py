"""What must hold of a model with a memory, each a function that fails on a model of which it does not hold.

They know nothing of memories, so they can be asked of the bare model too: where that fails already, it is transformers that
cannot do it. Without an open block an adapted model starts from an empty memory, which its KV cache carries along.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from family import PAD, VOCAB, tokens
from peft import PeftModel
from torch import Tensor, nn

TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}
Make = Callable[..., Any]  # a model of the family: make(attn="eager", dtype=torch.float32)


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor, **options: Any) -> Tensor:
    """The logits of one pass, `[rows, tokens, vocabulary]`."""
    return model(input_ids=ids, **options).logits


def cached_decoding(make: Make) -> None:
    """One pass, pieces, and token by token give the same; a single row's tokens go a way of their own."""
    model, ids = make(), tokens(2, 12)
    expected = logits(model, ids, use_cache=False)
    for rows, pieces in ((2, (5, 4, 1, 1, 1)), (1, (7, 1, 1, 1, 1, 1))):
        cache, got = None, []
        for piece in ids[:rows].split(pieces, dim=1):
            with torch.no_grad():
                output = model(input_ids=piece, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            assert cache is not None
            got.append(output.logits)
        torch.testing.assert_close(torch.cat(got, dim=1), expected[:rows], **TOLERANCE)


def left_padding(make: Make) -> None:
    """Rows of a padded batch are what each is alone."""
    model = make()
    rows = [tokens(1, length, seed=length)[0] for length in (5, 9, 7)]
    ids = torch.full((3, 9), PAD)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, 9 - len(row) :], mask[index, 9 - len(row) :] = row, 1
    together = logits(model, ids, attention_mask=mask, **_positions(model, ids, mask), use_cache=False)
    for index, row in enumerate(rows):
        alone = logits(model, row[None], **_positions(model, row[None]), use_cache=False)[0]
        torch.testing.assert_close(together[index, 9 - len(row) :], alone, **TOLERANCE)


def eager_and_sdpa(make: Make) -> None:
    """Both attention implementations give the same."""
    ids = tokens(2, 12)
    eager, sdpa = make(attn="eager"), make(attn="sdpa")
    assert eager.config._attn_implementation != sdpa.config._attn_implementation
    torch.testing.assert_close(logits(sdpa, ids), logits(eager, ids), **TOLERANCE)


def beam_search(make: Make, beams: int = 3, steps: int = 5) -> None:
    """Beam search is what a search by hand finds that keeps a copy of everything for each beam."""
    model, prompt = make(), tokens(1, 6)
    options = {"num_beams": beams, "num_return_sequences": beams, "max_new_tokens": steps, "min_new_tokens": steps}
    found = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=PAD, **options
    )
    texts, scores = prompt, torch.zeros(1)
    for _ in range(steps):
        following = torch.stack(
            [logits(model, text[None], **_positions(model, text[None]), use_cache=False)[0, -1] for text in texts]
        )
        following[:, VOCAB:] = -torch.inf
        best = (scores[:, None] + following.float().log_softmax(-1)).flatten().topk(beams)
        scores = best.values
        rows, new = best.indices // following.shape[1], best.indices % following.shape[1]
        texts = torch.cat([texts[rows], new[:, None]], dim=1)
    assert torch.equal(found, texts)


def activation_checkpointing(make: Make) -> None:
    """Computing layers again changes no gradient."""
    gradients = []
    for again in (False, True):
        model = make()
        if not any(parameter.requires_grad for name, parameter in model.named_parameters() if "delta_mem" in name):
            model.requires_grad_(True)
        model.train()
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
        model(input_ids=tokens(2, 12), use_cache=False).logits.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, **TOLERANCE, msg=name)


def bfloat16(make: Make) -> None:
    """A model in half precision computes, and generates, much the same."""
    model, ids = make(dtype=torch.bfloat16), tokens(2, 12)
    got, expected = logits(model, ids).float(), logits(make(), ids)
    assert got.isfinite().all()
    assert torch.nn.functional.cosine_similarity(got.flatten(), expected.flatten(), dim=0) > 0.9
    longer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, pad_token_id=PAD)
    assert longer.shape == (2, 15)


def _positions(model: nn.Module, ids: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
    """The positions that generate() gives the tokens, where the model takes them."""
    backbone = model.get_base_model() if isinstance(model, PeftModel) else model
    options = {"attention_mask": torch.ones_like(ids) if mask is None else mask}
    if "position_ids" in inspect.signature(backbone.forward).parameters:
        options["position_ids"] = backbone._prepare_position_ids_for_generation(ids, options)
    prepared = backbone.prepare_inputs_for_generation(ids, **options, use_cache=False, past_key_values=None)
    return {name: prepared[name] for name in ("position_ids",) if prepared.get(name) is not None}


CHECKS: dict[str, Callable[[Make], None]] = {
    "cached decoding": cached_decoding,
    "left padding": left_padding,
    "eager and sdpa": eager_and_sdpa,
    "beam search": beam_search,
    "activation checkpointing": activation_checkpointing,
    "bfloat16": bfloat16,
}
