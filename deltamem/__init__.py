"""δ-mem: a tiny online memory for frozen language models, as a PEFT method.

Importing this package registers the method with peft.
"""

from deltamem import register  # noqa: F401
from deltamem.chat.session import ChatSession
from deltamem.chat.store import SessionStore
from deltamem.config import DeltaMemConfig
from deltamem.hook import AttentionHook
from deltamem.hook.registered import register_hook
from deltamem.memory.state import DeltaMemState
from deltamem.model import DeltaMemModel

__all__ = [
    "AttentionHook",
    "ChatSession",
    "DeltaMemConfig",
    "DeltaMemModel",
    "DeltaMemState",
    "SessionStore",
    "register_hook",
]
