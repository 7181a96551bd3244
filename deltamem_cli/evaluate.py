"""`deltamem eval` and `deltamem report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltamem_cli.common import AsJson, Device, Dtype, app, errors_in_words, options_from, show


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
        typer.Option(help="Backbone: a folder or a Hub name. By default the adapter's own, or SmolLM2 without an adapter."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="A δ-mem or other PEFT adapter: a folder or a Hub name. None by default.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            help="How to ask the questions; repeatable. Tasks with a history: none (the bare backbone "
            "without it), full (all of it in the prompt), tail (as much of it as fits into a memory's bytes), bm25 (retrieved "
            "passages), memory, full+memory, bm25+memory, zero (an empty memory), shuffled (another's); adapter, one without a "
            "memory. For facts: none, full, tail, memory, zero, shuffled, adapter. For continuation: none, full, "
            "full_shuffled (another chat in the context), memory, zero, shuffled, adapter. Other tasks: none, zero, filled (a "
            "memory of an unrelated conversation), writing (written while the question is read), adapter; harm: zero, filled,  "
            "adapter.  [default: all]"
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The task's data. The official data set on the Hub by default.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the tasks' data, each in TASK.jsonl or TASK.json.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum questions, sampled by the seed; not for facts.")] = None,
    facts: Annotated[
        list[int] | None,
        typer.Option(
            help="Facts told in an episode; for kv_retrieval pairs, for needle needles, for variable_tracking chains; "
            "repeatable.  [default: 1, 4]"
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the facts: train, held_out or unseen_values.")] = "held_out",
    tokens_since: Annotated[
        list[int] | None,
        typer.Option(help="Tokens of small talk between telling and asking; repeatable.  [default: 0]"),
    ] = None,
    context_tokens: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Length of the text in which needle and variable_tracking hide something; repeatable.  [default: 1000]",
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Data sets of memory_agent_bench, by the prefix of their names: factconsolidation_sh_6k, icl; "
            "repeatable.  [default: all]"
        ),
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Kind of question about the facts: value, update, count or list.")] = None,
    updates: Annotated[float, typer.Option(help="Probability that a fact is replaced later: the newest counts.")] = 0.0,
    first_person: Annotated[float, typer.Option(help='Probability that a fact is about the user, who says "I".')] = 0.0,
    episodes: Annotated[int, typer.Option(help="Episodes per number of facts, or of whatever else is generated.")] = 150,
    system: Annotated[
        str | None, typer.Option(help='System prompt of every chat, "" for none. The chat template\'s own by default.')
    ] = None,
    write_chunk_tokens: Annotated[
        int | None, typer.Option(min=1, help="Write histories in chunks of this many tokens, each in a fresh context.")
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Decode greedily even where the benchmark's protocol samples.")
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Maximum tokens of an answer, for chats, ifeval and lm_eval:NAME.  [default: the benchmark's protocol]"
        ),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Seed of all sampling; repeatable, to print the mean over seeds and its interval.  [default: 0]"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Questions per batch.")] = 8,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    output: Annotated[
        Path | None, typer.Option(help="Folder to keep every answer in; an interrupted run resumes from there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask questions with and without a memory.

    Measures what a memory recalls of facts and long histories, and what the adapter costs on other tasks. docs/evaluation.md
    lists the tasks, their data and their controls.
    """
    given = locals()
    from deltamem.backbones import Placement
    from deltamem.evaluation import command, summary_table
    from deltamem.evaluation.task import Options

    with errors_in_words():
        options = options_from({**given, "seed": None}, Options)
        evaluated = command.Evaluated(model, adapter, system, write_chunk_tokens, batch_size, Placement(dtype, device))
        figures = command.run(tasks, evaluated, options, setting or (), output, seed or (0,))
    show(figures, as_json, summary_table.print_evaluation)


@app.command()
def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder written by deltamem eval --output.")],
    output: Annotated[
        Path | None, typer.Option(metavar="PAGE", help="The page to write; RESULTS/report.html by default.")
    ] = None,
) -> None:
    """Show the results of an evaluation as an HTML page.

    With tables, charts, and examples where the memory helped and where it hurt.
    """
    from deltamem.evaluation.report.page import write_report

    page = output or results / "report.html"
    with errors_in_words():
        write_report(results, page)
    typer.echo(str(page))
