"""The member of peft's enumeration of methods that stands for δ-mem.

peft has no door for methods from outside: a method's name must be a member of `PeftType`. `extend_enum` adds one properly, on
every Python version, where filling the enumeration's private maps would not.
"""

from __future__ import annotations

from aenum import extend_enum
from peft.utils import PeftType

NAME = "delta_mem"

if NAME.upper() not in PeftType.__members__:
    extend_enum(PeftType, NAME.upper(), NAME.upper())

DELTA_MEM: PeftType = PeftType[NAME.upper()]
