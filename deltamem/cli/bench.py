"""`deltamem bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deltamem.cli.common import Device, Dtype, app, errors_in_words


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

    with errors_in_words():
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

        with errors_in_words():
            draw(figures, plot)
