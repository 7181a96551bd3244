"""Packed: tensors of all layers in one tensor, taken apart only where somebody asks for one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor


class Packed(Mapping[str, Tensor]):
    """Tensors by their layers' names, which are the parts of one tensor.

    Args:
        numbers: of each layer, which part is its.
        whole: the parts, `[layers, ...]`.
    """

    __slots__ = ("numbers", "whole")

    def __init__(self, numbers: Mapping[str, int], whole: Tensor) -> None:
        self.numbers, self.whole = numbers, whole

    def __getitem__(self, name: str) -> Tensor:
        return self.whole[self.numbers[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)
