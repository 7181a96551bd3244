"""CPM-Ant: separate projections; the model prepends its own prompt tokens."""

from deltamem.hook import Unsupported

HOOKS = {"cpmant": Unsupported("it puts additional prompt tokens before every text, which a memory would mistake for text")}
