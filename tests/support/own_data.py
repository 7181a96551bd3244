"""Good small files of every format that is read, and what may be wrong with one."""

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

TURNS = [{"speaker": "Anna", "text": "Hello", "blip_caption": "a friend"}, {"speaker": "Bob", "text": "Okay"}]
GOOD: dict[str, list[Any]] = {
    "locomo": [
        {
            "sample_id": f"conversation {number}",
            "conversation": {"session_1": TURNS, "session_1_date_time": "1 May", "speaker_a": "Anna"},
            "qa": [
                {"question": "Who?", "answer": answer, "category": category}
                for category, answer in enumerate(("Anna, Bob", 2023, "Bob; or Anna", "Rome", None), 1)
            ],
        }
        for number in (1, 2)
    ],
    "hotpotqa": [
        {"question": "Where?", "answer": "Rome", "type": "bridge", "context": [["Anna", ["In", "Rome."]], ["Bob", ["Oslo."]]]},
        {"question": "Who?", "answer": "Bob", "context": {"title": ["Anna", "Bob"], "sentences": [["Rome."], ["Oslo."]]}},
    ],
    "kv_retrieval": [{"ordered_kv_records": [["1", "2"], ["3", "4"]], "key": "3", "value": "4"}] * 2,
    "memory_agent_bench": [
        {
            "context": "Anna lives in Rome.",
            "questions": ["Where?", "Who?"],
            "answers": [["Rome", "in Rome"], ["Anna"]],
            "metadata": {"source": "factconsolidation_sh_6k"},
        }
    ]
    * 2,
    "arc_easy": [
        {"question": "Who?", "choices": {"text": ["Anna", "Bob"], "label": ["A", "B"]}, "answerKey": "B"},
        {"query": "Question: Who?", "choices": ["Anna", "Bob"], "gold": 1},
    ],
    "lambada_openai": [{"text": "Anna lives in Rome"}, {"context": "Bob lives in", "continuation": " Oslo"}],
    "gpqa_diamond": [
        {
            "Question": "Where?",
            "Correct Answer": "Rome",
            **{f"Incorrect Answer {number}": f"Oslo {number}" for number in (1, 2, 3)},
        }
    ]
    * 2,
}
CHATS: list[Any] = [
    {
        "messages": [
            {"role": "system", "content": "Remember"},
            {"role": "user", "content": "Anna likes teal."},
            {"role": "assistant", "content": "Noted."},
            {"role": "user", "content": "What does Anna like?"},
            {"role": "assistant", "content": "teal"},
        ],
        "read_turns": 1,
    }
] * 2
DOCUMENTS: dict[str, list[Any]] = {
    "squad": [
        {"context": "Anna lives in Rome.", "question": "Where?", "answers": {"text": ["Rome"]}},
        {
            "paragraphs": [
                {
                    "context": "Bob lives in Oslo.",
                    "qas": [{"question": "Where?", "answers": [{"text": "Oslo"}, {"text": "in"}]}],
                }
            ]
        },
    ],
    "qasper": [
        {
            "title": "Memory",
            "abstract": "We remember.",
            "full_text": {"section_name": ["Method", None], "paragraphs": [["A matrix.", "Small."], ["No heading."]]},
            "qas": {
                "question": ["What?", "Is it?"],
                "answers": [
                    {
                        "answer": [
                            {"unanswerable": True, "free_form_answer": "", "extractive_spans": [], "yes_no": None},
                            {"unanswerable": False, "free_form_answer": "", "extractive_spans": ["a"], "yes_no": None},
                        ]
                    },
                    {"answer": [{"unanswerable": False, "free_form_answer": "", "extractive_spans": [], "yes_no": True}]},
                ],
            },
        }
    ]
    * 2,
    "nq": [
        {
            "question": "who",
            "answers": ["Anna"],
            "ctxs": [{"title": "T", "text": "Gold.", "isgold": True}, {"title": "U", "text": "Other.", "isgold": False}],
        }
    ]
    * 2,
    "hotpotqa": GOOD["hotpotqa"],
}
FILLERS: list[Any] = [{"question": f"What is {number}?", "answer": "one"} for number in range(20)]

DROPPED = object()
KINDS = (
    DROPPED,
    None,
    True,
    0,
    -3,
    10**30,
    1.5,
    float("nan"),
    "",
    " ",
    "text",
    ";",
    "\ud800",
    [],
    [None],
    [[]],
    ["a"],
    {},
    {"a": None},
)


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every part of a record, the whole record among them."""
    yield before
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in entries:
        yield from places(part, (*before, name))


def changed(records: list[Any], way: tuple[Any, ...], kind: Any) -> list[Any]:
    """The records with the part at the end of a way dropped or replaced."""
    records = json.loads(json.dumps(records))
    holder: Any = records
    for name in way[:-1]:
        holder = holder[name]
    if kind is DROPPED:
        del holder[way[-1]]
    else:
        holder[way[-1]] = kind
    return records


def damaged(records: list[Any]) -> st.SearchStrategy[tuple[list[Any], int]]:
    """Records of which one has a part dropped, null, or of another kind; with that one's number, from 1."""
    ways = [way for way in places(records) if way]
    return (
        st.tuples(st.sampled_from(ways), st.sampled_from(KINDS))
        .filter(lambda drawn: len(drawn[0]) > 1 or drawn[1] is not DROPPED)
        .map(lambda drawn: (changed(records, *drawn), drawn[0][0] + 1))
    )
