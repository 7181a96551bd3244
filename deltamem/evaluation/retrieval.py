"""What a search by BM25 finds for a question."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from deltamem.evaluation.extras import needs


class Search:
    """An index of passages.

    Args:
        passages: what can be found; at least one.

    Raises:
        ValueError: the package bm25s is missing.
    """

    def __init__(self, passages: Sequence[str]) -> None:
        self._bm25s = needs("bm25s")
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells of every index it makes
        self.passages = passages
        self._index = self._bm25s.BM25()
        self._index.index(self._tokens(passages), show_progress=False)

    def find(self, question: str, count: int) -> list[str]:
        """The best passages for a question, at most so many, in the order in which they were told."""
        count = min(count, len(self.passages))
        places, _ = self._index.retrieve(self._tokens([question]), k=count, show_progress=False)
        return [self.passages[place] for place in sorted(places[0].tolist())]

    def _tokens(self, texts: Sequence[str]) -> object:
        return self._bm25s.tokenize(list(texts), stopwords="en", show_progress=False)
