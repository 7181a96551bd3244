"""`deltamem eval` and `deltamem report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deltamem.cli.common import Device, Dtype, app, errors_in_words


@app.command("eval")
def evaluate(
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK",
            help="continuation, chats, facts, dialogue, friendsqa, locomo, hotpotqa, memory_agent_bench, kv_retrieval, "
            "needle, variable_tracking; harm, arc_easy, lambada_openai, gpqa_diamond, ifeval; lm_eval:NAME, any other task of "
            "lm-evaluation-harness.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Backbone: a folder or a Hub name. The adapter's own by default, without an adapter SmolLM2."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Adapter of δ-mem, or any other of PEFT: a folder or a Hub name. None by default.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            help="How the questions are asked; may be given several times. Tasks with a history: none (the bare backbone "
            "without it), full (all of it in the prompt), tail (as much of it as a memory has bytes), bm25 (what a search "
            "finds), memory, full+memory, bm25+memory, zero (an empty memory), shuffled (another's); adapter, of one without a "
            "memory. Of facts: none, full, tail, memory, zero, shuffled, adapter. Of continuation: none, full, "
            "full_shuffled (another chat in the context), memory, zero, shuffled, adapter. Other tasks: none, zero, filled (a "
            "memory of an unrelated conversation), writing (written while the question is read), adapter; harm zero, filled, "
            "adapter.  [default: all]"
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The data of the task. The official data set of the Hub by default.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="A folder with the data of the tasks, each in TASK.jsonl or TASK.json.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many questions, drawn by the seed; not for facts.")
    ] = None,
    facts: Annotated[
        list[int] | None,
        typer.Option(
            help="Facts told in an episode; of kv_retrieval the pairs, of needle the needles, of variable_tracking the chains; "
            "may be given several times.  [default: 1, 4]"
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Of the facts: train, held_out or unseen_values.")] = "held_out",
    tokens_since: Annotated[
        list[int] | None,
        typer.Option(help="Tokens of small talk between telling and asking; may be given several times.  [default: 0]"),
    ] = None,
    context_tokens: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Length of the text that needle and variable_tracking hide something in; may be given several times.  "
            "[default: 1000]",
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Data sets of memory_agent_bench, by the beginning of their names: factconsolidation_sh_6k, icl; may be given "
            "several times.  [default: all]"
        ),
    ] = None,
    kind: Annotated[str | None, typer.Option(help="What is asked of the facts: value, update, count or list.")] = None,
    updates: Annotated[float, typer.Option(help="Probability that a fact is replaced later: the newest counts.")] = 0.0,
    episodes: Annotated[int, typer.Option(help="Episodes for each number of facts, or whatever else is generated.")] = 150,
    system: Annotated[
        str | None, typer.Option(help='System prompt of every chat, "" for none. The chat template\'s own by default.')
    ] = None,
    write_chunk_tokens: Annotated[
        int | None, typer.Option(min=1, help="Write histories in chunks of so many tokens, each in a context of its own.")
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Answer with the likeliest tokens where the benchmark's protocol draws them.")
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of chats, ifeval and lm_eval:NAME: tokens of an answer.  [default: the benchmark's protocol]"
        ),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Seed of whatever is drawn; of several, the mean is printed and its interval.  [default: 0]"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Questions at a time.")] = 8,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    output: Annotated[
        Path | None, typer.Option(help="Keep every answer in this folder; a run that was broken off goes on from there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Ask questions with a memory and without.

    What a memory recalls of facts and long histories, and what the adapter costs on other tasks. docs/evaluation.md has the
    tasks, their data and their controls.
    """
    from deltamem.backbones import Placement
    from deltamem.evaluation import command, summary_table
    from deltamem.evaluation.task import Options

    with errors_in_words():
        options = Options(
            data=data,
            data_dir=data_dir,
            limit=limit,
            facts=tuple(facts or (1, 4)),
            split=split,
            tokens_since=tuple(tokens_since or (0,)),
            context_tokens=tuple(context_tokens or (1000,)),
            source=tuple(source or ()),
            kind=kind,
            updates=updates,
            episodes=episodes,
            greedy=greedy,
            max_new_tokens=max_new_tokens,
        )
        evaluated = command.Evaluated(model, adapter, system, write_chunk_tokens, batch_size, Placement(dtype, device))
        figures = command.run(tasks, evaluated, options, setting or (), output, not as_json, seed or (0,))
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        summary_table.print_summary(figures["results"])


@app.command()
def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="The folder that deltamem eval --output wrote.")],
    output: Annotated[
        Path | None, typer.Option(metavar="PAGE", help="The page that is written; RESULTS/report.html by default.")
    ] = None,
) -> None:
    """Show what an evaluation found as a page.

    Tables, charts, and examples where memory helped and where it hurt.
    """
    from deltamem.evaluation.report.page import write_report

    page = output or results / "report.html"
    with errors_in_words():
        write_report(results, page)
    typer.echo(str(page))
