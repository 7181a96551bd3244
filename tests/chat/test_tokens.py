import re

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny_chat import TEMPLATE, chat_tokenizer

import deltamem.chat.tokens
from deltamem.chat.message_places import message_places
from deltamem.chat.sentences import sentences
from deltamem.chat.tokens import ChatTokens, check_messages, render

CHAT = [
    {"role": "system", "content": "Remember everything."},
    {"role": "user", "content": "Hello there. Anna likes teal!\nBob lives in Oslo"},
    {"role": "assistant", "content": "Noted."},
]


def spoken(write):
    """The words of each segment, and those of no segment."""
    tokenizer = chat_tokenizer()
    tokens = ChatTokens.from_messages(tokenizer, CHAT, write)
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
    segment_ids = ChatTokens.from_messages(tokenizer, chat, "message").segment_ids
    assert segment_ids[segment_ids >= 0].tolist() == [0, 1]


def test_pieces_make_up_the_whole():
    tokens = ChatTokens.from_messages(chat_tokenizer(), CHAT)
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
        ChatTokens.from_messages(tokenizer, CHAT)


@pytest.mark.parametrize("template", ["{{ raise_exception('no system role') }}", "{{ nothing.at_all }}", "{% for m in %}"])
def test_a_template_that_refuses_a_chat_is_an_error_in_words(template):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}" + template + "{% endif %}" + tokenizer.chat_template
    with pytest.raises(ValueError, match="refuses a chat of the roles system, user, assistant: "):
        ChatTokens.from_messages(tokenizer, CHAT)


def segment_texts(tokenizer, chat, write="message"):
    """The rendered text under each segment's tokens."""
    tokens = ChatTokens.from_messages(tokenizer, chat, write)
    text = render(tokenizer, chat)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    spans: dict[int, list[tuple[int, int]]] = {}
    for span, segment in zip(offsets, tokens.segment_ids.tolist(), strict=True):
        spans.setdefault(segment, []).append(span)
    return [text[spans[number][0][0] : spans[number][-1][1]] for number in sorted(spans) if number >= 0]


DEFAULT_SYSTEM = "<|im_start|>system\nRemember what Anna likes .<|im_end|>\n" + TEMPLATE
TRIMMING = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] | trim }}")
TEMPLATES = [TEMPLATE, DEFAULT_SYSTEM, TRIMMING]
WORDS = [
    "user",
    "assistant",
    "system",
    "Remember",
    "Anna",
    "s",
    "im_start",
    "<|im_start|>",
    "teal .",
    "<b>",
    " Anna\nlikes ",
    ".",
]


@pytest.mark.parametrize("template", TEMPLATES)
@examples(60)
@given(contents=st.lists(st.sampled_from(["", *WORDS]), min_size=1, max_size=5))
def test_a_message_is_found_where_it_stands(template, contents):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = template
    chat = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(contents)]
    assert segment_texts(tokenizer, chat) == [text.strip() for text in contents if text]
    places = message_places(lambda messages: render(tokenizer, messages), chat, render(tokenizer, chat))
    assert [place is None for place in places] == [False] * len(chat)  # the empty ones, too


def test_a_search_would_find_the_template(monkeypatch):
    def search(as_text, messages, text):
        return [
            (text.find(message["content"]), text.find(message["content"]) + len(message["content"])) for message in messages
        ]

    tokenizer = chat_tokenizer()
    chat = [{"role": "user", "content": "user"}]
    right = ChatTokens.from_messages(tokenizer, chat, "message").segment_ids.tolist()
    monkeypatch.setattr(deltamem.chat.tokens, "message_places", search)
    assert ChatTokens.from_messages(tokenizer, chat, "message").segment_ids.tolist() != right


def test_an_earlier_answer_without_its_reasoning():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1].lstrip() }}")
    chat = [{"role": "assistant", "content": "<think>\nAnna\n</think>\n\nteal ."}, {"role": "user", "content": "Anna"}]
    assert segment_texts(tokenizer, chat) == ["teal .", "Anna"]


REWRITTEN = TEMPLATE.replace("m['content']", "m['content'].replace('e', 'ee')")


@pytest.mark.parametrize("template", ["{{ messages[-1]['content'] }}", REWRITTEN])
def test_a_message_that_is_not_rendered_is_refused(template):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match="'Remember"):
        ChatTokens.from_messages(tokenizer, [{"role": "user", "content": text} for text in ("Remember Anna", "Bob")], "message")


# What a sentence is, in one expression, which looks at a run of punctuation again from each of its characters.
SENTENCE = re.compile(r"\S.*?(?:[.!?…]+[\"'”’)\]]*(?=\s+[^\sa-z]|\s*$)|(?=\n)|$)")


@examples(2000)
@given(text=st.text(alphabet="abA é.!?…\"')” \n\t\r\u2028", max_size=14).map(str.strip))
def test_sentences_are_what_their_definition_says(text):
    assert [*sentences(text)] == [match.span() for match in SENTENCE.finditer(text)]
