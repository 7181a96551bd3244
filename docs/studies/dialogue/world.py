"""Does a filled memory spoil what the backbone knows about the world? `python world.py ADAPTER`.

It asks twenty easy questions, with an empty memory and after each of four short conversations, and counts the answers that name
the right word.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from deltamem import DeltaMemState
from deltamem.backbones import load_backbone
from deltamem.chat.tokens import Message, render
from deltamem.config import DeltaMemConfig
from deltamem.evaluation.answer_scores import is_said

QUESTIONS = {  # with the words of which a right answer has one
    "What is the capital of France?": ("paris",),
    "What is the capital of Italy?": ("rome",),
    "What is the capital of Germany?": ("berlin",),
    "What is the capital of Japan?": ("tokyo",),
    "What is the capital of England?": ("london",),
    "Which country is Madrid in?": ("spain",),
    "In which country are the pyramids of Giza?": ("egypt",),
    "Which language do people speak in Brazil?": ("portuguese",),
    "Which colour is the sky on a clear day?": ("blue",),
    "What colour is grass?": ("green",),
    "What is the largest ocean?": ("pacific",),
    "What is the largest planet?": ("jupiter",),
    "Which planet do we live on?": ("earth",),
    "Who wrote Hamlet?": ("shakespeare",),
    "Who painted the Mona Lisa?": ("leonardo", "vinci"),
    "How many days are in a week?": ("seven", "7"),
    "What is two plus two?": ("four", "4"),
    "What is the chemical symbol for gold?": ("au",),
    "Which animal says meow?": ("cat",),
    "Which job does a person have who teaches at a school?": ("teacher",),
}
CONVERSATIONS = (  # what the user tells
    ("Douglas earns a living as a jeweller.", "Nadine was born in Uruguay.", "Among the colours, Adam's pick is gold."),
    ("I was born in Peru.", "My favourite colour is teal."),
    ("Anna works as a plumber, and Ben lives in Oslo.",),
    ("My dog is called Rex.", "I love playing chess.", "My sister Clara comes from Kenya."),
)
REPLY: Message = {"role": "assistant", "content": "I see."}
TOKENS = 20


@torch.no_grad()
def told(model: PeftModel, tokenizer: PreTrainedTokenizerBase, statements: Sequence[str]) -> DeltaMemState:
    """A memory of what a user told, one turn each."""
    state = model.new_memory()
    for statement in statements:
        turn = tokenizer(render(tokenizer, [{"role": "user", "content": statement}, REPLY]), return_tensors="pt")
        with model.memory(state):
            model(**turn)
    return state


def right(model: PeftModel, tokenizer: PreTrainedTokenizerBase, state: DeltaMemState) -> int:
    """How many questions are answered rightly with a memory."""
    count = 0
    for question, words in QUESTIONS.items():
        prompt = render(tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True)
        ids = tokenizer(prompt, return_tensors="pt")
        with model.memory(state, write=False):
            output = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)
        answer = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).casefold()
        count += any(is_said(word, answer) for word in words)
    return count


def main() -> None:
    """Ask with each memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path, help="folder of an adapter")
    adapter = str(parser.parse_args().adapter)
    backbone, tokenizer = load_backbone(DeltaMemConfig.from_pretrained(adapter).base_model_name_or_path)
    model = PeftModel.from_pretrained(backbone, adapter).eval()
    print(f"empty memory: {right(model, tokenizer, model.new_memory())} of {len(QUESTIONS)}")
    for statements in CONVERSATIONS:
        print(f"{' '.join(statements)}: {right(model, tokenizer, told(model, tokenizer, statements))} of {len(QUESTIONS)}")


if __name__ == "__main__":
    main()
