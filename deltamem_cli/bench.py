"""`deltamem bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltamem_cli.common import AsJson, Device, Dtype, app, errors_in_words, options_from, show


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
    prompt: Annotated[list[int] | None, typer.Option(help="Prompt length in tokens; repeatable.  [default: 512]")] = None,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode after each prompt.")] = 32,
    batch: Annotated[int, typer.Option(help="Number of rows, each with its own memory.")] = 1,
    runs: Annotated[int, typer.Option(help="Timed runs of each workload, at least 6.")] = 15,
    train: Annotated[
        bool, typer.Option("--train", help="Time a training step as well: forward and backward of the write pass.")
    ] = False,
    rule: Annotated[
        bool,
        typer.Option(
            "--rule",
            help="Also time the delta rule alone, with every backend, over --prompt tokens. Without --model, time only that.",
        ),
    ] = False,
    start: Annotated[
        bool,
        typer.Option("--start", help="Also time how long commands and imports take to start. Without --model, time only that."),
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Also time how the server answers 1, 8 and 32 users at once, each with a memory.")
    ] = False,
    written: Annotated[
        list[int] | None,
        typer.Option(help="Also time decoding after this many tokens were written to the memory; repeatable."),
    ] = None,
    compiler: Annotated[
        str | None,
        typer.Option(
            "--compile",
            help="Also time decoding with a static cache, eager and with this backend of torch.compile: inductor, eager, ...",
        ),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Also profile the operations.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures to this file: .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time an adapted model next to its bare backbone.

    Measures prefill, decoding and their peak memory. Both models alternate in one process and share their weights.
    docs/performance.md explains what is measured and how.
    """
    given = locals()
    from deltamem.benchmark import report, run
    from deltamem.benchmark.settings import Settings

    with errors_in_words():
        figures = run.run(options_from(given, Settings))
    show(figures, as_json, report.print_figures)
    if plot is not None:
        from deltamem.benchmark.plot import draw

        with errors_in_words():
            draw(figures, plot)
