"""δ-mem: a tiny online memory for frozen language models, as a PEFT method.

Importing this package registers the method with peft.
"""

from deltamem import register  # noqa: F401
from deltamem.config import DeltaMemConfig
from deltamem.hook import AttentionHook
from deltamem.known_hooks import register_hook
from deltamem.model import DeltaMemModel
from deltamem.session import ChatSession
from deltamem.session_store import SessionStore
from deltamem.state import DeltaMemState

__all__ = [
    "AttentionHook",
    "ChatSession",
    "DeltaMemConfig",
    "DeltaMemModel",
    "DeltaMemState",
    "SessionStore",
    "register_hook",
]
