"""Run as a process: answers random prompts, and prints the tokens with all of their log-probabilities as JSON.

`python vllm_child.py OPTIONS`; the options of vLLM's `LLM` are JSON.
"""

import json
import sys

from vllm_engine import ENGINE, random_prompt

if __name__ == "__main__":
    import torch
    from vllm import LLM, SamplingParams

    llm = LLM(**{**ENGINE, **json.loads(sys.argv[1])})
    generator = torch.Generator().manual_seed(0)
    prompts = [{"prompt_token_ids": random_prompt(length, generator)} for length in (1, 7, 200, 300)]
    params = SamplingParams(temperature=0, max_tokens=16, logprobs=8, ignore_eos=True, detokenize=False)
    answers = [output.outputs[0] for output in llm.generate(prompts, params, use_tqdm=False)]
    places = [[sorted((token, one.logprob) for token, one in place.items()) for place in answer.logprobs] for answer in answers]
    print(json.dumps([[answer.token_ids for answer in answers], places]))
