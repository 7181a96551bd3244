"""A record of a user's data, whose fields are taken one by one: of the kind that is asked for, or refused in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

MISSING = object()


@dataclass(frozen=True)
class Given:
    """A part of a record, and where it stands.

    Args:
        value: the part, of whatever kind; `MISSING` if the record does not have it.
        place: the file and the record, in words.
        field: which part of the record, such as "qa[2].answer"; "" for all of it.
    """

    value: Any
    place: str
    field: str = ""

    def __getitem__(self, name: str) -> Given:
        """A field of a mapping, there or not.

        Raises:
            ValueError: this is no mapping.
        """
        return Given(self.mapping().get(name, MISSING), self.place, f"{self.field}.{name}" if self.field else name)

    @property
    def is_given(self) -> bool:
        """Whether it is there, and not null."""
        return self.value is not MISSING and self.value is not None

    def mapping(self) -> Mapping[str, Any]:
        """Names with their values.

        Raises:
            ValueError: something else.
        """
        if not isinstance(self.value, Mapping):
            self.refuse("names with their values, {...}")
        return self.value

    def items(self, empty: bool = False) -> list[Given]:
        """The parts of a list.

        Args:
            empty: whether there may be none.

        Raises:
            ValueError: something else.
        """
        if not isinstance(self.value, list) or not (self.value or empty):
            self.refuse("a list, [...]" if empty else "a list, [...], with at least one entry")
        return [Given(item, self.place, f"{self.field}[{number}]") for number, item in enumerate(self.value)]

    def pairs(self) -> list[tuple[Given, Given]]:
        """The parts of a list of pairs.

        Raises:
            ValueError: something else.
        """
        pairs = []
        for part in self.items():
            if not isinstance(part.value, list) or len(part.value) != 2:
                part.refuse("a list of two")
            first, second = part.items()
            pairs.append((first, second))
        return pairs

    def text(self, empty: bool = False) -> str:
        """A text.

        Args:
            empty: whether it may be nothing, or blank.

        Raises:
            ValueError: something else, or half a character (a lone surrogate), which no tokenizer takes.
        """
        if not isinstance(self.value, str) or not (self.value.strip() or empty):
            self.refuse("a text" if empty else "a text that is not blank")
        try:
            self.value.encode()
        except UnicodeEncodeError:
            self.refuse("a text of whole characters")
        return self.value

    def texts(self, empty: bool = False) -> list[str]:
        """A list of texts, perhaps an empty one; see `text`.

        Raises:
            ValueError: something else.
        """
        return [part.text(empty) for part in self.items(empty=True)]

    def text_or_number(self) -> str:
        """A text that is not blank, or a number, as a text.

        Raises:
            ValueError: something else.
        """
        if isinstance(self.value, int | float) and not isinstance(self.value, bool):
            return str(self.value)
        if not isinstance(self.value, str):
            self.refuse("a text or a number")
        return self.text()

    def number(self, accepted: Collection[int]) -> int:
        """A whole number of those that are accepted.

        Raises:
            ValueError: something else.
        """
        if type(self.value) is not int or self.value not in accepted:
            self.refuse(f"a whole number, {_in_words(accepted)}")
        return self.value

    def refuse(self, accepted: str) -> NoReturn:
        """Say what is accepted in place of this.

        Raises:
            ValueError: always.
        """
        what = f"{self.place}: {self.field}" if self.field else self.place
        if self.value is MISSING:
            raise ValueError(f"{what} is missing; give {accepted}")
        raise ValueError(f"{what}: {self.value!r:.80} is not accepted; give {accepted}")


def _in_words(numbers: Collection[int]) -> str:
    if isinstance(numbers, range):
        return f"from {numbers.start} to {numbers.stop - 1}"
    return "one of " + ", ".join(map(str, numbers))
