"""XLM and XLNet: trained to fill gaps in a text."""

from deltamem.hook import Unsupported

HOOKS = dict.fromkeys(
    ("xlm", "xlnet"),
    Unsupported("it generates by filling a placeholder after the text, which a memory would mistake for text"),
)
