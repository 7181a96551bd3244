import pytest
import torch
import torch.nn.functional as F
from tiny_chat import chat_model, chat_tokenizer

from deltamem.training.costs import _counted, answer_loss
from deltamem.training.episodes import EpisodeCollator, EpisodeEncoder
from deltamem.training.scripts import IGNORED
from deltamem.training.writing import ChunkWriter


def chat(*told, asked=(("What does Anna like?", "teal"),)):
    turns = [*((text, "Noted.") for text in told), *asked]
    roles = ("user", "assistant")
    messages = [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]
    return {"messages": messages, "read_turns": len(asked)}


LONG = chat("Anna likes teal.", "Bob likes red.", "Hello there.", "Bob lives in Rome.", "Okay.", asked=(("What is 1?", "1 2"),))
SHORT = chat("Anna likes teal.", asked=(("Where is Bob?", "Oslo"), ("What does Anna like?", "teal . 2"), ("Okay?", "1")))


def batch_of(*chats, write="token"):
    return EpisodeCollator(EpisodeEncoder(chat_tokenizer(), write=write, answer_only=True))(chats)


def test_the_loss_is_cross_entropy_over_all_answers():
    model, batch = chat_model(spread=0.5), batch_of(LONG, SHORT)["memory"]
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED)
        costs = answer_loss(model, batch)
    torch.testing.assert_close(costs.answers / (batch["labels"] != IGNORED).sum(), expected)
    assert costs.asked.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("predicted", "right"),
    [
        ([1, 2, 3, 4, 5], 2),  # "1 2 3", and behind a gap "4 5"
        ([1, 2, 0, 4, 5], 1),
        ([0, 0, 0, 4, 0], 0),
        ([1, 2, 3, 0, 0], 1),
    ],
)
def test_an_answer_is_right_if_all_of_it_is(predicted, right):
    places = torch.tensor([3, 4, 5, 8, 9])
    counted = _counted(torch.tensor([predicted]), torch.tensor([[1, 2, 3, 4, 5]]), places)
    assert [tensor.tolist() for tensor in counted] == [[right], [2]]


def test_answers_are_told_apart_by_what_another_row_labels():
    """A place that only the other row is trained on parts two answers as well."""
    targets = torch.tensor([[1, IGNORED, 2], [IGNORED, 3, IGNORED]])
    right, asked = _counted(torch.tensor([[1, 9, 9], [9, 3, 9]]), targets, torch.tensor([0, 1, 2]))
    assert (right.tolist(), asked.tolist()) == ([1, 1], [2, 1])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def written_by_hand(model, batch, size, linked):
    """The memory after chunks from the end, by public means; the gradients of those before the last `linked` cut."""
    state, tokens = model.new_memory(len(batch["input_ids"])), batch["input_ids"].shape[1]
    starts = [0, *range(tokens % size or size, tokens, size)]
    for number, start in enumerate(starts):
        part = slice(start, [*starts, tokens][number + 1])
        if number == len(starts) - linked:
            state = state.clone()  # a plain value
            state.snapshot = state.snapshot.map(torch.Tensor.detach)
        with model.memory(state, detach=False):
            model(input_ids=batch["input_ids"][:, part], attention_mask=batch["attention_mask"][:, part])
    return state


@pytest.mark.parametrize("linked", [None, 1, 2])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_history_in_chunks(linked, attention):
    """The short row's first chunks are all padding, which must not reach its gradients."""
    model, batch = chat_model(spread=0.5), batch_of(LONG, SHORT)["chats"]
    model.set_attn_implementation(attention)
    state = model.new_memory(2)
    write_gates = ChunkWriter(model, chunk_tokens=7, gradient_chunks=linked)(model, batch, state)
    expected = written_by_hand(model, batch, 7, 99 if linked is None else linked)
    chunks = -(-batch["input_ids"].shape[1] // 7)
    assert len(write_gates) == (chunks if linked is None else linked)
    for name, tensor in state.tensors.items():
        torch.testing.assert_close(tensor, expected.tensors[name])
    found, wanted = (
        gradients(model, sum(tensor.square().sum() for tensor in memory.tensors.values())) for memory in (state, expected)
    )
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_a_segment_may_lie_in_two_chunks():
    """A message's mean does not depend on where the history is cut, if the backbone's context does not."""
    model = chat_model(write="message", layers_to_transform=[0])  # whose hidden states are embeddings
    batch = batch_of(LONG, SHORT, write="message")["chats"]
    whole, cut = model.new_memory(2), model.new_memory(2)
    with torch.no_grad():
        ChunkWriter(model)(model, batch, whole)
        ChunkWriter(model, chunk_tokens=5)(model, batch, cut)
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(cut.tensors[name], tensor)
