"""The `deltamem` command."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from deltamem.io.printable import printable

# Commands import what they need when they run: some of it is slow to import, or in an extra.
# Plain help: rich would take the "[default: 1]" in it for markup, and leave it out.
Dtype = Annotated[str, typer.Option(help="Of the backbone: float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="Where it runs: cpu, cuda, cuda:1, ...")]
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """Wrong input ends in one line on standard error and exit status 2, not in a traceback."""
    try:
        yield
    except (ValueError, OSError, NotImplementedError, ImportError) as error:
        typer.echo(printable(f"deltamem: {' '.join(str(error).split())}"), err=True)
        raise typer.Exit(2) from error


@app.callback()
def main() -> None:
    """A tiny online memory (δ-mem) for frozen language models. `deltamem COMMAND --help` says what a command does."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)


@app.command()
def demo(
    model: Annotated[str | None, typer.Option(help="Backbone: a folder or a Hub name. The adapter's own by default.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Adapter: a folder or a Hub name. The shipped one by default.")] = None,
    episodes: Annotated[int, typer.Option(min=2, help="Held-out episodes per number of facts.")] = 150,
    seed: Annotated[int, typer.Option(help="Seed of the episodes.")] = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Tell a frozen model some facts, drop the context, and ask.

    Shows one conversation, then how many questions it answers right: from its memory, and from none, as controls.
    """
    from deltamem.backbones import Placement
    from deltamem.evaluation import demo as show

    with _errors_in_words():
        result = show.run(model, adapter, episodes, seed, not as_json, Placement(dtype, device))
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        show.print_result(result)


@app.command()
def chat(
    model: Annotated[
        str | None, typer.Argument(help="Backbone: a folder or a Hub name. The adapter's own by default.", show_default=False)
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Adapter: a folder or a Hub name. The shipped one by default.")] = None,
    session: Annotated[Path, typer.Option(metavar="FOLDER", help="Where /save and /load keep sessions.")] = Path("sessions"),
    system: Annotated[
        str | None,
        typer.Option(
            help='System prompt of new sessions, "" for none. By default the template\'s own; with the shipped adapter none.'
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 256,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="Sample at this temperature; 0: the likeliest token every time. The model's own by default."),
    ] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Talk to a model with a memory in the terminal.

    /help there lists what can be done with the memory.
    """
    from deltamem.backbones import Placement
    from deltamem.chat.terminal import command

    with _errors_in_words():
        command.run(model, adapter, session, system, max_new_tokens, temperature, Placement(dtype, device))


@app.command()
def bench(
    model: Annotated[
        str | None,
        typer.Option(
            help="Backbone: a folder, a Hub name, or a shape with random weights (smollm2-135m, qwen3-0.6b, llama3-1b, "
            "qwen3-4b). The adapter's own by default, else smollm2-135m."
        ),
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="A trained adapter: a folder or a Hub name.")] = None,
    variant: Annotated[str | None, typer.Option(help="A new adapter instead: tsw, ssw or msw.  [default: tsw]")] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    prompt: Annotated[list[int] | None, typer.Option(help="Tokens; may be given several times.  [default: 512]")] = None,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode after each prompt.")] = 32,
    batch: Annotated[int, typer.Option(help="Rows, each with a memory of its own.")] = 1,
    runs: Annotated[int, typer.Option(help="Timed runs of everything, at least 6.")] = 15,
    train: Annotated[bool, typer.Option("--train", help="Also a training step: the write pass, forward and backward.")] = False,
    rule: Annotated[
        bool,
        typer.Option(
            "--rule",
            help="Also the delta rule alone, every backend, over --prompt tokens. Without --model only that.",
        ),
    ] = False,
    written: Annotated[
        list[int] | None,
        typer.Option(help="Also decoding after so many tokens were written to the memory; may be given several times."),
    ] = None,
    compiler: Annotated[
        str | None,
        typer.Option(
            "--compile",
            help="Also decoding with a static cache, as it is and by this backend of torch.compile: inductor, eager, ...",
        ),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Also which operations take the time.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures to this file: .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Time an adapted model beside its bare backbone.

    Prefill, decoding, and the memory that they take. Both run in turns in one process, on the same weights.
    docs/performance.md says what is measured and how.
    """
    from deltamem.benchmark import run, settings

    with _errors_in_words():
        figures = run.run(
            settings.Settings(
                model=model,
                adapter=adapter,
                variant=variant,
                device=device,
                dtype=dtype,
                prompt=tuple(prompt or (512,)),
                new_tokens=new_tokens,
                batch=batch,
                runs=runs,
                train=train,
                rule=rule,
                written=tuple(written or ()),
                compiler=compiler,
                profile=profile,
                plot=plot,
            )
        )
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        from deltamem.benchmark import report

        report.print_figures(figures)
    if plot is not None:
        from deltamem.benchmark.plot import draw

        with _errors_in_words():
            draw(figures, plot)


@app.command()
def inspect(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="BACKBONE|ADAPTER|MEMORY",
            help="A backbone or an adapter (a folder or a Hub name), the file of a memory, or the folder of a session.",
        ),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="Of a memory, or the one that --chat leaves: another memory to compare with.")
    ] = None,
    chat: Annotated[
        Path | None,
        typer.Option(help='Of an adapter: JSON lines of {"messages": [...]}; one is written to a memory, turn by turn.'),
    ] = None,
    line: Annotated[int | None, typer.Option(help="Which chat of --chat is taken, from 1.  [default: 1]")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Of a memory, or with --chat: write a page with pictures to this file.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Of a backbone: tsw, ssw or msw.  [default: tsw]")] = None,
    r: Annotated[int | None, typer.Option(help="Of a backbone: width of a memory.  [default: 8]")] = None,
    corrections: Annotated[
        str | None, typer.Option(help="Of a backbone: what a memory corrects, such as qkvo.  [default: qo]")
    ] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    architectures: Annotated[bool, typer.Option("--architectures", help="List all model types instead.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="With --architectures: as docs/architectures.md.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Look at a backbone, an adapter, or a memory.

    Of a backbone only config.json is read: where a memory is attached, layer by layer, and what it adds. Of an adapter: its
    norms and gates, layer by layer; with --chat, what each turn of a conversation writes and what later turns leave of it. Of
    a memory: how much it holds. With --architectures: which model types are supported, and why others are not.
    """
    with _errors_in_words():
        if architectures == (what is not None) or (markdown and not architectures) or (markdown and as_json):
            raise ValueError("give something to inspect or --architectures, and with it --json, or --architectures --markdown")
        if architectures:
            from deltamem.inspection import architectures as listing

            found = listing.architectures()
            if as_json:
                typer.echo(json.dumps(found, indent=2))
            elif markdown:
                typer.echo(listing.as_markdown(found), nl=False)
            else:
                listing.print_architectures(found)
            return
        from deltamem.backbones import Placement
        from deltamem.inspection import command

        given = Placement(dtype, device)
        changed = {name: value for name, value in vars(given).items() if value != getattr(Placement, name)}
        options = command.Options(variant, r, corrections, compare, chat, line, html, **changed)
        figures = command.run(str(what), options, show_progress=not as_json)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        command.print_figures(figures)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
def train(context: typer.Context) -> None:
    """Train an adapter on chats or on generated facts."""
    from deltamem.training import command

    with _errors_in_words():
        command.main(context.args)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
def baseline(context: typer.Context) -> None:
    """Train what a memory is compared with: LoRA, a prefix."""
    from deltamem.training import baselines

    with _errors_in_words():
        baselines.main(context.args)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder with an adapter.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder for the converted one: empty, or a new one.")],
    to: Annotated[
        str,
        typer.Option(
            help="peft: from the format of the authors' code to PEFT's. reference: from PEFT's to theirs, as safetensors."
        ),
    ] = "peft",
    base_model: Annotated[
        str | None,
        typer.Option(
            help="The model that the adapter was made for, a folder or a Hub name. Needed for peft: their format does not say."
        ),
    ] = None,
) -> None:
    """Convert an adapter of the authors' code to PEFT, or back.

    Theirs is a folder with delta_mem_config.json and delta_mem_adapter.pt or delta_mem_adapter.safetensors.
    """
    from deltamem.convert import command

    with _errors_in_words():
        written = command.convert(source, target, to, base_model)
    typer.echo(f"{target}: {written['tensors']} tensors, {written['parameters']:,} parameters")


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

    with _errors_in_words():
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
    from deltamem.report.page import write_report

    page = output or results / "report.html"
    with _errors_in_words():
        write_report(results, page)
    typer.echo(str(page))


@app.command()
def study(
    grid: Annotated[
        Path, typer.Argument(metavar="GRID", help="What is trained, varied and measured: a YAML file, as in docs/studies.")
    ],
    results: Annotated[
        Path | None, typer.Option(help="Folder for the runs, the images and the summary.  [default: runs/NAME]")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Run so many at most.")] = None,
    only: Annotated[str | None, typer.Option(help="Run the variants of this curve alone.")] = None,
    part: Annotated[str | None, typer.Option(help="1/2, 2/2: a half of the runs, for two processes; and so on.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    draw: Annotated[bool, typer.Option("--draw", help="Run nothing, draw again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Run a grid of trainings and measurements, draw its curves.

    A run that was broken off goes on from there.
    """
    from deltamem.backbones import Placement
    from deltamem.study import command

    folder = results or Path("runs") / grid.stem
    with _errors_in_words():
        summary = command.main(grid, folder, limit, only, part, draw, Placement(dtype, device))
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        command.print_summary(summary, folder)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a saved adapter.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where to on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository one that only its owner sees.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch.  [default: main]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send nothing; show all that would be sent.")] = False,
) -> None:
    """Check an adapter, and send it to the Hub with its card.

    All files of the folder, in one commit, and the model card, completed. Who you are comes from HF_TOKEN or `hf auth login`.
    """
    from deltamem.hub import upload

    with _errors_in_words():
        prepared = upload.prepare(folder, repo)
        typer.echo(upload.as_text(prepared) if dry_run else upload.send(prepared, private, revision))
