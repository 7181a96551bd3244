"""CPM-Ant: separate projections; the model prepends its own prompt tokens."""

from deltamem.hook import Unsupported

HOOKS = {"cpmant": Unsupported("it puts prompt tokens of its own before every text, which a memory would take for the text's")}
