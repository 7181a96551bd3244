"""BM25 search over passages."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from deltamem.evaluation.extras import needs


class Search:
    """A BM25 index of passages.

    Args:
        passages: the passages, at least one.

    Raises:
        ValueError: the package bm25s is missing.
    """

    def __init__(self, passages: Sequence[str]) -> None:
        self._bm25s = needs("bm25s")
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs every index it builds
        self.passages = passages
        tokens = self._tokens(passages)
        self._index = self._bm25s.BM25() if any(tokens.ids) else None  # only stop words or one-letter words: nothing to find
        if self._index is not None:
            self._index.index(tokens, show_progress=False)

    def find(self, question: str, count: int) -> list[str]:
        """The best passages for a question, at most `count`, in their original order."""
        count = min(count, len(self.passages))
        if self._index is None:
            return [*self.passages[:count]]
        places, _ = self._index.retrieve(self._tokens([question]), k=count, show_progress=False)
        return [self.passages[place] for place in sorted(places[0].tolist())]

    def _tokens(self, texts: Sequence[str]) -> Any:
        return self._bm25s.tokenize(list(texts), stopwords="en", show_progress=False)
