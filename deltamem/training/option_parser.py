"""Parses the options of the training commands, and shows those that matter; `--help-all` shows all of them."""

from __future__ import annotations

from argparse import SUPPRESS, Action, ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import HfArgumentParser

WIDTH = 100  # where no terminal says how wide it is
# The options of --help, of some two hundred.
GROUPS = {
    "What is trained": (
        "preset",
        "model",
        "adapter",
        "variant",
        "r",
        "layers",
        "start",
        "output_dir",
        "dry_run",
    ),
    "Data": (
        "data",
        "system",
        "questions",
        "max_facts",
        "any_word",
        "max_write_tokens",
        "max_read_tokens",
        "views",
        "reads",
    ),
    "Loss": ("answer_only", "answer_weight", "teacher_weight", "write_from", "write_chunk_tokens"),
    "Steps": (
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "dtype",
        "bf16",
        "activation_checkpointing",
        "use_cpu",
        "seed",
    ),
    "Logs, checkpoints, evaluation": (
        "logging_steps",
        "report_to",
        "save_minutes",
        "save_total_limit",
        "resume_from_checkpoint",
        "eval_strategy",
        "eval_steps",
        "eval_data",
        "push_to_hub",
    ),
}
# Shorter, or truer here, than transformers' words.
IN_SHORT = {
    "output_dir": "Folder of the adapter and its checkpoints; trainer_output if not given.",
    "data": "Chats that end with a question, a JSON Lines file, a folder or a Hub name; facts for generated ones; talk:SOURCE, "
    "squad:SOURCE and others, see --help-all.",
    "bf16": "Compute in bfloat16, beside float32 weights of the adapter.",
    "activation_checkpointing": "Less memory for slower steps.",
    "use_cpu": "Leave a GPU alone.",
    "gradient_accumulation_steps": "Batches per step.",
    "seed": "Seeds the weights and the data.",
    "report_to": "Where losses are reported, too: tensorboard, wandb, ...",
    "resume_from_checkpoint": "A checkpoint to go on from; true for the newest one in --output_dir.",
    "eval_strategy": "When to evaluate: no, steps or epoch.",
    "push_to_hub": "Upload the adapter at the end.",
}
USAGE = "{} [--OPTION VALUE ...]"  # listing all options would bury an error message
FOOT = (
    "These are the options that matter most. --help-all shows all of them, with every TrainingArguments of transformers. "
    "An option that asks for true or false means true when it stands alone."
)
GUIDE = (
    "First come the options of the adapter, of the data with its views, and of generated facts. From --output_dir on they are "
    "transformers' TrainingArguments, with the paper's recipe as defaults; the last ones, from --save_minutes on, are "
    "δ-mem's again. What asks for true or false means true when it stands alone. --resume_from_checkpoint true goes on from "
    "the newest checkpoint of --output_dir."
)


class OptionParser(HfArgumentParser):
    """transformers' parser for dataclasses, with two kinds of help.

    Args:
        kinds: the dataclasses.
        prog: the command.
        description: what it does.
    """

    def __init__(self, kinds: Sequence[type], prog: str, description: str | None) -> None:
        super().__init__(kinds, prog=prog, usage=USAGE.format(prog), description=f"{description} {GUIDE}", add_help=False)
        self.about = description or ""
        self.add_argument("-h", "--help", action=ShortHelp, help="Show the options that matter most.")
        self.add_argument("--help-all", action="help", help="Show all options.")

    def parse(self, arguments: Sequence[str]) -> list[Any]:
        """Parse a command line into the dataclasses, in their order.

        Raises:
            ValueError: an option does not exist, or a value is not accepted.
        """
        *parsed, unknown = self.parse_args_into_dataclasses([*arguments], return_remaining_strings=True)
        if unknown:
            name = unknown[0].partition("=")[0]
            similar = get_close_matches(name.replace("-", "_").replace("__", "--", 1), self._option_string_actions, n=3)
            hint = f" you may mean {' or '.join(similar)};" if similar else ""
            raise ValueError(f"{name} is no option of {self.prog};{hint} --help-all shows all options")
        return parsed

    def print_short_help(self) -> None:
        """Print the options of `GROUPS`, each with the first sentence of its help and its default."""
        console = Console()
        if not console.is_terminal:
            console.width = WIDTH
        console.print(Text(f"Usage: {self.usage}\n\n{self.about.splitlines()[0] if self.about else ''}"))
        options = {action.dest: action for action in reversed(self._actions)}  # the first of each: --no_... come later
        for title, names in GROUPS.items():
            table = Table.grid(padding=(0, 2))
            table.add_column(no_wrap=True)
            table.add_column()
            for name in names:
                table.add_row(Text(f"  --{name}"), Text(_in_short(options[name])))
            console.print(Text(f"\n{title}", style="bold"))
            console.print(table)
        console.print(Text(f"\n{FOOT}"))


class ShortHelp(Action):
    """`--help`: prints the short help and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest=SUPPRESS, default=SUPPRESS, nargs=0, **kwargs)

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None) -> None:
        """Print and exit."""
        cast(OptionParser, parser).print_short_help()
        parser.exit()


def _in_short(option: Action) -> str:
    text = IN_SHORT.get(option.dest) or f"{option.help}".split(". ")[0].rstrip(".") + "."
    return f"{text}{''.join(_default(option.default))}"


def _default(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if value not in (None, False, ""):
        yield f" [{value:g}]" if isinstance(value, float) else f" [{value}]"
