import pytest
import torch
from tiny_chat import chat_model, chat_tokenizer

from deltamem.evaluation.reading import Reading
from deltamem.evaluation.sampling import Sampling, greedy, sampled
from deltamem.evaluation.subject import Subject

PROMPTS = [[14, 16], [15, 17, 18, 20], [14, 22, 23]]
CONTINUATIONS = [[[20, 3], [21, 19, 3]], [[22, 3]], [[23, 20, 21, 3], [20, 3], [3]]]


@pytest.fixture(scope="module")
def subject():
    return Subject(chat_model(spread=0.3), chat_tokenizer(), system="")


def told(subject):
    """Another memory for every prompt."""
    facts = ("Anna likes teal", "Bob lives in Oslo", "Anna lives in Rome")
    return subject.write([[{"role": "user", "content": fact}] for fact in facts])


def read(subject, prompts=PROMPTS):
    model, cache, before = subject.start(len(prompts))
    return Reading.from_prompt(model, *subject.left_padded([torch.tensor(ids) for ids in prompts]), cache, before)


@torch.no_grad()
def by_hand(subject, memory, prompt, continuation):
    """Log-likelihood by one pass over prompt and continuation."""
    ids = torch.tensor([[*prompt, *continuation]])
    with subject.model.memory(memory, write=False):
        predicted = subject.model(input_ids=ids).logits[0].log_softmax(-1)
    return sum(predicted[len(prompt) - 1 + place, token].item() for place, token in enumerate(continuation))


def test_likelihoods_are_those_of_whole_texts_each_with_its_memory(subject):
    memory = told(subject)
    with subject.model.memory(memory, write=False):
        reading = read(subject)
        found = reading.log_likelihoods([[torch.tensor(ids) for ids in several] for several in CONTINUATIONS])
    for row, (prompt, several) in enumerate(zip(PROMPTS, CONTINUATIONS, strict=True)):
        expected = [by_hand(subject, memory[row], prompt, continuation) for continuation in several]
        assert found[row] == pytest.approx(expected, abs=1e-4)


def test_what_is_said_is_what_generate_says_each_with_its_memory(subject):
    memory = told(subject)
    with subject.model.memory(memory, write=False):
        reading = read(subject)
        reading.log_likelihoods([[torch.tensor([20, 3])]] * 3)  # changes nothing
        said = reading.say(6, {3}, greedy)
        assert reading.say(6, {3}, greedy) == said
    for row, prompt in enumerate(PROMPTS):
        with subject.model.memory(memory[row], write=False):
            whole = subject.model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=3)
        assert said[row] == [token for token in whole[0, len(prompt) :].tolist() if token != 3]


def test_an_end_ends_one_answer_and_no_other(subject):
    reading = read(subject)

    def choose(predicted, rows):
        assert predicted.shape[0] == len(rows)
        return torch.tensor([3 if row == 1 else 20 + row for row in rows])

    assert reading.say(3, {3}, choose) == [[20, 20, 20], [], [22, 22, 22]]


def test_drawn_tokens_depend_on_the_question_s_seed_and_on_no_neighbour():
    predicted = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=40)
    together = [sampled(sampling, [5, 6, 7])(predicted, [0, 1, 2]).tolist() for _ in range(2)]
    assert together[0] == together[1]
    choose = sampled(sampling, [5, 6, 7])
    assert [choose(predicted[[row]], [row]).item() for row in (2, 0, 1)] == [together[0][row] for row in (2, 0, 1)]
    assert len({sampled(sampling, [seed])(predicted[[0]], [0]).item() for seed in range(30)}) > 5


def test_only_likely_tokens_are_drawn():
    predicted = torch.tensor([[0.5, 0.25, 0.15, 0.07, 0.03]]).log()
    drawn = {
        name: {sampled(sampling, [seed])(predicted, [0]).item() for seed in range(300)}
        for name, sampling in {
            "top_k": Sampling(temperature=1.0, top_p=1.0, top_k=3),
            "top_p": Sampling(temperature=1.0, top_p=0.7, top_k=5),
            "temperature": Sampling(temperature=0.05, top_p=1.0, top_k=5),
        }.items()
    }
    assert drawn == {"top_k": {0, 1, 2}, "top_p": {0, 1}, "temperature": {0}}
