"""A message is written once, whatever a chat template makes of earlier turns later."""

import pytest
import torch
from tiny_chat import TEMPLATE, chat_model, chat_tokenizer

import deltamem.chat.session
from deltamem import ChatSession
from deltamem.chat.context import Context
from deltamem.chat.continuation import new_from
from deltamem.chat.tokens import ChatTokens

SHORT = {"max_new_tokens": 3, "do_sample": False}
TEXTS = ("Anna likes teal.", "Bob lives in Rome.", "Where is Anna?")
DATED = "<|im_start|>system\n{{ day }}<|im_end|>\n" + TEMPLATE
# As Qwen 3's: reasoning is kept in the last answer alone.
WITHOUT_REASONING = TEMPLATE.replace(
    "{{ m['content'] }}",
    "{{ m['content'] if loop.last or m['role'] == 'user' else m['content'].split('</think>')[-1].lstrip() }}",
)
# As Phi 3's: something stands at the end of every chat.
WITH_AN_END = TEMPLATE.replace("{% endfor %}", "{% endfor %}{% if not add_generation_prompt %}1 2{% endif %}")
REPLACED = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] if loop.last or m['role'] == 'user' else 'Okay' }}")
REASONED = "<think>\nBob likes red .\n</think>\n\nteal ."


def session(template, **options):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = template
    return ChatSession(chat_model(**options), tokenizer, template_options={"day": "Anna"})


def written_by(chat, text):
    before = chat.memory.tokens[0]
    chat.reply(text, **SHORT)
    return chat.memory.tokens[0] - before


@pytest.mark.parametrize("write", ["token", "message", "sentence"])
@pytest.mark.parametrize("turn_writes", ["after", "during"])
def test_another_date_writes_no_turn_again(write, turn_writes):
    chat, twin = (session(DATED, write=write, turn_writes=turn_writes) for _ in range(2))
    for each in (chat, twin):
        for text in TEXTS[:2]:
            each.reply(text, **SHORT)
    chat.template_options["day"] = "Bob Bob Bob"
    assert abs(written_by(chat, TEXTS[2]) - written_by(twin, TEXTS[2])) <= 2  # but for the length of the answers


def test_without_the_mend_another_date_would_write_the_context_again(monkeypatch):
    chat = session(DATED)
    whole = written_by(chat, TEXTS[0]) + written_by(chat, TEXTS[1])
    chat.template_options["day"] = "Bob"
    monkeypatch.setattr(Context, "read_again", lambda self, tokens, memory: vars(self).update(vars(Context(self.model))))
    assert written_by(chat, TEXTS[2]) > whole


@pytest.mark.parametrize("template", [WITHOUT_REASONING, WITH_AN_END])
@pytest.mark.parametrize("write", ["token", "message"])
def test_each_turn_writes_what_it_would_write_alone(monkeypatch, template, write):
    monkeypatch.setattr(deltamem.chat.session, "generate", lambda *_: REASONED)
    chat = session(template, write=write)
    told = [written_by(chat, "Anna likes teal.") for _ in range(4)]
    # A tag at a message's edge is the template's where the template looks for tags.
    assert max(told) - min(told) <= (len("< think > \\n".split(" ")) if write == "message" else 0)
    if write == "token":
        assert told[0] == len(ChatTokens.from_messages(chat.tokenizer, chat.messages[:2]).ids)


def test_the_context_is_as_the_template_renders_it_now(monkeypatch):
    prompts = []

    def answer(model, tokenizer, prompt, *_):
        prompts.append(tokenizer.decode(prompt[0]))
        return REASONED

    monkeypatch.setattr(deltamem.chat.session, "generate", answer)
    chat = session(WITHOUT_REASONING)
    for text in TEXTS:
        chat.reply(text)
    assert all("red" not in prompt for prompt in prompts)  # what was only thought
    rendered = ChatTokens.from_messages(chat.tokenizer, chat.messages).ids.tolist()
    assert list(chat._context.ids) == rendered


def test_a_message_that_is_no_longer_rendered_is_refused():
    chat = session(REPLACED)
    chat.reply(TEXTS[0], **SHORT)
    memory, messages = chat.memory.clone(), chat.messages
    with pytest.raises(ValueError, match="forget_context"):
        chat.reply(TEXTS[1], **SHORT)
    assert chat.messages == messages
    assert all(torch.equal(chat.memory.tensors[name], state) for name, state in memory.tensors.items())
    chat.forget_context()
    chat.reply(TEXTS[1], **SHORT)


@pytest.mark.parametrize("change", ["template", "day", "nothing"])
def test_a_session_that_was_loaded_goes_on_as_the_one_that_was_not(tmp_path, change):
    chat = session(DATED)
    chat.reply(TEXTS[0], **SHORT)
    if change == "day":
        chat.template_options["day"] = "Bob"
        chat.reply(TEXTS[1], **SHORT)  # the context was read again
    chat.save(tmp_path)
    loaded = ChatSession.load(tmp_path, chat.model, chat.tokenizer)
    assert loaded.template_options == chat.template_options
    if change == "template":
        chat.tokenizer.chat_template = DATED.replace("{{ day }}", "Remember everything .")
    assert loaded.reply(TEXTS[2], **SHORT) == chat.reply(TEXTS[2], **SHORT)
    assert loaded.memory.tokens == chat.memory.tokens
    for name, state in chat.memory.tensors.items():
        torch.testing.assert_close(loaded.memory.tensors[name], state, atol=1e-5, rtol=0)


@pytest.mark.parametrize("texts", [("Anna", "", "Bob"), ("user", "assistant", "user"), ("Anna", "Anna", "Anna")])
def test_what_is_new_begins_behind_what_is_known(texts):
    tokenizer = chat_tokenizer()
    chat = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), texts, strict=True)]
    for known in (1, 2):
        assert new_from(tokenizer, chat, known) == len(ChatTokens.from_messages(tokenizer, chat[:known]).ids)


def weather(city: str) -> str:
    """The weather.

    Args:
        city: where.
    """
    return city


def test_template_options_that_are_no_json_are_not_saved(tmp_path):
    chat = ChatSession(chat_model(), chat_tokenizer(), template_options={"tools": [weather]})
    with pytest.raises(ValueError, match="get_json_schema"):
        chat.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["tokenize", "add_generation_prompt"])
def test_what_is_no_option_of_a_template_is_refused(name):
    with pytest.raises(ValueError, match=name):
        ChatSession(chat_model(), chat_tokenizer(), template_options={name: True})
