"""Measures vLLM with memories beside vLLM alone: SmolLM2, answers to prompts of 64 random tokens.

`build/vllm/bin/python .ci/vllm_speed.py [DTYPE]` starts both engines and lets them answer in turn, so that whatever else the
machine does slows both. It prints tokens per second of processor time, and of the clock: the median of the rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

PROMPT, ROUNDS = 64, 5
LENGTHS = {1: 64, 8: 64, 32: 32}  # the length of an answer by the size of the batch
# What the memories do, by the name of a row; None for requests without a memory.
WRITES = {"no memory": None, "read": False, "during": "during", "after": "after"}


class Engine:
    """An engine in a process of its own, which answers lines of JSON."""

    def __init__(self, dtype: str, with_memory: bool, store: str) -> None:
        command = [sys.executable, __file__, "serve", dtype, str(int(with_memory)), store]
        environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )

    def seconds(self, batch: int, length: int, write: object) -> tuple[float, float]:
        """How long a batch takes: seconds of processor time, and of the clock."""
        print(json.dumps([batch, length, write]), file=self._process.stdin, flush=True)
        while not (line := self._process.stdout.readline()).startswith("["):
            if not line:
                raise RuntimeError("the engine has ended; run it alone to see why")
        return tuple(json.loads(line))

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def serve(dtype: str, with_memory: bool, store: str) -> None:
    """Answer the lines of standard input."""
    import torch
    from vllm import LLM, SamplingParams

    from deltamem.vllm import engine_options

    options = engine_options(store=f"files:{store}")
    if not with_memory:
        options = {"model": options["model"], "enable_prefix_caching": False, "async_scheduling": False}
    llm = LLM(**options, dtype=dtype, max_model_len=1024, enforce_eager=True, max_num_seqs=32, max_num_batched_tokens=2048)
    generator = torch.Generator().manual_seed(0)
    for line in sys.stdin:
        batch, length, write = json.loads(line)
        prompts = torch.randint(0, 49_000, (batch, PROMPT), generator=generator).tolist()
        params = [
            SamplingParams(
                temperature=0,
                max_tokens=length,
                ignore_eos=True,
                detokenize=False,
                extra_args=None if write is None else {"memory": f"user-{number}", "write": write},
            )
            for number in range(batch)
        ]
        clocks = time.process_time(), time.perf_counter()
        llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        print(json.dumps([time.process_time() - clocks[0], time.perf_counter() - clocks[1]]), flush=True)


def measure(dtype: str) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as store:
        alone, memories = Engine(dtype, False, store), Engine(dtype, True, store)
        print("| batch | requests | tokens/s of processor time | of the clock | share of vLLM alone |\n|---|---|---|---|---|")
        memories.seconds(32, 2, "during")  # so that there is something to read
        for batch, length in LENGTHS.items():
            rows = {"vLLM alone": (alone, None), **{name: (memories, write) for name, write in WRITES.items()}}
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
            for _ in range(ROUNDS + 1):
                for name, (engine, write) in rows.items():
                    times[name].append(engine.seconds(batch, length, write))
            shares = {
                name: statistics.median(bare[0] / one[0] for bare, one in zip(times["vLLM alone"][1:], found[1:], strict=True))
                for name, found in times.items()
            }
            for name, found in times.items():
                cpu, clock = (batch * length / statistics.median(one[place] for one in found[1:]) for place in (0, 1))
                print(f"| {batch} | {name} | {cpu:.1f} | {clock:.1f} | {shares[name]:.0%} |", flush=True)
        alone.close()
        memories.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], sys.argv[3] == "1", sys.argv[4])
    else:
        measure(sys.argv[1] if len(sys.argv) > 1 else "bfloat16")
