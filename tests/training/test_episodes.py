import pytest
import torch
from tiny_chat import chat_tokenizer

from deltamem.training.episodes import IGNORED, EpisodeCollator, EpisodeEncoder, read_chats
from deltamem.training.given import Given

CHAT = [
    {"role": "system", "content": "Remember everything."},
    {"role": "user", "content": "Anna likes teal."},
    {"role": "assistant", "content": "Noted."},
    {"role": "user", "content": "What does Anna like?"},
    {"role": "assistant", "content": "teal"},
]


def words(ids):
    return " ".join(chat_tokenizer().convert_ids_to_tokens(ids.tolist())).replace("\n", "|")


def test_the_two_passes_of_an_episode():
    episode = EpisodeEncoder(chat_tokenizer())(CHAT)
    assert words(episode.write.ids) == (
        "<|im_start|> system | Remember everything . <|im_end|> | <|im_start|> user | Anna likes teal . <|im_end|> | "
        "<|im_start|> assistant | Noted . <|im_end|> |"
    )
    assert words(episode.read_ids) == (
        "<|im_start|> system | Remember everything . <|im_end|> | <|im_start|> user | What does Anna like ? <|im_end|> | "
        "<|im_start|> assistant | teal <|im_end|> |"
    )


@pytest.mark.parametrize(
    ("answer_only", "trained"), [(False, "<|im_start|> assistant | teal <|im_end|> |"), (True, "teal <|im_end|> |")]
)
def test_what_is_trained_on(answer_only, trained):
    episode = EpisodeEncoder(chat_tokenizer(), answer_only=answer_only)(CHAT)
    assert words(episode.labels[episode.labels != IGNORED]) == trained


def test_several_questions_are_read_in_one_context():
    more = [{"role": "user", "content": "Where is Bob?"}, {"role": "assistant", "content": "Oslo"}]
    episode = EpisodeEncoder(chat_tokenizer(), answer_only=True)([*CHAT, *more], read_turns=2)
    assert words(episode.write.ids) == words(EpisodeEncoder(chat_tokenizer())(CHAT).write.ids)
    assert words(episode.read_ids).endswith(
        "teal <|im_end|> | <|im_start|> user | Where is Bob ? <|im_end|> | <|im_start|> assistant | Oslo <|im_end|> |"
    )
    assert words(episode.labels[episode.labels != IGNORED]) == "teal <|im_end|> | Oslo <|im_end|> |"


def test_a_long_history_keeps_its_end():
    episode = EpisodeEncoder(chat_tokenizer(), max_write_tokens=4)(CHAT)
    assert words(episode.write.ids) == "Noted . <|im_end|> |"


def test_too_long_a_read_pass_is_refused():
    with pytest.raises(ValueError, match="24 tokens, more than max_read_tokens=10"):
        EpisodeEncoder(chat_tokenizer(), max_read_tokens=10)(CHAT)


@pytest.mark.parametrize("chat", [CHAT[:1], CHAT[:3], CHAT[1:3], CHAT[:4], [*CHAT[:3], CHAT[4], CHAT[3]]])
def test_an_episode_needs_history_question_and_answer(chat):
    with pytest.raises(ValueError, match="an episode needs a history"):
        EpisodeEncoder(chat_tokenizer())(chat)


def test_a_batch_is_padded_on_the_left():
    longer = [*CHAT[:1], {"role": "user", "content": "Hello there."}, *CHAT[1:]]
    batch = EpisodeCollator(EpisodeEncoder(chat_tokenizer(), write="message"))([{"messages": CHAT}, {"messages": longer}])
    batch = batch["memory"]
    assert batch["write_input_ids"].shape == batch["write_attention_mask"].shape == batch["write_segment_ids"].shape
    padding = batch["write_attention_mask"][0] == 0
    assert padding.sum() == 8
    assert padding[:8].all()
    assert (batch["write_segment_ids"][0][padding] == -1).all()
    assert (batch["labels"] != IGNORED).sum(1).tolist() == [6, 6]
    assert torch.equal(batch["labels"][0], batch["labels"][1])


@pytest.mark.parametrize("record", [[], {"text": "Hello"}, {"messages": []}, {"messages": [{"role": "user"}]}, None])
def test_a_record_that_is_no_chat_is_named(record):
    with pytest.raises(ValueError, match="record 2"):
        read_chats([Given({"messages": CHAT}, "record 1"), Given(record, "record 2")])
