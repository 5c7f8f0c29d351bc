"""The command line: one command a file; each imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import MoshiServerError
from . import bench, chat, configs, convert, demo, doctor, mic, plan, say, token, transcribe, validate, worker, wyoming

app = typer.Typer(
    name="moshi-server",
    help="A streaming speech server for Kyutai's models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(worker.worker)
app.command()(validate.validate)
app.command()(configs.configs)
app.command()(doctor.doctor)
app.command()(plan.plan)
app.command()(convert.convert)
app.command()(demo.demo)
app.command()(transcribe.transcribe)
app.command()(mic.mic)
app.command()(say.say)
app.command()(chat.chat)
app.command()(wyoming.wyoming)
app.command()(token.token)
app.command()(bench.bench)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moshi-server {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A streaming speech server for Kyutai's models."""


def error_line(error: MoshiServerError) -> str:
    """What a user reads of an error: one line, the hint included."""
    text = f"error: {error}" + (f" ({error.hint})" if error.hint else "")
    return " ".join(text.split())


def main() -> None:
    """Run the command line; an expected error is one line on the error output and exit status 1."""
    try:
        app()
    except MoshiServerError as error:
        sys.stderr.write(error_line(error) + "\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; say nothing about it
        sys.exit(141)
