"""``moshi-server worker``: environment, configuration, logging, then serve."""

from __future__ import annotations

import logging
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Level(StrEnum):
    """The least urgent lines that are still written."""

    TRACE = "trace"
    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


def worker(
    config: Annotated[
        Path,
        typer.Option(
            "--config", help="The TOML file that says what to serve, or the name of a shipped one.", show_default=False
        ),
    ],
    log: Annotated[Level, typer.Option("--log", "-l", case_sensitive=False, help="How much to log.")] = Level.INFO,
    addr: Annotated[str, typer.Option("--addr", "-a", help="The address to listen on.")] = "0.0.0.0",  # noqa: S104  (upstream's)
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="The port to listen on.")] = 8080,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use no GPU.")] = False,
    silent: Annotated[
        bool, typer.Option("--silent", help="Write nothing to the console, only to the log file.")
    ] = False,
    log_max_size_mb: Annotated[
        float, typer.Option("--log-max-size-mb", min=0.001, help="Begin a new log file at this size.")
    ] = 100,
    log_max_files: Annotated[int, typer.Option("--log-max-files", min=0, help="How many old log files to keep.")] = 10,
    drain_seconds: Annotated[
        float | None,
        typer.Option(
            "--drain-seconds",
            min=0,
            help="How long running streams may go on after SIGTERM; by default the configuration's "
            "shutdown_grace_seconds (30).",
            show_default=False,
        ),
    ] = None,
    exit_on_failure: Annotated[
        bool,
        typer.Option("--exit-on-failure", help="End with status 70 once a model has failed for good."),
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Write log lines as JSON objects.")] = False,
) -> None:
    """Load the models of a configuration, warm them up, and serve them.

    For example: moshi-server worker --config demo; or: moshi-server worker --config my.toml --port 9000 --cpu
    """
    from ..config import load_config
    from ..errors import MoshiServerError
    from ..log import setup_logging
    from .configs import locate
    from .environment import load_dotenv

    load_dotenv()
    loaded = load_config(locate(config))
    if silent or log_json:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    output = setup_logging(
        log,
        Path(loaded.log_dir),
        loaded.instance_name,
        max_size_mb=log_max_size_mb,
        max_files=log_max_files,
        silent=silent,
        json_lines=log_json,
    )
    logger = logging.getLogger(__name__)
    try:
        from .. import __version__
        from ..app.serve import EXIT_FAILED, run

        logger.info("moshi-server %s starts", __version__, extra={"fields": {"config": config, "cpu": cpu}})
        # The log says the same; this is for the eyes of whoever sits at the terminal.
        greet = sys.stderr.write if sys.stderr.isatty() and not silent and not log_json else None
        code = run(
            loaded,
            host=addr,
            port=port,
            cpu=cpu,
            drain_seconds=drain_seconds,
            exit_on_failure=exit_on_failure,
            greet=greet,
        )
    except Exception as error:
        # The file keeps the error; the console gets it once, as one line, from `main`.
        output.mute_console()
        if isinstance(error, MoshiServerError):
            logger.error("%s", error, extra={"fields": {"hint": error.hint} if error.hint else {}})
        else:
            logger.exception("the worker has failed; this is a bug of ours")
        if silent:
            raise typer.Exit(1) from None
        if isinstance(error, MoshiServerError):
            raise
        hint = f"this is a bug of ours: the traceback is in {output.path}"
        raise MoshiServerError(f"{type(error).__name__}: {error}", hint=hint) from error
    finally:
        output.close()
    if code == EXIT_FAILED:
        # A device that hangs may hold up an ordinary end for ever. All is said, and every socket is closed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code)
