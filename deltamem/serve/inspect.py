"""What a memory holds: norms by layer, and how much each word wrote and each message left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltamem.chat.tokens import ChatTokens
from deltamem.hook.text_decoder import longest_context
from deltamem.inspection.conversation import Turn, measure
from deltamem.inspection.conversation import replay as write_again
from deltamem.memory.state import DeltaMemState
from deltamem.serve.engine import Engine
from deltamem.serve.memories import messages_of
from deltamem.serve.turn_runner import TurnRunner
from deltamem.store import Entry


def norms(state: DeltaMemState) -> dict[str, float]:
    """The Frobenius norm of each layer's states."""
    return {layer: float(tensor.norm()) for layer, tensor in state.tensors.items()}


def writes(engine: TurnRunner, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """What the last messages of a journal write, as many as fit into the model's context.

    The messages are written again to an empty memory, as one chat, so the figures are those of this chat.

    Args:
        engine: has the model; it can run turns meanwhile.
        entries: the journal.

    Returns:
        For each message its `id`, `role`, the norm of its `change`, the share that is `left` at the end, 0 to 1 or more, and
        `words`: pieces of text with the norm of what each wrote.

    Raises:
        ValueError: the engine runs no model of transformers, the adapter is not of the delta rule, or the chat template refuses
            the messages.
    """
    if not isinstance(engine, Engine):
        raise ValueError(
            "what each word wrote is computed with a model of transformers, and this server runs vLLM; a server without "
            "--engine vllm on the same store shows it"
        )
    shown = _fitting(engine, [entry for entry in entries if entry.written])
    if not shown:
        return []
    turns = write_again(engine.model, engine.tokenizer, messages_of(shown))
    measures = measure(turns)
    found, begin = [], 0
    for number, (turn, entry) in enumerate(zip(turns, shown, strict=True)):
        end = begin + len(turn.pieces)
        found.append(
            {
                "id": entry.id,
                "role": entry.role,
                "change": float(measures.turn_change[0, number]),
                "left": float(measures.left[0, -1, number]),
                "words": _words(turn, measures.change[0, begin:end].tolist()),
            }
        )
        begin = end
    return found


def _fitting(engine: Engine, entries: list[Entry]) -> list[Entry]:
    """The last entries that fit into the model's context, from a user's message on."""
    most = longest_context(engine.model)
    for first, entry in enumerate(entries):
        if entry.role != "user":
            continue
        rest = entries[first:]
        length = len(ChatTokens.from_messages(engine.tokenizer, messages_of(rest)).ids)
        if most is None or length <= most:
            return rest
    return []


def _words(turn: Turn, changes: list[float]) -> list[dict[str, Any]]:
    """The pieces of a message's text, without those of the template."""
    pieces = zip(turn.pieces, turn.marks, changes, strict=True)
    return [{"text": piece, "change": change} for piece, mark, change in pieces if not mark]
