"""DeltaMemConfig: all options of an adapter, checked on construction."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from aenum import extend_enum
from peft import PeftConfig
from peft.utils import PeftType

from deltamem.hook.attention_hook import ROLES, Role
from deltamem.hook.backbone_identity import check_description, is_finite
from deltamem.rule import MemoryKind
from deltamem.rule.gates import Decay
from deltamem.rule.kind import memory_kind

# peft accepts external methods only as members of its enumeration. `extend_enum` adds one properly on every Python version;
# writing to the enumeration's private maps would not.
NAME = "delta_mem"
if NAME.upper() not in PeftType.__members__:
    extend_enum(PeftType, NAME.upper(), NAME.upper())
DELTA_MEM: PeftType = PeftType[NAME.upper()]

# The options that, with the weights, determine the numbers in a memory.
MEMORY_OPTIONS = ("r", "alpha", "corrections", "write", "num_states", "decay", "decay_first", "rowwise_gates")

WriteUnit = Literal["token", "message", "sentence"]
Initialisation = Literal["base_slice", "zero", "random"]
TurnWrites = Literal["after", "during"]
Task = Literal["CAUSAL_LM", "FEATURE_EXTRACTION"]

# peft treats these names as regular expressions in some places, and a file could bring one that takes for ever.
MODULE_NAME = re.compile(r"\w+(\.\w+)*")


@dataclass
class DeltaMemConfig(PeftConfig):
    """Configuration of a δ-mem adapter (arXiv 2605.12357), a PEFT method for frozen attention models.

    Args:
        r: width of a memory; each state is an `r x r` matrix.
        alpha: corrections are scaled by `alpha / r`.
        kind: the update rule, "delta" or the name of a registered one (`register_memory_kind`). Another rule defines for itself
            what `num_states`, `decay`, `decay_first`, `rowwise_gates`, `beta_bias` and `tie_query_init` mean.
        corrections: the attention projections that the memory corrects, any of "q", "k", "v", "o".
        write: the unit of a write: every "token" (TSW), or the mean of a "message" or a "sentence" (SSW).
        num_states: parallel memories per attention layer (MSW has 4).
        decay: how much of the memory a write keeps: "coupled" (one minus the write gate), "learned" (a separate gate),
            or "none" (everything).
        decay_first: whether the memory decays before a token's error is measured; requires a decay.
        rowwise_gates: whether each row of a state has its own gate, or the state has a single one.
        beta_bias: initial bias of the write gate's logit; -1.5 opens the gate to 0.18.
        init: initial values of the corrections: "base_slice" (columns of the frozen projection, so not an identity), "zero", or
            "random".
        tie_query_init: start the memory's query projection as a copy of its key projection, so that a token reads what a
            similar token wrote from the first step. Not in the paper; see docs/experiments.md.
        turn_writes: when a ChatSession writes a turn: "after" it was answered, or "during" (while it is read and generated).
            It must be as in the adapter's training.
        layers_to_transform: indices of the decoder layers that have a memory; all if None.
        layers_pattern: name of the module list that holds the decoder layers, if the names do not tell.
        target_modules: names of the attention modules, or the ends of their names; taken from the registry if None.
        backbone: the backbone for which the adapter was made, as described by `backbone_identity`. It is filled in when the
            adapter is first attached; attaching the adapter to another backbone is refused.

    Raises:
        ValueError: a value is not accepted; the message names the field, the value and what is accepted.
    """

    after_saving: ClassVar[list[Callable[[Path, DeltaMemConfig], None]]] = []  # called with the folder and the config

    r: int = field(default=8, metadata={"help": "Width of a memory; each state is an r x r matrix."})
    alpha: float = field(default=16.0, metadata={"help": "Corrections are scaled by alpha / r."})
    kind: str = field(default="delta", metadata={"help": "The update rule."})
    corrections: tuple[Role, ...] = field(
        default=("q", "o"), metadata={"help": "Attention projections that the memory corrects: any of q, k, v, o."}
    )
    write: WriteUnit = field(default="token", metadata={"help": "Unit of a write: token, message or sentence."})
    num_states: int = field(default=1, metadata={"help": "Parallel memories per attention layer."})
    decay: Decay = field(default="coupled", metadata={"help": "What a write keeps: coupled, learned or none."})
    decay_first: bool = field(default=False, metadata={"help": "Decay before the error is measured."})
    rowwise_gates: bool = field(default=True, metadata={"help": "One gate per row of a state, not one per state."})
    beta_bias: float = field(default=-1.5, metadata={"help": "Initial bias of the write gate's logit."})
    init: Initialisation = field(default="base_slice", metadata={"help": "Initial values of the corrections."})
    tie_query_init: bool = field(default=False, metadata={"help": "Start the query projection as a copy of the key's."})
    turn_writes: TurnWrites = field(default="after", metadata={"help": "When a chat session writes a turn."})
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the decoder layers that have a memory; all if None."}
    )
    layers_pattern: str | None = field(default=None, metadata={"help": "Name of the list of decoder layers."})
    target_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "The attention modules; taken from the registry if None."}
    )
    backbone: dict[str, Any] | None = field(
        default=None, metadata={"help": "Backbone for which the adapter was made; filled in when it is attached."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = DELTA_MEM
        if isinstance(self.corrections, list):  # JSON has no tuples
            self.corrections = tuple(self.corrections)
        self._check_whole("r", minimum=1)
        self._check_whole("num_states", minimum=1)
        self._check_finite("alpha")
        self._check_finite("beta_bias")
        for name, choices in (("write", WriteUnit), ("decay", Decay), ("init", Initialisation), ("turn_writes", TurnWrites)):
            self._check_choice(name, get_args(choices))
        for name in ("decay_first", "rowwise_gates", "tie_query_init"):
            self._check_choice(name, (True, False))
        self._check_corrections()
        self._check_layers()
        self._check_module_names()
        if self.task_type is not None and self.task_type not in get_args(Task):
            raise ValueError(
                f"task_type={self.task_type!r} is not accepted; choose one of {', '.join(get_args(Task))}, or None"
            )
        if self.backbone is not None:
            check_description(self.backbone)
        if not isinstance(self.kind, str):
            raise ValueError(f"kind={self.kind!r} is not accepted; give the name of an update rule")
        self.memory_kind  # noqa: B018 (refuses an unknown kind, and options that the kind does not accept)
        if self.decay_first and self.decay == "none":
            raise ValueError("decay_first=True needs a decay, got decay='none'; choose decay='coupled' or 'learned'")

    @classmethod
    def tsw(cls, **options: Any) -> DeltaMemConfig:
        """Token-state write: one state, written by every token."""
        return cls(**{"write": "token", "num_states": 1, **options})

    @classmethod
    def ssw(cls, **options: Any) -> DeltaMemConfig:
        """Sequence-state write: one state, written once per message (`write="sentence"`: per sentence)."""
        return cls(**{"write": "message", "num_states": 1, **options})

    @classmethod
    def msw(cls, **options: Any) -> DeltaMemConfig:
        """Multi-state write: four parallel states, written by every token."""
        return cls(**{"write": "token", "num_states": 4, **options})

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save as peft does, then call the functions in `after_saving`, which add the model card."""
        super().save_pretrained(save_directory, **kwargs)
        for complete in self.after_saving:
            complete(Path(save_directory), self)

    @property
    def memory_kind(self) -> MemoryKind:
        """The update rule, with this configuration's options."""
        return memory_kind(self.kind, self)

    @property
    def variant(self) -> str:
        """The paper's name for this unit of writing and number of states: "TSW", "SSW" or "MSW"."""
        if self.writes_segments:
            return "SSW"
        return "TSW" if self.num_states == 1 else "MSW"

    @property
    def writes_segments(self) -> bool:
        """Whether a write is the mean of a segment (SSW), which the caller must mark."""
        return self.write != "token"

    def _check_whole(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ValueError(f"{name}={value!r} is not accepted; give a whole number of at least {minimum}")

    def _check_finite(self, name: str) -> None:
        value = getattr(self, name)
        if not is_finite(value):
            raise ValueError(f"{name}={value!r} is not accepted; give a finite float32 number")

    def _check_choice(self, name: str, choices: tuple[Any, ...]) -> None:
        value = getattr(self, name)
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise ValueError(f"{name}={value!r} is not accepted; choose one of {', '.join(map(repr, choices))}")

    def _check_corrections(self) -> None:
        known = ROLES
        given = self.corrections
        if not isinstance(given, tuple) or not given or any(p not in known for p in given) or len({*given}) < len(given):
            raise ValueError(f"corrections={given!r} is not accepted; give one or more of {', '.join(known)}, each once")

    def _check_layers(self) -> None:
        given = self.layers_to_transform
        indices = [given] if isinstance(given, int) else given
        if indices is None:
            return
        whole = isinstance(indices, list) and all(type(index) is int and index >= 0 for index in indices)
        if not whole or not indices or len({*indices}) < len(indices):
            raise ValueError(
                f"layers_to_transform={given!r} is not accepted; give one or more layer indices from 0 up, each once"
            )

    def _check_module_names(self) -> None:
        targets = [self.target_modules] if isinstance(self.target_modules, str) else self.target_modules
        if targets is not None:
            if not isinstance(targets, list | tuple | set) or not targets or not all(map(_is_module_name, targets)):
                raise ValueError(
                    f"target_modules={targets!r} is not accepted; give names of attention modules (letters, digits, '_' and "
                    "'.'; no patterns), or None"
                )
            self.target_modules = set(targets)
        if self.layers_pattern is not None and not _is_module_name(self.layers_pattern):
            raise ValueError(
                f"layers_pattern={self.layers_pattern!r} is not accepted; give the name of a module list (letters, digits, '_' "
                "and '.'; no pattern), or None"
            )


def _is_module_name(name: Any) -> bool:
    return isinstance(name, str) and MODULE_NAME.fullmatch(name) is not None


# The paper's variants, by their names in commands.
VARIANTS = {"tsw": DeltaMemConfig.tsw, "ssw": DeltaMemConfig.ssw, "msw": DeltaMemConfig.msw}


@dataclass
class RuleArguments:
    """The options of the update rule on the command line."""

    r: int = field(default=8, metadata={"help": "Width of a memory."})
    decay: Decay = field(default="coupled", metadata={"help": "What a write keeps of the memory: coupled, learned or none."})
    beta_bias: float = field(default=-1.5, metadata={"help": "Initial bias of the write gate's logit."})
    tie_query_init: bool = field(default=False, metadata={"help": "Start the query projection as a copy of the key's."})
    num_states: int | None = field(default=None, metadata={"help": "Parallel memories per layer; the variant's by default."})
    kind: str = field(default="delta", metadata={"help": "The update rule: delta, or the name of a package's rule."})

    def rule_options(self) -> dict[str, Any]:
        """The options as arguments of a `DeltaMemConfig`."""
        given = {option.name: getattr(self, option.name) for option in fields(RuleArguments)}
        return {name: value for name, value in given.items() if value is not None}
