"""Makes peft know δ-mem, once, on import."""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method

from deltamem.config import DeltaMemConfig
from deltamem.hub.push_to_hub import keep_card
from deltamem.model import DeltaMemModel
from deltamem.peft_type import DELTA_MEM, NAME

if DELTA_MEM not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(name=NAME, config_cls=DeltaMemConfig, model_cls=DeltaMemModel)
keep_card()
