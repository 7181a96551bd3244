"""Which backend is used, and what is particular to those that are compiled."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from deltamem.rule import Gating, backends, delta_memory, delta_rule
from deltamem.rule.cpu import compile as compiling
from deltamem.rule.delta_memory_operator import delta_memory_operator
from deltamem.rule.operator import delta_rule_operator


def make_inputs(batch: int, heads: int, tokens: int, r: int = 8, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, heads, tokens, r, generator=generator) / r for _ in range(3))
    gates = [torch.rand(batch, heads, tokens, r, generator=generator) for _ in range(3)]
    return [q, k, v, *gates, torch.randn(batch, heads, r, r, generator=generator)]


def outcome(inputs: list[Tensor], backend: str) -> list[Tensor]:
    """Outputs and gradients."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    outputs = delta_rule(*leaves, backend=backend)
    return [*outputs, *torch.autograd.grad(outputs, leaves, [x.cos().detach() for x in outputs])]


def test_auto_is_the_fastest_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.choose("auto", "cpu") == "compiled"
    assert backends.choose("auto", "cuda") == "triton"
    assert backends.choose("auto", "mps") == "chunked"
    monkeypatch.setattr(backends, "importable", lambda name: False)
    assert backends.choose("auto", "cpu") == backends.choose("auto", "cuda") == "chunked"
    with pytest.raises(ValueError, match=r"'compiled'.*needs numba.*install it.*'auto' or 'chunked'"):
        backends.choose("compiled", "cpu")


def test_a_backend_for_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'triton'.*is for cuda.*on cpu.*'auto'"):
        delta_rule(*make_inputs(1, 1, 3), backend="triton")
    with pytest.raises(ValueError, match=r"'compiled'.*is for cpu.*on meta"):
        delta_rule(*(x.to("meta") for x in make_inputs(1, 1, 3)), backend="compiled")


def test_several_threads_inside_one_call_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(5, 3, 70)
    expected = outcome(inputs, "compiled")
    monkeypatch.setattr(compiling, "_WORK_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for got, wanted in zip(outcome(inputs, "compiled"), expected, strict=True):
        assert torch.equal(got, wanted)


def test_two_threads_at_once_get_what_each_gets_alone() -> None:
    problems = [make_inputs(2, 2, 300, seed=seed) for seed in range(2)]
    expected = [outcome(inputs, "compiled") for inputs in problems]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            got = outcome(problems[number], "compiled")
            if not all(torch.equal(a, b) for a, b in zip(got, expected[number], strict=True)):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_a_folder_that_can_be_written_functions_are_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.caching import CompileResultCacheImpl

    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [])

    def add(first: int, last: int) -> int:
        return first + last

    assert compiling.entry(add)(1, 2) == 3


# PyTorch's own check of shapes, aliasing, gradients and tracing of a custom operator; "chunked" is checked in the law


@pytest.mark.parametrize("gradient", [False, True])
def test_the_compiled_rule_is_a_sound_operator(gradient: bool) -> None:
    inputs = [x.requires_grad_(gradient) for x in make_inputs(2, 1, 5, r=3)]
    torch.library.opcheck(delta_rule_operator, (*inputs, "compiled"))


@pytest.mark.parametrize("mask", [None, torch.tensor([[True, False, True], [True, True, True]])])
def test_the_compiled_way_from_projections_is_a_sound_operator(mask: Tensor | None) -> None:
    projected, bias, state = torch.randn(2, 3, 20), torch.randn(2), torch.randn(2, 2, 3, 3)
    inputs: list[Any] = [x.requires_grad_() for x in (projected, bias, state)]
    torch.library.opcheck(delta_memory_operator, (*inputs, mask, 3, 2, "coupled", True, False, True, "compiled"))


def test_one_graph_without_a_break_for_every_length() -> None:
    gating = Gating(3, 2, "learned")
    fast = torch.compile(delta_memory, fullgraph=True, dynamic=True, backend="aot_eager")
    bias, state = (torch.randn(size, requires_grad=True) for size in (gating.bias_rows, (2, 2, 3, 3)))
    for tokens in (5, 9, 70):
        projected = torch.randn(2, tokens, gating.query_rows + gating.write_rows, requires_grad=True)
        results = []
        for function in (delta_memory, fast):
            outputs = function(projected, bias, state, None, gating)
            weights = [x.cos().detach() for x in outputs]
            results.append([*outputs, *torch.autograd.grad(outputs, (projected, bias, state), weights)])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected)
