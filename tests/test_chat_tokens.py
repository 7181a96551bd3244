import pytest
import torch
from tiny_chat import chat_tokenizer

from deltamem.chat_tokens import ChatTokens, check_messages

CHAT = [
    {"role": "system", "content": "Remember everything."},
    {"role": "user", "content": "Hello there. Anna likes teal!\nBob lives in Oslo"},
    {"role": "assistant", "content": "Noted."},
]


def spoken(write):
    """The words of each segment, and those of no segment."""
    tokenizer = chat_tokenizer()
    tokens = ChatTokens.of(tokenizer, CHAT, write)
    words = tokenizer.convert_ids_to_tokens(tokens.ids.tolist())
    segments: dict[int, str] = {}
    for word, segment in zip(words, tokens.segment_ids.tolist(), strict=True):
        segments[segment] = f"{segments.get(segment, '')} {word}".strip()
    return segments


def test_messages_are_segments_without_template_and_system_prompt():
    segments = spoken("message")
    assert segments[0] == "Hello there . Anna likes teal ! Bob lives in Oslo"
    assert segments[1] == "Noted ."
    assert "Remember" in segments[-1]
    assert {*segments} == {-1, 0, 1}


def test_sentences_are_segments():
    segments = spoken("sentence")
    assert [segments[index] for index in range(4)] == ["Hello there .", "Anna likes teal !", "Bob lives in Oslo", "Noted ."]
    assert {*segments} == {-1, 0, 1, 2, 3}


def test_token_writers_have_no_segments():
    assert {*spoken("token")} == {-1}


def test_a_repeated_message_is_a_segment_of_its_own():
    tokenizer = chat_tokenizer()
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]
    segment_ids = ChatTokens.of(tokenizer, chat, "message").segment_ids
    assert segment_ids[segment_ids >= 0].tolist() == [0, 1]


def test_pieces_make_up_the_whole():
    tokens = ChatTokens.of(chat_tokenizer(), CHAT)
    pieces = [*tokens.pieces(5)]
    assert all(len(piece.ids) <= 5 for piece in pieces)
    assert torch.equal(torch.cat([piece.ids for piece in pieces]), tokens.ids)


@pytest.mark.parametrize("messages", [None, "hello", [], [{}], [{"role": "user"}], [{"role": "user", "content": 3}], ["hello"]])
def test_what_is_no_chat_is_refused(messages):
    with pytest.raises(ValueError, match="role"):
        check_messages(messages)


def test_a_tokenizer_without_template_is_refused():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        ChatTokens.of(tokenizer, CHAT)


@pytest.mark.parametrize("template", ["{{ raise_exception('no system role') }}", "{{ nothing.at_all }}", "{% for m in %}"])
def test_a_template_that_refuses_a_chat_is_an_error_in_words(template):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}" + template + "{% endif %}" + tokenizer.chat_template
    with pytest.raises(ValueError, match="refuses a chat of the roles system, user, assistant: "):
        ChatTokens.of(tokenizer, CHAT)
