"""Does a filled memory spoil what the backbone knows about the world? `python world.py ADAPTER`.

It asks twenty easy questions, after nothing and after each of four short conversations, and counts the answers that name the
right word.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from peft import PeftModel

from deltamem import ChatSession
from deltamem.backbones import load_backbone
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
TOKENS = 20


def right(chat: ChatSession) -> int:
    """How many questions are answered rightly with the memory of a chat."""
    answers = {question: chat.reply(question, keep=False, max_new_tokens=TOKENS, do_sample=False) for question in QUESTIONS}
    return sum(any(is_said(word, answers[question].casefold()) for word in words) for question, words in QUESTIONS.items())


def main() -> None:
    """Ask with each memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path, help="folder of an adapter")
    adapter = str(parser.parse_args().adapter)
    backbone, tokenizer = load_backbone(DeltaMemConfig.from_pretrained(adapter).base_model_name_or_path)
    model = PeftModel.from_pretrained(backbone, adapter).eval()
    for statements in ((), *CONVERSATIONS):
        chat = ChatSession(model, tokenizer)
        for statement in statements:
            chat.observe(statement)
        print(f"{' '.join(statements) or 'nothing'}: {right(chat)} of {len(QUESTIONS)}")


if __name__ == "__main__":
    main()
