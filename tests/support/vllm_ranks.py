"""Run as a process: sends requests to an engine with several ranks, one after another; prints whether all is as expected.

`python vllm_ranks.py RANKS FOLDER`; the folder is empty.
"""

import os
import sys
from pathlib import Path

import torch
from vllm_engine import ENGINE, Request, difference, random_prompt, save, strong
from vllm_requests import TOLERANCE, expected

from deltamem.store import Key
from deltamem.vllm import engine_options
from deltamem.vllm.keeper import open_keeper
from deltamem.vllm.request import LOCAL


def main(ranks: int, folder: Path) -> None:
    """Send a request of each kind."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, range(ranks)))
    from vllm import LLM, SamplingParams

    model, store = strong("llama"), f"files:{folder / 'memories'}"
    backbone, adapter = save(folder, model)
    options = engine_options(adapter, str(backbone), store=store)
    llm = LLM(**{**ENGINE, **options}, tensor_parallel_size=ranks)
    generator, memories = torch.Generator().manual_seed(0), {}
    for length, write in ((5, "after"), (40, "during"), (200, False), (40, "prompt"), (200, "after")):
        request = Request(random_prompt(length, generator), 9, "anna", write, known=length // 3)
        params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, detokenize=False, extra_args=request.extra_args)
        (output,) = llm.generate([{"prompt_token_ids": request.prompt}], params, use_tqdm=False)
        same = output.outputs[0].token_ids == expected(model, memories, request)
        kept = open_keeper(store).load(Key(LOCAL, "anna"), False).state
        print("RANKS", write, same and difference(kept, memories["anna"]) < TOLERANCE)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
