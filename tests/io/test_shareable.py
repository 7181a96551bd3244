import pytest

from deltamem.hub.training_record import note_training, training_of
from deltamem.io.shareable import shareable


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/home/anna/my chats.jsonl", "my chats.jsonl"),
        ("~/runs/mine/", "mine"),
        (r"C:\Users\anna\chats.jsonl", "chats.jsonl"),
        ("talk:/home/anna/chats.jsonl", "talk:chats.jsonl"),
        ("--data=/home/anna/chats.jsonl", "--data=chats.jsonl"),
        ("/", "/"),
        ("chats.jsonl", "chats.jsonl"),
        ("data/chats.jsonl", "data/chats.jsonl"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("memory=0.5", "memory=0.5"),
    ],
)
def test_only_the_folders_of_an_absolute_path_are_left_out(given, expected):
    assert shareable(given) == expected


def test_a_card_does_not_name_the_folders_of_its_maker(tmp_path):
    note_training(tmp_path, "facts", ["--data", "/home/anna/chats.jsonl", "--output_dir", str(tmp_path)])
    command = training_of(tmp_path)["command"]
    assert "chats.jsonl" in command
    assert "anna" not in command
    assert str(tmp_path) not in command
