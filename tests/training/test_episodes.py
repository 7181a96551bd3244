import pytest
import torch
from tiny_chat import chat_tokenizer

from deltamem.training.chats import read_chats
from deltamem.training.episodes import EpisodeCollator, EpisodeEncoder
from deltamem.training.given import Given
from deltamem.training.scripts import IGNORED

CHAT = [
    {"role": "system", "content": "Remember everything."},
    {"role": "user", "content": "Anna likes teal."},
    {"role": "assistant", "content": "Noted."},
    {"role": "user", "content": "What does Anna like?"},
    {"role": "assistant", "content": "teal"},
]


def words(ids):
    return " ".join(chat_tokenizer().convert_ids_to_tokens(ids.tolist())).replace("\n", "|")


def trained_on(episode):
    labels = episode.reads[0].labels
    return labels[labels != IGNORED]


def test_the_two_passes_of_an_episode():
    episode = EpisodeEncoder(chat_tokenizer())({"messages": CHAT})
    assert words(episode.chat.ids) == (
        "<|im_start|> system | Remember everything . <|im_end|> | <|im_start|> user | Anna likes teal . <|im_end|> | "
        "<|im_start|> assistant | Noted . <|im_end|> |"
    )
    assert words(episode.reads[0].ids) == (
        "<|im_start|> system | Remember everything . <|im_end|> | <|im_start|> user | What does Anna like ? <|im_end|> | "
        "<|im_start|> assistant | teal <|im_end|> |"
    )


@pytest.mark.parametrize(
    ("answer_only", "trained"), [(False, "<|im_start|> assistant | teal <|im_end|> |"), (True, "teal <|im_end|> |")]
)
def test_what_is_trained_on(answer_only, trained):
    episode = EpisodeEncoder(chat_tokenizer(), answer_only=answer_only)({"messages": CHAT})
    assert words(trained_on(episode)) == trained


def test_several_questions_are_read_in_one_context():
    more = [{"role": "user", "content": "Where is Bob?"}, {"role": "assistant", "content": "Oslo"}]
    episode = EpisodeEncoder(chat_tokenizer(), answer_only=True)({"messages": [*CHAT, *more], "read_turns": 2})
    assert words(episode.chat.ids) == words(EpisodeEncoder(chat_tokenizer())({"messages": CHAT}).chat.ids)
    assert words(episode.reads[0].ids).endswith(
        "teal <|im_end|> | <|im_start|> user | Where is Bob ? <|im_end|> | <|im_start|> assistant | Oslo <|im_end|> |"
    )
    assert words(trained_on(episode)) == "teal <|im_end|> | Oslo <|im_end|> |"


def test_a_long_history_keeps_its_end():
    episode = EpisodeEncoder(chat_tokenizer(), max_write_tokens=4)({"messages": CHAT})
    assert words(episode.chat.ids) == "Noted . <|im_end|> |"


def test_too_long_a_read_pass_is_refused():
    with pytest.raises(ValueError, match="24 tokens, more than max_read_tokens=10"):
        EpisodeEncoder(chat_tokenizer(), max_read_tokens=10)({"messages": CHAT})


@pytest.mark.parametrize("chat", [CHAT[:1], CHAT[:3], CHAT[1:3], CHAT[:4], [*CHAT[:3], CHAT[4], CHAT[3]]])
def test_an_episode_needs_history_question_and_answer(chat):
    with pytest.raises(ValueError, match="an episode needs a history"):
        EpisodeEncoder(chat_tokenizer())({"messages": chat})


def test_a_batch_is_padded_on_the_left():
    longer = [*CHAT[:1], {"role": "user", "content": "Hello there."}, *CHAT[1:]]
    batch = EpisodeCollator(EpisodeEncoder(chat_tokenizer(), write="message"))([{"messages": CHAT}, {"messages": longer}])
    batch, chats = batch["memory"], batch["chats"]
    assert chats["input_ids"].shape == chats["attention_mask"].shape == chats["segment_ids"].shape
    padding = chats["attention_mask"][0] == 0
    assert padding.sum() == 8
    assert padding[:8].all()
    assert (chats["segment_ids"][0][padding] == -1).all()
    assert (batch["labels"] != IGNORED).sum(1).tolist() == [6, 6]
    assert torch.equal(batch["labels"][0], batch["labels"][1])


@pytest.mark.parametrize("record", [[], {"text": "Hello"}, {"messages": []}, {"messages": [{"role": "user"}]}, None])
def test_a_record_that_is_no_chat_is_named(record):
    with pytest.raises(ValueError, match="record 2"):
        read_chats([Given({"messages": CHAT}, "record 1"), Given(record, "record 2")])
