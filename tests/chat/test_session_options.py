"""The options of `reply` and `stream` do what they say in every turn, or are refused; a session in use is in use."""

import threading
from contextlib import nullcontext

import pytest
import torch
from tiny import tiny_adapted, tiny_backbone
from tiny_chat import chat_model, chat_tokenizer
from transformers import AutoConfig, BloomConfig, BloomForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList

import deltamem.chat.session
from deltamem import ChatSession, SessionStore
from deltamem.chat.answer import MAX_NEW_TOKENS
from deltamem.hook.text_decoder import longest_context

TEXTS = ("Anna likes teal .", "What ? Anna likes teal . What", "Where is Bob ?")
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def session(**options):
    return ChatSession(chat_model(spread=0.5, **options), chat_tokenizer(), system="Remember everything .")


def endless():
    """A session whose model never ends a turn by itself."""
    model = tiny_adapted(backbone=tiny_backbone(eos_token_id=None, initializer_range=0.5))
    model.generation_config.eos_token_id = None
    return ChatSession(model, chat_tokenizer())


def answers(chat, **options):
    return [chat.reply(text, **{**GREEDY, **options}) for text in TEXTS]


@pytest.mark.parametrize("write", ["token", "message"])
@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_model": "another model"},
        {"return_dict_in_generate": True},
        {"generation_config": GenerationConfig(use_cache=False)},
    ],
    ids=str,
)
def test_how_an_answer_is_computed_does_not_change_it(options, write):
    options = {name: tiny_backbone(eos_token_id=3) if name == "assistant_model" else option for name, option in options.items()}
    chat, twin = session(write=write), session(write=write)
    assert answers(chat, **options) == answers(twin)
    assert chat.memory.tokens == twin.memory.tokens


def test_prompt_lookup_without_the_mend_answers_otherwise(monkeypatch):
    expected = answers(endless())
    monkeypatch.setattr("deltamem.chat.answer._only_what_is_new", lambda *_: nullcontext())
    assert answers(endless(), prompt_lookup_num_tokens=3) != expected


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 3}])
@pytest.mark.parametrize("of_the_model", [False, True])
def test_several_sequences_in_every_turn(options, of_the_model):
    chat = session()
    if of_the_model:
        chat.model.generation_config.update(**options)
        options = {"generation_config": GenerationConfig(max_new_tokens=3)}
    assert all(isinstance(chat.reply(text, **options), str) for text in TEXTS)
    assert len(chat.memory) == 1


class After(StoppingCriteria):
    def __init__(self, calls):
        self.calls = calls

    def __call__(self, ids, scores, **kwargs):
        self.calls -= 1
        return torch.tensor([self.calls <= 0])


def test_a_stream_asks_the_callers_criteria_too():
    replied, streamed = endless(), endless()
    options = {"max_new_tokens": 9, "do_sample": False}
    answer = replied.reply(TEXTS[0], stopping_criteria=StoppingCriteriaList([After(2)]), **options)
    assert "".join(streamed.stream(TEXTS[0], stopping_criteria=[After(2)], **options)).strip() == answer
    assert len(answer.split()) <= 2


def new_tokens(monkeypatch, chat, **options):
    """How many tokens a reply may have, by the settings that reach the model."""
    seen = {}
    inner = chat.model.get_base_model()
    monkeypatch.setattr(
        inner, "_validate_generated_length", lambda config, length, *_: seen.update(most=config.max_length - length)
    )
    chat.reply(TEXTS[0], **options)
    return seen["most"]


LENGTHS = {
    "nothing": ({}, MAX_NEW_TOKENS),
    "max_new_tokens": ({"max_new_tokens": 3}, 3),
    "config": ({"generation_config": GenerationConfig(max_new_tokens=4)}, 4),
    "config of something else": ({"generation_config": GenerationConfig(do_sample=False)}, MAX_NEW_TOKENS),
    "None": ({"max_new_tokens": None}, MAX_NEW_TOKENS),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_a_length_that_was_given_is_not_replaced(monkeypatch, case):
    options, expected = LENGTHS[case]
    assert new_tokens(monkeypatch, session(), **options) == expected


def test_the_lengths_of_the_model_and_in_all(monkeypatch):
    chat = session()
    chat.model.generation_config.max_new_tokens = 5
    assert new_tokens(monkeypatch, chat) == 5
    answer = endless().reply(TEXTS[0], max_length=20, do_sample=False)
    assert 0 < len(answer.split()) < 20


def test_padding_is_the_callers_then_the_models_then_the_tokenizers(monkeypatch):
    chat, seen = session(), []
    inner = chat.model.get_base_model()
    generate = inner.generate
    monkeypatch.setattr(inner, "generate", lambda **kw: seen.append(kw["generation_config"].pad_token_id) or generate(**kw))
    chat.reply(TEXTS[0], **GREEDY, pad_token_id=7)
    chat.model.generation_config.pad_token_id = 8
    chat.reply(TEXTS[0], **GREEDY)
    chat.model.generation_config.pad_token_id = None
    chat.reply(TEXTS[0], **GREEDY)
    assert seen == [7, 8, chat.tokenizer.pad_token_id]


@pytest.mark.parametrize("name", ["attention_mask", "input_ids", "past_key_values", "streamer"])
def test_what_the_session_makes_is_refused(name):
    chat = session()
    with pytest.raises(ValueError, match=name):
        chat.reply(TEXTS[0], **GREEDY, **{name: torch.ones(1, 3)})
    assert chat.messages == []
    assert chat.memory.tokens == [0]


@pytest.mark.parametrize(
    ("model_type", "longest"),
    [("llama", 256), ("bloom", None), ("mpt", 256), ("gpt2", 256), ("recurrent_gemma", None)],
)
def test_models_that_call_their_longest_context_otherwise(model_type, longest):
    names = {"llama": "max_position_embeddings", "mpt": "max_seq_len", "gpt2": "n_positions"}
    model = torch.nn.Module()
    model.config = AutoConfig.for_model(model_type, **({names[model_type]: 256} if longest else {}))
    assert longest_context(model) == longest


@pytest.mark.parametrize("text", ["Anna likes teal .", "Anna likes teal . " * 100], ids=["short", "long"])
def test_a_model_without_a_longest_context_observes(monkeypatch, text):
    monkeypatch.setattr(deltamem.chat.session, "PIECE", 100)
    backbone = BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=61)).eval()
    chat = ChatSession(tiny_adapted(backbone=backbone), chat_tokenizer())
    chat.observe(text)
    assert chat.memory.tokens[0] > len(text.split())


# ------------------------------------------------------------------------------------------------------------ in use

USES = {
    "observe": lambda chat, folder: chat.observe("Bob"),
    "reply": lambda chat, folder: chat.reply("Bob", **GREEDY),
    "stream": lambda chat, folder: next(chat.stream("Bob", **GREEDY)),
    "save": lambda chat, folder: chat.save(folder),
    "forget_context": lambda chat, folder: chat.forget_context(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("end", ["close", "read"])
def test_a_session_is_not_used_while_its_stream_is_open(tmp_path, use, end):
    chat, twin = endless(), endless()
    stream = chat.stream(TEXTS[0], max_new_tokens=8, do_sample=False)
    next(stream)
    with pytest.raises(RuntimeError, match="in use"):
        USES[use](chat, tmp_path)
    if end == "read":
        assert [*stream]
        twin.reply(TEXTS[0], max_new_tokens=8, do_sample=False)
    else:
        stream.close()
    assert chat.messages == twin.messages
    assert all(torch.equal(chat.memory.tensors[name], state) for name, state in twin.memory.tensors.items())
    USES[use](chat, tmp_path)


def test_a_session_is_not_used_by_another_thread_meanwhile(monkeypatch):
    chat, errors = session(), []

    def observe():
        with pytest.raises(RuntimeError) as error:
            chat.observe("Bob")
        errors.append(error.value)

    def meanwhile(*_):
        other = threading.Thread(target=observe)
        other.start()
        other.join()
        return "Okay"

    monkeypatch.setattr(deltamem.chat.session, "generate", meanwhile)
    chat.reply(TEXTS[0])
    assert "in use" in str(errors[0])
    assert len(chat.messages) == 2


def test_a_store_hands_the_templates_options_to_new_sessions(tmp_path):
    store = SessionStore(tmp_path, chat_model(), chat_tokenizer(), template_options={"day": "Anna"})
    chat = store.open("anna")
    chat.observe("Anna")
    store.save("anna", chat)
    assert SessionStore(tmp_path, chat.model, chat.tokenizer).open("anna").template_options == {"day": "Anna"}
