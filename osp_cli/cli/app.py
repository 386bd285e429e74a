"""The `osp` command: its commands, and the one place where errors become exit codes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from osp_cli import __version__
from osp_cli.cli import bench, completion, console, doctor, download
from osp_cli.cli.dataset import EXAMPLES as DATASET_EXAMPLES
from osp_cli.cli.dataset import dataset
from osp_cli.cli.extend import EXAMPLES as EXTEND_EXAMPLES
from osp_cli.cli.extend import extend
from osp_cli.cli.generate import EXAMPLES, generate
from osp_cli.cli.models import EXAMPLES as MODELS_EXAMPLES
from osp_cli.cli.models import models
from osp_cli.cli.schema import schema
from osp_cli.cli.styles import EXAMPLES as STYLES_EXAMPLES
from osp_cli.cli.styles import styles
from osp_cli.cli.stylize import EXAMPLES as STYLIZE_EXAMPLES
from osp_cli.cli.stylize import stylize
from osp_cli.cli.train_lora import EXAMPLES as TRAIN_EXAMPLES
from osp_cli.cli.train_lora import train_lora
from osp_cli.dials import canonical_name
from osp_cli.errors import InterruptedRunError, OspError
from osp_cli.outputs import STATE_SUFFIX, STREAM_EXTENSIONS

app = typer.Typer(
    name="osp",
    help="Turn a picture into a video, styled or not.",
    epilog=EXAMPLES,
    # Plain help: rich's boxes cost a third of the start-up time and break narrow terminals.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": canonical_name,
    },
)
app.command(epilog=EXAMPLES)(generate)
app.command(epilog=STYLIZE_EXAMPLES)(stylize)
app.command(epilog=EXTEND_EXAMPLES)(extend)
app.command(epilog=TRAIN_EXAMPLES)(train_lora)
app.command(epilog=STYLES_EXAMPLES)(styles)
app.add_typer(models, name="models", epilog=MODELS_EXAMPLES)
app.add_typer(dataset, name="dataset", epilog=DATASET_EXAMPLES)
app.command(epilog=download.EXAMPLES)(download.download)
app.command(epilog=doctor.EXAMPLES)(doctor.doctor)
app.command(epilog=bench.EXAMPLES)(bench.bench)
app.command(epilog=completion.EXAMPLES)(completion.completion)
app.command()(schema)


def _show_version(asked: bool) -> None:
    if asked:
        console.write_line(f"osp {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def osp(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            help="Show the version and exit",
            callback=_show_version,
            is_eager=True,
            show_default=False,
        ),
    ] = False,
) -> None:
    """Turn a picture into a video, styled or not."""
    if context.invoked_subcommand is None:
        console.write_line(context.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        argv: the arguments after the program's name; by default those of the process.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        # Not standalone: Typer would print its own boxes and exit by itself.
        result: Any = app(args=args, prog_name="osp", standalone_mode=False)
        # Typer turns Ctrl-C into this code, and so stays silent about it.
        if result == InterruptedRunError.exit_code:
            raise InterruptedRunError("interrupted")
        return result if isinstance(result, int) else 0
    except OspError as error:
        return _fail(args, error.message, error.hint, error.exit_code, error.kept)
    except typer.TyperException as error:
        return _fail(args, *_usage(error), error.exit_code)
    except console.StdoutClosedError:
        console.discard_stdout()
        return 0
    except KeyboardInterrupt:
        return _fail(args, "interrupted", None, InterruptedRunError.exit_code)
    except SystemExit as error:
        # Typer's way out when it writes help into a closed pipe.
        if isinstance(error.__context__, BrokenPipeError):
            console.discard_stdout()
            return 0
        raise
    except Exception as error:  # noqa: BLE001 - the last resort: one sentence, whatever it was
        summary = str(error).strip().partition("\n")[0]
        message = f"unexpected {type(error).__name__}: {summary}".rstrip(": ")
        hint = None if "--debug" in args else "run it again with --debug for the traceback"
        return _fail(args, message, hint, 1)


def _usage(error: typer.TyperException) -> tuple[str, str | None]:
    """Typer's complaint in our form: a sentence without its dot, and where help is."""
    message = error.format_message().strip().rstrip(".")
    context = getattr(error, "ctx", None)
    hint = f"{context.command_path} --help" if context is not None else None
    if "unexpected extra argument" in message:
        command = context.command_path if context is not None else "osp generate"
        hint = f'put quotes around a prompt: {command} photo.jpg "the camera zooms in"'
    return message[:1].lower() + message[1:], hint


def _fail(
    args: list[str],
    message: str,
    hint: str | None,
    exit_code: int,
    kept: tuple[Path, ...] = (),
) -> int:
    if "--debug" in args:
        import traceback

        console.say(traceback.format_exc().rstrip())
    if "--json" in args:
        from osp_cli.events import Failed

        try:
            console.write_json(Failed(message, hint, exit_code, kept).as_json())
        except console.StdoutClosedError:
            console.discard_stdout()
    console.say_error(message, hint)
    for path in kept:
        console.say(f"kept: {path}")
        if again := _way_on(path):
            console.say_hint(f"{again} goes on from it")
    return exit_code


def _way_on(path: Path) -> str:
    """The command that goes on from what a run left; empty for what only plays."""
    if path.is_dir():
        # Windows of a long video are a folder, which says nothing of where the video lies.
        return "the same command"
    quoted = shlex.quote(str(path))
    if path.name.endswith(STATE_SUFFIX):
        return f"osp extend --resume {quoted}"
    # A video only plays.
    return "" if path.suffix.lower() in STREAM_EXTENSIONS else f"osp generate --from {quoted}"
