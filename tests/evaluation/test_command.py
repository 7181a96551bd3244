import json
import re

import pytest
from peft import LoraConfig, get_peft_model
from tiny import tiny_adapted, tiny_backbone
from tiny_chat import chat_model, chat_tokenizer
from typer.testing import CliRunner

from deltamem.evaluation import command
from deltamem.evaluation.command import Evaluated, run
from deltamem.evaluation.task import Options
from deltamem_cli import app

FACTS = Options(facts=(2,), episodes=5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A backbone with its tokenizer, adapters for it, and data."""
    folder = tmp_path_factory.mktemp("eval")
    tiny_backbone(eos_token_id=3).save_pretrained(folder / "backbone")
    chat_tokenizer().save_pretrained(folder / "backbone")
    chat_model().save_pretrained(folder / "adapter")
    tiny_adapted(seed=1).save_pretrained(folder / "other")
    get_peft_model(tiny_backbone(eos_token_id=3), LoraConfig(target_modules=["q_proj"])).save_pretrained(folder / "lora")
    words = ("teal", "red", "Oslo", "Rome", "answer", "there", "like")
    texts = [{"text": f"{'Anna ' * number}likes the {word}"} for number, word in enumerate(words)]
    (folder / "lambada_openai.jsonl").write_text("\n".join(map(json.dumps, texts)))
    arc = {"query": "Question: Where is Anna?", "choices": ["Oslo", "there", "in Rome", "teal"], "gold": 2}
    (folder / "arc_easy.jsonl").write_text("\n".join(map(json.dumps, [arc] * 3)))
    return folder


def evaluated(folders, adapter="adapter", **options):
    return Evaluated(str(folders / "backbone"), adapter and str(folders / adapter), system="", batch_size=2, **options)


def test_the_command(folders):
    arguments = ["eval", "facts", "arc_easy", "lambada_openai", "--data-dir", folders, "--model", folders / "backbone"]
    arguments += ["--adapter", folders / "adapter", "--facts", 1, "--facts", 2, "--tokens-since", 0, "--tokens-since", 20]
    arguments += ["--episodes", 3, "--limit", 2, "--setting", "none", "--setting", "zero", "--batch-size", 2]
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["results"]
    metrics = {}
    for entry in found:
        metrics.setdefault(entry["task"], {}).setdefault(entry["setting"], []).append(entry["metric"])
        assert entry["low"] <= entry["value"] <= entry["high"]
        if entry["setting"] == "zero":  # without a memory, an adapter is its backbone
            assert entry["difference"] == pytest.approx(0.0, abs=1e-4)
    of_facts = ["recall", "generated", "named", "unchanged", "mixed_up"]
    facts = {f"facts-{facts}{since}": of_facts for facts in (1, 2) for since in ("", "-20_tokens_ago")}
    expected = {**facts, "arc_easy": ["acc", "acc_norm"], "lambada_openai": ["acc", "perplexity"]}
    assert metrics == {task: {"none": names, "zero": names} for task, names in expected.items()}


def test_the_command_as_a_table(folders):
    arguments = ["eval", "lambada_openai", "--data", folders / "lambada_openai.jsonl", "--model", folders / "backbone"]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    for expected in ("lambada_openai", "perplexity", "value (95%)", "against none"):
        assert expected in result.output


@pytest.mark.parametrize("settings", [("none", "filled"), ("shuffled", "memory", "tail", "full")])
def test_a_run_that_was_broken_off_goes_on_with_the_same_figures(folders, tmp_path, monkeypatch, settings):
    names = ["facts"] if "memory" in settings else ["lambada_openai"]
    options = Options(facts=(2,), episodes=7, data_dir=folders)
    whole = run(names, evaluated(folders), options, settings, tmp_path / "whole")

    class KilledError(Exception):
        pass

    answer, calls = command.Results.add, []

    def killed(self, rows):
        calls.append(rows)
        if len(calls) == 4:  # in the second batch, between two settings: with half a line
            with self.file.open("a") as file:
                file.write(json.dumps(rows[0]) + "\n" + json.dumps(rows[1])[:9])
            raise KilledError
        answer(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(command.Results, "add", killed)
        with pytest.raises(KilledError):
            run(names, evaluated(folders), options, settings, tmp_path / "cut")
    asked = []
    monkeypatch.setattr(command.Results, "add", lambda self, rows: (asked.append(rows), answer(self, rows)))
    assert run(names, evaluated(folders), options, settings, tmp_path / "cut") == whole
    assert len(asked) == len(settings) * 3 - 3  # nothing was asked again but what was lost
    for file in (tmp_path / "whole").rglob("*.jsonl"):
        assert (tmp_path / "cut" / file.relative_to(tmp_path / "whole")).read_text() == file.read_text()


def test_another_memory_is_of_the_same_batch_when_settings_are_added(folders, tmp_path):
    first = run(["facts"], evaluated(folders), FACTS, ["none"], tmp_path)
    both = run(["facts"], evaluated(folders), FACTS, ["none", "shuffled"], tmp_path)
    assert both["results"][0]["value"] == first["results"][0]["value"]
    recalls = [entry for entry in both["results"] if entry["metric"] == "recall" and entry["group"] is None]
    assert [entry["setting"] for entry in recalls] == ["none", "shuffled"]


def test_results_of_other_options_are_not_mixed(folders, tmp_path):
    run(["facts"], evaluated(folders), FACTS, ["none"], tmp_path)
    with pytest.raises(ValueError, match=r"has results with split='held_out', episodes=5; .* another --output"):
        other = Options(facts=(2,), episodes=4, split="unseen_values")
        run(["facts"], evaluated(folders), other, ["none"], tmp_path)


def test_kinds_are_summed_up_separately(folders):
    options = Options(facts=(3,), episodes=12, updates=0.5)
    found = run(["facts"], evaluated(folders, adapter=None), options, ["none"], None)["results"]
    whole, *kinds = [entry for entry in found if entry["metric"] == "recall"]
    assert whole["group"] is None
    assert {entry["group"] for entry in kinds} == {"value", "update"}
    assert sum(entry["questions"] for entry in kinds) == whole["questions"] == 12
    assert sum(entry["questions"] * entry["value"] for entry in kinds) == pytest.approx(12 * whole["value"])


@pytest.mark.parametrize("kind", ["value", "update", "count", "list"])
def test_questions_of_one_kind(folders, tmp_path, kind):
    options = Options(facts=(2,), episodes=3, kind=kind)
    run(["facts"], evaluated(folders, adapter=None), options, ["none"], tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "facts-2" / "none.jsonl").read_text().splitlines()]
    assert [row["group"] for row in rows] == [kind] * 3


def test_facts_told_long_ago(folders):
    subject = command.load(evaluated(folders))
    (near,), (far,) = (command.make_tasks(["facts"], Options(facts=(1,), episodes=2, tokens_since=(n,))) for n in (0, 40))
    near.prepare(subject, ("memory",))
    far.prepare(subject, ("memory",))
    for before, after in zip(near._episodes, far._episodes, strict=True):
        assert before.history == after.history[: len(before.history)]
        lengths = [len(subject.tokens(episode.history).ids) for episode in (before, after)]
        assert 40 <= lengths[1] - lengths[0] < 50


def test_several_seeds_are_asked_and_summed_up(folders, tmp_path):
    settings = ["none", "memory"]
    together = run(["facts"], evaluated(folders), FACTS, settings, tmp_path, seeds=[1, 2, 1])["results"]
    alone = [run(["facts"], evaluated(folders), FACTS, settings, None, seeds=[seed])["results"] for seed in (1, 2)]
    for mean, first, second in zip(together, *alone, strict=True):
        assert mean["seeds"] == 2
        assert mean["value"] == pytest.approx((first["value"] + second["value"]) / 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-1", "seed-2"]


def test_another_adapter_has_no_memory(folders):
    found = run(["facts"], evaluated(folders, "lora"), FACTS, [], None)["results"]
    assert {entry["setting"] for entry in found} == {"none", "adapter", "full"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nothing", "no task nothing; choose among facts, arc_easy, lambada_openai"),
        ("arc_easy --data-dir /no/folder", "/no/folder/arc_easy.jsonl does not exist"),
        ("arc_easy lambada_openai --data some.jsonl", "--data-dir"),
        ("facts --adapter {folders}/other", "made for other weights"),
        ("facts --setting zeor", "zeor is not accepted; .* facts-1: memory, none"),
        ("facts lambada_openai --data-dir {folders} --setting memory", "lambada_openai: none"),
        ("facts --split test", "--split 'test' is not accepted"),
        ("facts --kind why", "--kind 'why' is not accepted"),
        ("facts --episodes 1", "--episodes 1 is too few"),
        ("facts --batch-size 1", "--batch-size 1 is not accepted"),
        ("facts --facts 0", "min_facts=0"),
    ],
)
def test_wrong_input_ends_in_one_line_before_anything_is_asked(folders, arguments, message, monkeypatch):
    monkeypatch.setattr(command, "_ask", pytest.fail)
    given = arguments.format(folders=folders).split()
    defaults = [] if "--adapter" in given else ["--adapter", str(folders / "adapter")]
    result = CliRunner().invoke(app, ["eval", *given, "--model", str(folders / "backbone"), *defaults])
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr)
    assert "Traceback" not in result.output
