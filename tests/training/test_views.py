import pytest
import torch
from tiny_chat import chat_model, chat_tokenizer

from deltamem.training.costs import answer_loss
from deltamem.training.episodes import EpisodeCollator, EpisodeEncoder
from deltamem.training.loss import EpisodeLoss
from deltamem.training.views import (
    ALL_VIEWS,
    IN_CONTEXT,
    SHUFFLED_IN_CONTEXT,
    SHUFFLED_MEMORY,
    VIEWS,
    ZERO_MEMORY,
    InViews,
    Weight,
    WithAnothersHistory,
    check_views,
    in_views_and_controls,
    view_weights,
)


def turns(*texts):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * len(texts), texts, strict=False)]


CHATS = [
    {
        "messages": turns(f"{name} likes {value}.", "Noted.", f"What does {name} like?", value, "Where is Bob?", "Oslo"),
        "read_turns": 2,
    }
    for name, value in (("Anna", "teal"), ("Bob", "red"), ("Anna", "Rome"), ("Bob", "1"))
] * 25
SMALL_TALK = [[turns("Hello there.", "Hello friend!")]]
ALWAYS = Weight(1.0, 1.0)


def words(ids, mask):
    return " ".join(chat_tokenizer().convert_ids_to_tokens(ids[mask.bool()].tolist()))


def batch_of(view, chats=CHATS[:3]):
    collator = EpisodeCollator(EpisodeEncoder(chat_tokenizer(), answer_only=True))
    return collator([InViews(chats, {view: ALWAYS}, 0, SMALL_TALK)[index] for index in range(len(chats))])


def test_views_are_drawn_by_their_weights_and_by_place():
    weights = view_weights(["memory=3", "context=1"])
    drawn = drawn_views(weights, 5)
    assert 60 < drawn.count("memory") < 90
    assert drawn == drawn_views(weights, 5)
    assert drawn != drawn_views(weights, 6)


def drawn_views(weights, seed):
    chats = InViews(CHATS, weights, seed, SMALL_TALK)
    return [chats[index]["reads"][0]["view"] for index in range(100)]


def test_a_weight_changes_from_the_first_step_to_the_last():
    drawn = drawn_views(view_weights(["memory=1", "context=0.01:1"]), 0)
    assert drawn[:30].count("context") < 10 < drawn[70:].count("context")


def test_a_chat_with_questions_has_no_view_twice_and_talk_has_as_many_reads_as_asked():
    weights = {"memory": ALWAYS, "another": ALWAYS}
    assert {len(InViews(CHATS, weights, 0, reads=4)[index]["reads"]) for index in range(20)} == {1, 2}
    talk = [{"messages": CHATS[0]["messages"], "talk": True}]
    assert len(InViews(talk, weights, 0, reads=4)[0]["reads"]) == 4


@pytest.mark.parametrize(
    "given", ["", "memory", "memory=0", "memory=-1", "memory=nan", "memory=much", "elsewhere=1", "zero_memory=1"]
)
def test_wrong_weights_are_refused(given):
    with pytest.raises(ValueError, match="give VIEW=WEIGHT"):
        view_weights([given])


def test_views_given_twice_or_not_at_all_are_refused():
    with pytest.raises(ValueError, match="each once"):
        view_weights(["memory=1", "memory=2"])
    with pytest.raises(ValueError, match="no view to train"):
        view_weights([])


def test_an_adapter_of_segments_cannot_learn_from_what_it_writes_while_it_reads():
    check_views(VIEWS, writes_segments=False)
    with pytest.raises(ValueError, match="memory_writing, context write while they read"):
        check_views(VIEWS, writes_segments=True)


def test_the_view_that_needs_other_chats_is_refused_without():
    with pytest.raises(ValueError, match="got none"):
        InViews(CHATS, {"unrelated": ALWAYS}, 0)


def test_what_each_view_has_in_its_context():
    for view, has_history in {"memory": False, "memory_writing": False, "context_and_memory": True, "context": True}.items():
        batch = batch_of(view)
        read = words(batch[view]["input_ids"][0], batch[view]["attention_mask"][0])
        assert ("Anna likes teal" in read) == has_history
        assert read.endswith("Where is Bob ? <|im_end|> \n <|im_start|> assistant \n Oslo <|im_end|> \n")
        assert "Anna likes teal" in words(batch["chats"]["input_ids"][0], batch["chats"]["attention_mask"][0])


def test_the_unrelated_view_asks_something_else():
    batch = batch_of("unrelated")
    assert "Anna" not in words(batch["unrelated"]["input_ids"][0], batch["unrelated"]["attention_mask"][0])
    assert "Anna likes teal" in words(batch["chats"]["input_ids"][0], batch["chats"]["attention_mask"][0])


def test_a_batch_keeps_its_views_apart():
    chats = InViews(CHATS, {"memory": ALWAYS, "context": ALWAYS}, 0)
    batch = EpisodeCollator(EpisodeEncoder(chat_tokenizer()))([chats[index] for index in range(12)])
    names = [[*ALL_VIEWS][index] for index in batch["view"]]
    assert {name: len(batch[name]["labels"]) for name in set(names)} == {name: names.count(name) for name in set(names)}
    assert next(iter(batch)) == "view"


def loss_in(view, model, chats=CHATS[:3]):
    """The sum over all tokens that the view trains on."""
    costs = EpisodeLoss(model)(model, batch_of(view, chats))[view]
    return costs.teacher if ALL_VIEWS[view].target == "backbone" else costs.answers


def test_every_view_but_the_controls_trains_the_memory():
    for view in VIEWS:
        model = chat_model(spread=0.5)
        loss_in(view, model).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert all(grad is not None and grad.isfinite().all() and grad.any() for grad in gradients.values()), view


def test_only_the_history_of_a_filled_memory_matters():
    model, other = chat_model(spread=0.5), [{**CHATS[0], "messages": [*turns("Hello.", "Okay."), *CHATS[0]["messages"][2:]]}]
    with torch.no_grad():
        views = [view for view, how in ALL_VIEWS.items() if not how.another]
        changed = {view for view in views if loss_in(view, model, CHATS[:1]) != loss_in(view, model, other)}
    assert changed == {*views} - {ZERO_MEMORY}


def test_anothers_memory_is_the_next_chats():
    model = chat_model(spread=0.5)
    turned = [{**CHATS[1], "messages": turns("Hello.", "Okay.")[:2] + CHATS[1]["messages"][2:]}, CHATS[0]]
    with torch.no_grad():
        plain, same = (loss_in("another", model, chats) for chats in (CHATS[:2], [CHATS[0], CHATS[1]]))
        other = loss_in("another", model, [CHATS[0], turned[0]])
    assert plain == same != other
    with pytest.raises(ValueError, match="at least 2 chats, got 1"):
        loss_in("another", model, CHATS[:1])


def test_a_zero_memory_answers_as_the_backbone():
    model = chat_model(spread=0.5)
    with torch.no_grad():
        zero = loss_in(ZERO_MEMORY, model)
        with model.disable_adapter():
            assert torch.equal(zero, answer_loss(model, batch_of(ZERO_MEMORY)[ZERO_MEMORY]).answers)


def test_the_backbone_is_no_distance_from_itself():
    model = chat_model(spread=0.5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()  # no corrections
    with torch.no_grad():
        assert loss_in("unrelated", model).abs() < 1e-4
        assert loss_in("unrelated", chat_model(spread=0.5)) > 1e-3


def test_the_shuffled_control_has_the_next_history_and_its_own_questions():
    chat = WithAnothersHistory(CHATS[:3])[2]
    assert chat["messages"] == [*CHATS[0]["messages"][:2], *CHATS[2]["messages"][2:]]
    with pytest.raises(ValueError, match="at least 2 episodes, got 1"):
        WithAnothersHistory(CHATS[:1])


def test_evaluation_sets_are_named_by_view_and_control():
    sets = in_views_and_controls(CHATS, ["memory", "unrelated"], SMALL_TALK, 0)
    assert {name: sets[name][0]["reads"][0]["view"] for name in sets} == {
        "memory": "memory",
        "unrelated": "unrelated",
        ZERO_MEMORY: ZERO_MEMORY,
        SHUFFLED_MEMORY: SHUFFLED_MEMORY,
        IN_CONTEXT: IN_CONTEXT,
        SHUFFLED_IN_CONTEXT: SHUFFLED_IN_CONTEXT,
    }
