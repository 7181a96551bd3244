"""The settings under which questions are asked, in words."""

EXPLAINED = {
    "none": "the bare backbone, without the history",
    "full": "the bare backbone, with the whole history in its prompt",
    "full_shuffled": "the bare backbone, with another history in its prompt",
    "tail": "the bare backbone, with as much of the history's end as fits into the bytes of a memory",
    "bm25": "the bare backbone, with passages of the history that BM25 retrieves",
    "memory": "the history is in the memory and not in the prompt",
    "full+memory": "the history is in the memory and in the prompt",
    "bm25+memory": "the history is in the memory, and retrieved passages are in the prompt",
    "zero": "the adapter with an empty memory",
    "shuffled": "the memory of another history",
    "filled": "the memory of an unrelated conversation",
    "writing": "an empty memory, to which the question is written",
    "adapter": "an adapter without a memory",
}
