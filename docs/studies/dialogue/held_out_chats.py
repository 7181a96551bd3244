"""Writes the held-out dialogues to files for `deltamem eval continuation --data FILE`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from episodes import Sources

MESSAGES = 24  # of a meeting, which is cut into pieces; `deltamem eval continuation` reads the last four


def main() -> None:
    """Write a file for chitchat and one for QMSum; `sgd_dev.jsonl.gz` can be read as it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder for chitchat.jsonl and qmsum.jsonl")
    parser.add_argument("--data", type=Path, required=True, help="folder with the files that README.md names")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    talks = Sources(options.data).talks(held_out=True)
    for name in ("chitchat", "qmsum"):
        chats = [chat["messages"] for chat in talks[name]]
        pieces = (
            [messages[start : start + MESSAGES] for messages in chats for start in range(0, len(messages), MESSAGES)]
            if name == "qmsum"
            else chats
        )
        with (options.output / f"{name}.jsonl").open("w") as file:
            file.writelines(json.dumps({"messages": messages}) + "\n" for messages in pieces)


if __name__ == "__main__":
    main()
