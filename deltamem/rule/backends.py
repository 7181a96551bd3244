"""What can compute the delta rule, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from deltamem.rule.chunked import chunked_delta_rule
from deltamem.rule.reference import reference_delta_rule

# A backend gets float32 tensors [batch, heads, tokens, r] and a state [batch, heads, r, r], all checked, and needs no mask.
Backend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

BACKENDS: dict[str, Backend] = {"reference": reference_delta_rule, "chunked": chunked_delta_rule}
