from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny import tiny_backbone
from tiny_chat import chat_model, chat_tokenizer

from deltamem.evaluation.recall import WITH_MEMORY, Recall, RecallTest
from deltamem.training.facts import Fact, FactEpisode


def episode(name, value, candidates=("Oslo", "Rome", "red", "teal")):
    told = [{"role": "user", "content": f"{name} likes {value}."}, {"role": "assistant", "content": "Noted."}]
    asked = [{"role": "user", "content": f"What does {name} like?"}, {"role": "assistant", "content": value}]
    fact = Fact(name, "taste", value)
    return FactEpisode([*told, *asked], (fact,), fact, candidates)


EPISODES = [episode("Anna", "teal"), episode("Bob", "red"), episode("Anna and the friend of Bob", "Oslo")]


@pytest.fixture(scope="module")
def test():
    return asking(chat_model(spread=0.5))


def asking(model):
    return RecallTest(model, chat_tokenizer(), system="Remember everything.", batch_size=2)


def backbone():
    return tiny_backbone(eos_token_id=3, initializer_range=0.5)


def with_lora():
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "o_proj"], lora_alpha=64, init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(backbone(), config).eval()


def with_prefix():
    """A trained prefix of some size: a new one is hardly seen beside such a backbone."""
    torch.manual_seed(1)
    model = get_peft_model(backbone(), PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")).eval()
    model.prompt_encoder.default.embedding.weight.data *= 3
    return model


def rendered(test, messages, **options):
    system = {"role": "system", "content": test.system}
    return test.tokenizer(test.tokenizer.apply_chat_template([system, *messages], tokenize=False, **options))["input_ids"]


@torch.no_grad()
def likelihood(test, told, value, setting="memory"):
    """The oracle: one row, no padding, no cache."""
    before = told.history if setting == "full_context" else []
    prompt = rendered(test, [*before, told.question], add_generation_prompt=True)
    if setting == "tail":
        prompt = rendered(test, told.history)[-test.tail_tokens :] + prompt
    answer = [*test.tokenizer(value)["input_ids"], test.tokenizer.eos_token_id]
    logits = test.model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))


@pytest.mark.parametrize("setting", WITH_MEMORY)
def test_candidates_are_ranked_by_their_likelihood(test, setting):
    memory = test.write([told.history for told in EPISODES])
    choices = test.run(EPISODES, [setting])[0].choices
    for row, told in enumerate(EPISODES):
        alone = memory[row - 1 if setting == "shuffled_memory" else row]
        with test.under("memory" if setting == "shuffled_memory" else setting, alone):
            best = max(told.candidates, key=lambda value, told=told: likelihood(test, told, value, setting))
        assert choices[row] == best


def test_what_is_said_is_what_generate_says(test):
    memory = test.write([told.history for told in EPISODES])
    said = test.run(EPISODES, ["memory"])[0].said
    for row, told in enumerate(EPISODES):
        with test.under("memory", memory[row]):
            assert said[row] == test.answer(told.question["content"])


def test_no_memory_and_an_empty_memory_are_the_backbone(test):
    by_setting = {recall.setting: recall.choices for recall in test.run(EPISODES)}
    assert by_setting["no_memory"] == by_setting["zero_memory"]


def test_batches_do_not_matter(test):
    bigger = RecallTest(test.model, test.tokenizer, test.system, batch_size=10)
    settings = ["memory", "full_context", "tail"]
    assert [recall.choices for recall in test.run(EPISODES, settings)] == [
        recall.choices for recall in bigger.run(EPISODES, settings)
    ]


def test_a_history_is_written_in_chunks(test):
    histories = [told.history for told in EPISODES]
    whole = test.write(histories)
    chunked = RecallTest(test.model, test.tokenizer, test.system, write_chunk_tokens=6).write(histories)
    assert whole.tokens == chunked.tokens
    for name, state in whole.tensors.items():  # the first layer sees the embeddings, which know no context
        same = torch.allclose(state, chunked.tensors[name], atol=1e-5)
        assert same == (".layers.0." in name)


@pytest.mark.parametrize("make", [with_lora, with_prefix])
def test_an_adapter_without_a_memory_answers_with_nothing_of_the_history(make):
    test = asking(make())
    adapter, bare = test.run(EPISODES, ["adapter", "no_memory"])
    expected = [max(told.candidates, key=lambda value, told=told: likelihood(test, told, value)) for told in EPISODES]
    assert [*adapter.choices] == expected
    assert [*bare.choices] == [*asking(backbone()).run(EPISODES, ["no_memory"])[0].choices]
    assert adapter.choices != bare.choices  # or this test could not tell them apart


def test_a_bare_backbone_with_the_context(test):
    bare = asking(backbone())
    assert bare.settings == ("no_memory", "full_context")
    settings = ["no_memory", "full_context"]
    assert [recall.choices for recall in bare.run(EPISODES, settings)] == [
        recall.choices for recall in test.run(EPISODES, settings)
    ]


def test_the_tail_has_the_bytes_of_the_memory():
    config = {"r": 16, "num_states": 2}  # 2 layers of 2 x 16 x 16: 4,096 bytes
    assert asking(chat_model(**config)).tail_tokens == 4096 // (2 * 2 * 2 * 8 * 4)  # keys and values, layers, heads, width
    assert asking(chat_model()).tail_tokens == 1  # 128 bytes are less than one token's


@pytest.mark.parametrize(
    ("model", "setting", "message"),
    [
        (backbone, "memory", "choose among no_memory, full_context "),
        (with_lora, "shuffled_memory", "choose among adapter, no_memory, full_context "),
        (chat_model, "adapter", "choose among memory, no_memory"),
        (chat_model, "full", "'full'"),
    ],
)
def test_settings_that_a_model_does_not_have(model, setting, message):
    with pytest.raises(ValueError, match=message):
        asking(model()).run(EPISODES, [setting])


def test_other_prompts_are_refused():
    model = get_peft_model(backbone(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="PROMPT_TUNING"):
        asking(model).run(EPISODES, ["adapter"])


def test_a_history_longer_than_the_window(test):
    long = episode("Anna" + " and Bob" * 130, "teal")
    with pytest.raises(ValueError, match="window has 256"):
        test.run([*EPISODES, long], ["memory"])


def test_accuracy_counts_the_right_answers():
    recall = Recall("memory", EPISODES, ["teal", "teal", "Oslo"], ["Teal.", "red", "teal"])
    assert recall.accuracy == pytest.approx(2 / 3)
    assert recall.exact == [True, True, False]
    assert recall.said_right == pytest.approx(2 / 3)
    assert recall.interval == pytest.approx((0.2077, 0.9385), abs=1e-4)


@pytest.mark.parametrize(
    ("said", "named"),
    [("Teal.", True), ("Anna likes TEAL most.", True), ("teal or red", False), ("tealish", False), ("", False), ("red", False)],
)
def test_what_is_said_names_the_answer_and_no_other_candidate(said, named):
    assert Recall("memory", EPISODES[:1], ["teal"], [said]).named == [named]


def test_accuracy_by_kind():
    episodes = [EPISODES[0], replace(EPISODES[1], kind="update"), replace(EPISODES[2], kind="update")]
    by_kind = Recall("memory", episodes, ["teal", "teal", "Oslo"], ["teal", "red", "Oslo"]).by_kind()
    assert {kind: recall.accuracy for kind, recall in by_kind.items()} == {"value": 1.0, "update": 0.5}


def test_one_episode_has_no_others_memory(test):
    with pytest.raises(ValueError, match="at least 2 episodes"):
        test.run(EPISODES[:1])
