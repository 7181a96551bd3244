"""The `deltamem` command."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """Wrong input ends in one line on standard error and exit status 2, not in a traceback."""
    try:
        yield
    except (ValueError, OSError, NotImplementedError) as error:
        typer.echo(f"deltamem: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error


@app.callback()
def main() -> None:
    """A tiny online memory for frozen language models."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)


@app.command()
def demo(
    model: Annotated[str | None, typer.Option(help="Backbone: a folder or a Hub name. The adapter's own by default.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Adapter: a folder or a Hub name. The shipped one by default.")] = None,
    episodes: Annotated[int, typer.Option(min=2, help="Held-out episodes per number of facts.")] = 150,
    seed: Annotated[int, typer.Option(help="Seed of the episodes.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Tell a frozen model some facts, drop the context, and see what it still knows."""
    from deltamem import demo as show  # imports torch and transformers, which --help should not wait for

    with _errors_in_words():
        result = show.run(model, adapter, episodes, seed, show_progress=not as_json)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        show.print_result(result)


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
    device: Annotated[str, typer.Option(help="Where it runs: cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the backbone: float32, bfloat16 or float16.")] = "float32",
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
    """Time an adapted model beside its bare backbone: prefill, decoding, memory.

    Both run in turns in one process, on the same weights. docs/performance.md says what is measured and how.
    """
    from deltamem.benchmark import run, settings  # imports torch and transformers, which --help should not wait for

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

        draw(figures, plot)


@app.command()
def inspect(
    model: Annotated[str | None, typer.Argument(help="A folder or a Hub name, of which only config.json is read.")] = None,
    variant: Annotated[str, typer.Option(help="Of the adapter: tsw, ssw or msw.")] = "tsw",
    r: Annotated[int | None, typer.Option(help="Width of a memory; 8 if not given.")] = None,
    corrections: Annotated[str | None, typer.Option(help="What a memory corrects, such as qkvo; qo if not given.")] = None,
    architectures: Annotated[bool, typer.Option("--architectures", help="List all model types instead.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="With --architectures: as docs/architectures.md.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show where a memory is attached to a model, layer by layer, and what it adds; nothing is downloaded but its config.json.

    With --architectures: which model types are supported, and why others are not.
    """
    with _errors_in_words():
        if architectures == (model is not None) or (markdown and not architectures) or (markdown and as_json):
            raise ValueError("give a MODEL or --architectures, and with it --json, or --architectures --markdown")
        if architectures:
            from deltamem import architectures as listing  # imports torch and transformers, which --help should not wait for

            found = listing.architectures()
            if as_json:
                typer.echo(json.dumps(found, indent=2))
            elif markdown:
                typer.echo(listing.as_markdown(found), nl=False)
            else:
                listing.print_architectures(found)
            return
        from deltamem import inspection

        figures = inspection.inspect_model(str(model), variant, r, corrections)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        inspection.print_inspection(figures)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
def train(context: typer.Context) -> None:
    """Train an adapter on chats; `deltamem train --help` lists the options, transformers' TrainingArguments among them."""
    from deltamem.training import command

    with _errors_in_words():
        command.main(context.args)
