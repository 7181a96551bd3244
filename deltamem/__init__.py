"""δ-mem: a tiny online memory for frozen language models, as a PEFT method.

Importing this package registers the method with peft, and the model card with what is saved and pushed.
"""

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method

from deltamem.chat.session import ChatSession
from deltamem.chat.store import SessionStore
from deltamem.config import DELTA_MEM, NAME, DeltaMemConfig
from deltamem.hook import AttentionHook
from deltamem.hook.registered import register_hook
from deltamem.hub.push_to_hub import keep_card
from deltamem.memory.state import DeltaMemState
from deltamem.model import DeltaMemModel
from deltamem.rule import register_memory_kind
from deltamem.versions import ask_tuner

if DELTA_MEM not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(name=NAME, config_cls=DeltaMemConfig, model_cls=DeltaMemModel)
    ask_tuner(DeltaMemModel)
keep_card()

__all__ = [
    "AttentionHook",
    "ChatSession",
    "DeltaMemConfig",
    "DeltaMemModel",
    "DeltaMemState",
    "SessionStore",
    "register_hook",
    "register_memory_kind",
]
