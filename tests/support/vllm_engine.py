"""Engines of tiny models with memories, and requests to them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from oracle import adapted
from peft import PeftModel
from tiny import VOCAB

from deltamem import DeltaMemState
from deltamem.store import Key
from deltamem.vllm import engine_options
from deltamem.vllm.keeper import open_keeper
from deltamem.vllm.request import LOCAL, Write

# One process, little memory, and vLLM's own tokens: none of the tests needs text.
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR")
from vllm.platforms import current_platform

# On a CPU without Triton, every engine of vLLM 0.32 replaces kernels; it fails if it has done so before, or if Numba is loaded.
current_platform.register_triton_kernel_overrides()
type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)

LONGEST = 1024
# vLLM's attention takes heads of at least this width on a CPU.
SIZES: dict[str, Any] = {"head_dim": 32, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": LONGEST}


@dataclass
class Request:
    """A request.

    Args:
        prompt: its tokens.
        length: the length of its answer.
        memory: the name of its memory; None for none.
        write: when it is written.
        known: how many of the prompt's tokens are read and not written.
        stop: the token at which the answer ends.
    """

    prompt: Sequence[int]
    length: int
    memory: str | None = None
    write: Write = False
    stop: int | None = None
    known: int = 0

    @property
    def extra_args(self) -> dict[str, Any]:
        """What vLLM is told of the memory."""
        return {} if self.memory is None else {"memory": self.memory, "write": self.write, "known": self.known}


class Engine:
    """vLLM with a model and its adapter, step by step. A process can have one at a time.

    Args:
        options: of vLLM's `LLM`, with those of the memories.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        from vllm import LLM

        store = options["additional_config"]["deltamem"]["store"]
        self.llm = LLM(**{**ENGINE, **options})
        self.keeper = open_keeper(store)
        self.scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        self.worker = get_kv_transfer_group()
        self.layers = [layer for _, layer in self.worker._layers()]
        self._number = 0

    @classmethod
    def of(cls, folder: Path, model: PeftModel, store: str = "", **options: Any) -> Engine:
        """An engine of a tiny model, which is saved in a folder with its adapter and, unless there is a store, its memories."""
        backbone, adapter = save(folder, model)
        return cls({**engine_options(adapter, str(backbone), store=store or f"files:{folder / 'memories'}"), **options})

    def close(self) -> None:
        """Make room for another engine in this process."""
        from vllm.distributed.kv_transfer.kv_transfer_state import ensure_kv_transfer_shutdown

        self.llm.llm_engine.engine_core.shutdown()
        ensure_kv_transfer_shutdown()

    def begin(self, request: Request) -> str:
        """Send a request; returns its id."""
        from vllm import SamplingParams

        self._number += 1
        params = SamplingParams(
            temperature=0,
            max_tokens=request.length,
            ignore_eos=True,
            stop_token_ids=[] if request.stop is None else [request.stop],
            detokenize=False,
            extra_args=request.extra_args,
        )
        self.llm.llm_engine.add_request(str(self._number), {"prompt_token_ids": [*request.prompt]}, params)
        return str(self._number)

    def step(self) -> dict[str, Any]:
        """Run one step; returns the requests that have ended, by id."""
        return {output.request_id: output.outputs[0] for output in self.llm.llm_engine.step() if output.finished}

    @property
    def busy(self) -> bool:
        """Whether requests are left."""
        return bool(self.llm.llm_engine.has_unfinished_requests())

    def abort(self, request_id: str) -> None:
        """Give a request up."""
        self.llm.llm_engine.abort_request([request_id])

    def run(self, requests: Sequence[Request]) -> list[Any]:
        """Send requests at once, and wait for all; returns their answers."""
        ids = [self.begin(request) for request in requests]
        ended: dict[str, Any] = {}
        while self.busy:
            ended |= self.step()
        return [ended[name] for name in ids]

    def memory(self, name: str) -> DeltaMemState | None:
        """A memory as it is kept."""
        return self.keeper.load(Key(LOCAL, name), False).state

    def keep(self, name: str, state: DeltaMemState) -> None:
        """Replace a memory."""
        key = Key(LOCAL, name)
        self.keeper.save(self.keeper.load(key, True), state)


ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": LONGEST,
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 128,  # so that longer prompts are read in chunks
    "seed": 0,
}


def save(folder: Path, model: PeftModel) -> tuple[Path, Path]:
    """Save a model in a folder; returns the folders of the backbone and of the adapter."""
    from safetensors.torch import load_file, save_file

    backbone, adapter = folder / "backbone", folder / "adapter"
    model.save_pretrained(str(adapter))
    model.get_base_model().save_pretrained(str(backbone))
    path = backbone / "model.safetensors"  # which has the adapter too, and the names of the layers that it wraps
    weights = load_file(path)
    plain = {name.replace(".base_layer.", "."): weight for name, weight in weights.items() if ".delta_mem_" not in name}
    save_file(plain, path, {"format": "pt"})
    return backbone, adapter


def strong(model_type: str, **options: Any) -> PeftModel:
    """A tiny model whose memory changes what it generates, of the sizes that vLLM takes."""
    return adapted(model_type, **{**SIZES, **options})


def random_prompt(length: int, generator: torch.Generator) -> list[int]:
    """Random tokens."""
    return torch.randint(1, VOCAB, (length,), generator=generator).tolist()


def difference(first: DeltaMemState | None, second: DeltaMemState | None) -> float:
    """The largest difference between two memories; infinite if one of them has no state or another count of tokens."""
    if first is None or second is None:
        return 0.0 if first is second else float("inf")
    one, other = first.tensors, second.tensors
    if first.tokens != second.tokens or one.keys() != other.keys():
        return float("inf")
    return max((one[name] - other[name]).abs().max().item() for name in one)
