import pytest
import torch
from tiny_chat import chat_model, chat_tokenizer

from deltamem.evaluation.recall import SETTINGS, Recall, RecallTest
from deltamem.training.facts import Fact, FactEpisode


def episode(name, value, candidates=("Oslo", "Rome", "red", "teal")):
    told = [{"role": "user", "content": f"{name} likes {value}."}, {"role": "assistant", "content": "Noted."}]
    asked = [{"role": "user", "content": f"What does {name} like?"}, {"role": "assistant", "content": value}]
    fact = Fact(name, "taste", value)
    return FactEpisode([*told, *asked], (fact,), fact, candidates)


EPISODES = [episode("Anna", "teal"), episode("Bob", "red"), episode("Anna and the friend of Bob", "Oslo")]


@pytest.fixture(scope="module")
def test():
    return RecallTest(chat_model(), chat_tokenizer(), system="Remember everything.", batch_size=2)


@torch.no_grad()
def likelihood(test, told, value):
    """The oracle: one row, no padding, no cache."""
    system = {"role": "system", "content": test.system}
    ids = test.tokenizer(
        test.tokenizer.apply_chat_template([system, told.question], tokenize=False, add_generation_prompt=True)
    )
    prompt, answer = ids["input_ids"], [*test.tokenizer(value)["input_ids"], test.tokenizer.eos_token_id]
    logits = test.model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))


@pytest.mark.parametrize("setting", SETTINGS)
def test_candidates_are_ranked_by_their_likelihood(test, setting):
    memory = test.write([told.history for told in EPISODES])
    with test.under(setting, memory):
        choices = test.rank(EPISODES)
    for row, told in enumerate(EPISODES):
        alone = memory[row - 1 if setting == "shuffled_memory" else row]
        with test.under("memory" if setting == "shuffled_memory" else setting, alone):
            best = max(told.candidates, key=lambda value, told=told: likelihood(test, told, value))
        assert choices[row] == best


def test_no_memory_and_an_empty_memory_are_the_backbone(test):
    by_setting = {recall.setting: recall.choices for recall in test.run(EPISODES)}
    assert by_setting["no_memory"] == by_setting["zero_memory"]


def test_batches_do_not_matter(test):
    bigger = RecallTest(test.model, test.tokenizer, test.system, batch_size=10)
    assert test.run(EPISODES, ["memory"])[0].choices == bigger.run(EPISODES, ["memory"])[0].choices


def test_accuracy_counts_the_right_answers():
    assert Recall("memory", EPISODES, ["teal", "teal", "Oslo"]).accuracy == pytest.approx(2 / 3)


def test_one_episode_has_no_others_memory(test):
    with pytest.raises(ValueError, match="at least 2 episodes"):
        test.run(EPISODES[:1])
