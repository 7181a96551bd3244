import json
import re

import pytest
from browser import Elements, cells_of, check_whole_and_alone, needs_browser, opened
from evaluation_results import locomo_like, write_locomo, write_task
from tiny_memory import random_state
from typer.testing import CliRunner

from deltamem_cli import app

HOSTILE = "</script><script>document.title = 'broken'</script><img src=x onerror=alert(1)> \"& {{ 1 }}"


def report(folder):
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A page with everything that a page can have."""
    folder = tmp_path_factory.mktemp("report") / "results"
    task = write_locomo(folder, limit=60, count=60)
    write_locomo(folder, "hotpotqa", count=40)
    (task / "memory" / "conv-26").mkdir(parents=True)
    for section in range(3):
        random_state(1, seed=section).save(task / "memory" / "conv-26" / f"{section + 1:03}.safetensors")
    return report(folder)


def test_a_page_is_whole_and_needs_nothing_else(whole):
    check_whole_and_alone(whole)
    for expected in (
        "Evaluation: results",
        "runs/mine",
        "By kind of question",
        "It helped",
        "It hurt",
        "The memory of conv-26",
    ):
        assert expected in whole


def test_the_page_has_the_figures(whole, tmp_path):
    given = {setting: locomo_like(setting, 60) for setting in ("none", "memory", "full")}
    means = {setting: sum(row["f1"] for row in several) / 60 for setting, several in given.items()}
    table = re.search(r'aria-label="locomo, f1">.*?</table>', whole, re.DOTALL)[0]
    rows = dict(re.findall(r'<th>([^<]+)</th>\s*<td class="chart">(.*?)</tr>', table, re.DOTALL))
    for setting, mean in means.items():
        assert f"<td>{mean:.3f} (" in rows[setting]
    assert f"<td>{means['memory'] / means['none']:.2f}× (" in rows["memory"]
    overview = cells_of("overview", whole)
    assert overview[0] == ["task", "metric", "none", "memory", "zero", "shuffled", "full", "full+memory", "bm25"]
    assert overview[2][:4] == ["locomo", "f1", f"{means['none']:.3f}", f"{means['memory']:.3f}"]


def test_the_average_and_what_is_left_of_it(whole):
    head, first, *_ = cells_of("averages-none", whole)
    assert head == ["setting", "mean (95%)", "without hotpotqa", "without locomo"]
    mean, *without = (float(cell.split("×")[0]) for cell in first[1:])
    assert first[0] == "memory"
    assert mean == pytest.approx(sum(without) / 2, abs=0.011)
    assert [row[0] for row in cells_of("averages-full", whole)][1:3] == ["none", "memory"]


def test_what_was_said_stays_text(tmp_path):
    rows = {setting: locomo_like(setting, 4) for setting in ("none", "memory")}
    texts = {"question": HOSTILE, "answers": [HOSTILE], "prediction": HOSTILE, "group": HOSTILE}
    write_task(
        tmp_path, "<b>task", {name: [{**row, **texts} for row in rows[name]] for name in rows}, model=HOSTILE, note=HOSTILE
    )
    text = report(tmp_path)
    assert not {"script", "img"} & {tag for tag, _ in Elements(text).elements}
    assert "&lt;img src=x" in text


def test_what_is_not_there_is_left_out(tmp_path):
    """One task, one setting, no kinds, no texts: as off-task benchmarks are."""
    rows = [{"index": index, "acc": float(index % 3 == 0), "gold": index % 4, "log_likelihoods": [1.0]} for index in range(9)]
    write_task(tmp_path, "arc_easy", {"none": rows})
    text = report(tmp_path)
    check_whole_and_alone(text)
    assert "33.3%" in text
    for missing in (
        "All tasks",
        "average",
        "By kind",
        "helped",
        "hurt",
        "The memory of",
        "against",
        "times",
        "gold",
        "likelihoods",
    ):
        assert missing not in text.partition("</style>")[2]


def test_a_task_without_a_main_metric(tmp_path):
    rows = [{"index": index, "group": f"kind {index % 2}", "perplexity": -float(index)} for index in range(4)]
    write_task(tmp_path, "wikitext", {"none": rows, "memory": rows})
    check_whole_and_alone(report(tmp_path))


def test_what_is_derived_from_several_settings(tmp_path):
    nats = {"none": 3.0, "memory": 2.0, "shuffled": 2.5, "full": 1.0, "full_shuffled": 2.0}
    rows = {setting: [{"index": index, "nats": value + index} for index in range(3)] for setting, value in nats.items()}
    write_task(tmp_path / "all", "continuation", rows)
    write_task(tmp_path / "some", "continuation", {setting: rows[setting] for setting in ("none", "memory")})
    text = report(tmp_path / "all")
    check_whole_and_alone(text)
    for metric, shown in {"specific": "0.500 (0.500 to 0.500)", "bound": "50.0% (50.0% to 50.0%)"}.items():
        assert f"<h3>{metric}: 3 questions</h3>" in text
        table = re.search(rf'aria-label="continuation, {metric}">.*?</table>', text, re.DOTALL)[0]
        assert "<th>memory</th>" in table
        assert f"<td>{shown}</td>" in table
    assert not {"specific", "bound"} & {*re.findall(r"<h3>(\w+):", report(tmp_path / "some"))}  # the control


def test_several_seeds_are_one_table(tmp_path):
    for seed in (1, 2):
        write_locomo(tmp_path / f"seed-{seed}", settings=("none", "memory"), count=40, seed=seed)
    text = report(tmp_path)
    values = [sum(row["f1"] for row in locomo_like("memory", 40, seed)) / 40 for seed in (1, 2)]
    assert f"<td>{sum(values) / 2:.3f} (" in text
    assert "40 questions, the mean over 2 seeds" in text


def test_results_that_are_not_complete_are_said_to_be(tmp_path):
    task = write_locomo(tmp_path, settings=("none", "memory", "zero"), count=30)
    (task / "zero.jsonl").write_text("")
    lines = (task / "memory.jsonl").read_text().splitlines(keepends=True)
    (task / "memory.jsonl").write_text("".join(lines[:20]) + lines[20][:9])
    text = report(tmp_path)
    for note in ("memory.jsonl is truncated", "Nothing was answered yet: zero", "20 of 30 questions were answered under all"):
        assert note in text
    assert "f1: 20 questions" in text


# ---------------------------------------------------------------------------------------------------- in a real browser

MEASURE = """
document.querySelectorAll("details").forEach((details) => (details.open = true));
const measured = document.createElement("p");
const table = [...document.querySelectorAll(".task")].at(-1).querySelector("table");
measured.id = "measured";
measured.textContent = JSON.stringify({
  bars: [...table.querySelectorAll("tbody tr")].map((row) => {
    const [whole, bar, line] = [".bar", ".bar i", ".bar b"].map((name) => row.querySelector(name).getBoundingClientRect());
    return [row.querySelector("th").textContent, bar.width / whole.width, (line.left - whole.left) / whole.width];
  }),
  wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  colours: new Set([...document.querySelectorAll(".heat td")].map((cell) => getComputedStyle(cell).backgroundColor)).size,
});
document.body.append(measured);
"""


@needs_browser
def test_a_page_in_a_browser(whole, tmp_path):
    shown = opened(whole, tmp_path, MEASURE)
    measured = json.loads(re.search(r'id="measured">(.*?)</p>', shown)[1])
    entries = [(setting, locomo_like(setting, 60)) for setting, _, _ in measured["bars"]]
    means = {setting: sum(row["f1"] for row in several) / 60 for setting, several in entries}
    assert [*means] == ["none", "memory", "zero", "shuffled", "full", "full+memory", "bm25"]
    lengths = {setting: length for setting, length, _ in measured["bars"]}
    for setting, mean in means.items():
        assert lengths[setting] / lengths["none"] == pytest.approx(mean / means["none"], rel=0.01)
    assert all(low < length for _, length, low in measured["bars"])
    assert measured["wider"] <= 0  # what is wide scrolls on its own
    assert measured["colours"] == 9 - 1  # of two layers and of both together; the largest of each scale are alike
