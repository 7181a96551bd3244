"""Writes the held-out dialogues to files for `deltamem eval continuation --data FILE`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from episodes import Sources

from deltamem.chat.tokens import Message

MESSAGES = 24  # of a meeting, which is cut into pieces; `deltamem eval continuation` reads the last four


def held_out_chats(sources: Sources) -> dict[str, list[list[Message]]]:
    """The messages of held-out dialogues by source; meetings are cut into pieces."""
    chats = {name: [chat["messages"] for chat in talks] for name, talks in sources.talks(held_out=True).items()}
    starts = [(messages, start) for messages in chats["qmsum"] for start in range(0, len(messages), MESSAGES)]
    return {**chats, "qmsum": [messages[start : start + MESSAGES] for messages, start in starts]}


def main() -> None:
    """Write a file for chitchat and one for QMSum; `sgd_dev.jsonl.gz` can be read as it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder for chitchat.jsonl and qmsum.jsonl")
    parser.add_argument("--data", type=Path, required=True, help="folder with the files that README.md names")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    chats = held_out_chats(Sources(options.data))
    for name in ("chitchat", "qmsum"):
        with (options.output / f"{name}.jsonl").open("w") as file:
            file.writelines(json.dumps({"messages": messages}) + "\n" for messages in chats[name])


if __name__ == "__main__":
    main()
