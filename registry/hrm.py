"""HRM: its layers run several times in every pass."""

from deltamem.hook import Unsupported

HOOKS = {"hrm_text": Unsupported("its layers run several times in every pass, and a memory reads and writes each token once")}
