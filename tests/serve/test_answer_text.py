"""The text of an answer, token by token, is the text of all its tokens, and each token is decoded a few times at most."""

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny_chat import WORDS, chat_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from deltamem.serve.answer_text import AnswerText


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Each byte is a token, so that many tokens are incomplete characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


TOKENIZERS = {"words": chat_tokenizer(), "bytes": byte_tokenizer()}
TEXTS = st.text(st.sampled_from("aé€🙂 \n\N{REPLACEMENT CHARACTER}"), max_size=40)


def pieces(tokenizer, tokens, stop=()):
    answer = AnswerText(tokenizer, stop)
    shown = [answer.add(token) for token in tokens]
    return answer, [*shown, answer.end()]


def whole(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


@examples(100)
@given(text=TEXTS)
def test_the_pieces_of_a_text_are_the_text(text):
    tokenizer = TOKENIZERS["bytes"]
    tokens = tokenizer(text)["input_ids"]
    answer, shown = pieces(tokenizer, tokens)
    assert "".join(shown) == answer.text == text.strip()


@pytest.mark.parametrize("name", TOKENIZERS)
@examples(100)
@given(data=st.data())
def test_the_pieces_of_any_tokens_are_their_text(name, data):
    tokenizer = TOKENIZERS[name]
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
    answer, shown = pieces(tokenizer, tokens)
    assert "".join(shown) == answer.text == whole(tokenizer, tokens)


@examples(100)
@given(words=st.lists(st.sampled_from([word for word in WORDS if word.isalnum()]), min_size=1), stop=st.sampled_from(WORDS))
def test_an_answer_ends_before_a_stop_text(words, stop):
    tokenizer = TOKENIZERS["words"]
    tokens = tokenizer(" ".join(words))["input_ids"]
    answer, shown = pieces(tokenizer, tokens, (stop,))
    text = whole(tokenizer, tokens)
    assert answer.stopped == (stop in text)
    if stop in text:
        text = text[: text.index(stop)].strip()
    assert "".join(shown) == answer.text == text


def test_a_long_answer_is_not_decoded_again_and_again(monkeypatch):
    tokenizer, decoded = byte_tokenizer(), []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda tokens, **options: decoded.append(len(tokens)) or decode(tokens, **options))
    tokens = tokenizer("é€🙂 " * 100)["input_ids"]
    pieces(tokenizer, tokens)
    assert max(decoded) <= 8  # two characters
