"""User-supplied records with validated access: each field is returned in the type asked for, or refused with an explanation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

MISSING = object()


@dataclass(frozen=True)
class Given:
    """A part of a record, and where it comes from.

    Args:
        value: the part, of any type; `MISSING` if the record does not have it.
        place: the file and the record, for error messages.
        field: the path within the record, such as "qa[2].answer"; "" for the whole record.
    """

    value: Any
    place: str
    field: str = ""

    def __getitem__(self, name: str) -> Given:
        """A field of a mapping, whether or not it is present.

        Raises:
            ValueError: this is not a mapping.
        """
        return Given(self.mapping().get(name, MISSING), self.place, f"{self.field}.{name}" if self.field else name)

    @property
    def is_given(self) -> bool:
        """Whether it is present and not null."""
        return self.value is not MISSING and self.value is not None

    def mapping(self) -> Mapping[str, Any]:
        """Return it as a mapping.

        Raises:
            ValueError: it is not a mapping.
        """
        if not isinstance(self.value, Mapping):
            self.refuse("names with their values, {...}")
        return self.value

    def items(self, empty: bool = False) -> list[Given]:
        """Return the entries of a list.

        Args:
            empty: whether the list may be empty.

        Raises:
            ValueError: it is not such a list.
        """
        if not isinstance(self.value, list) or not (self.value or empty):
            self.refuse("a list, [...]" if empty else "a list, [...], with at least one entry")
        return [Given(item, self.place, f"{self.field}[{number}]") for number, item in enumerate(self.value)]

    def pairs(self) -> list[tuple[Given, Given]]:
        """Return the entries of a list of pairs.

        Raises:
            ValueError: it is not such a list.
        """
        pairs = []
        for part in self.items():
            if not isinstance(part.value, list) or len(part.value) != 2:
                part.refuse("a list of two")
            first, second = part.items()
            pairs.append((first, second))
        return pairs

    def text(self, empty: bool = False) -> str:
        """Return it as a string.

        Args:
            empty: whether it may be empty or blank.

        Raises:
            ValueError: it is not such a string, or contains a lone surrogate, which no tokenizer accepts.
        """
        if not isinstance(self.value, str) or not (self.value.strip() or empty):
            self.refuse("a text" if empty else "a text that is not blank")
        try:
            self.value.encode()
        except UnicodeEncodeError:
            self.refuse("a text of whole characters")
        return self.value

    def texts(self, empty: bool = False) -> list[str]:
        """Return a list of strings, which may be empty; for `empty` see `text`.

        Raises:
            ValueError: it is not such a list.
        """
        return [part.text(empty) for part in self.items(empty=True)]

    def text_or_number(self) -> str:
        """Return a non-blank string, or a number as a string.

        Raises:
            ValueError: it is neither.
        """
        if isinstance(self.value, int | float) and not isinstance(self.value, bool):
            return str(self.value)
        if not isinstance(self.value, str):
            self.refuse("a text or a number")
        return self.text()

    def number(self, accepted: Collection[int]) -> int:
        """Return an integer from the accepted ones.

        Raises:
            ValueError: it is not one of them.
        """
        if type(self.value) is not int or self.value not in accepted:
            self.refuse(f"a whole number, {_in_words(accepted)}")
        return self.value

    def refuse(self, accepted: str) -> NoReturn:
        """Raise an error that says what is accepted here.

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
