"""CPM-Ant: separate projections behind prompt tokens of its own."""

from deltamem.hook import Unsupported

HOOKS = {"cpmant": Unsupported("it puts prompt tokens of its own before every text, which a memory would take for the text's")}
