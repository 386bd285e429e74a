"""`osp schema`: what the JSON that `osp` writes looks like, for programs that read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from osp_cli.cli import console
from osp_cli.cli.options import DebugOpt
from osp_cli.errors import InvalidRequestError

# Each is JSON Schema, draft 2020-12, in the package's folder of schemas.
DOCUMENTS = {
    "events": "one line of --json",
    "recipe": "the sidecar of a video, and the comment inside it",
    "doctor": "osp doctor --json",
}

_FOLDER = Path(__file__).resolve().parents[1] / "assets" / "schemas"


def schema_path(document: str) -> Path:
    """The file of one of `DOCUMENTS`.

    Raises:
        InvalidRequestError: no such document.
    """
    if document not in DOCUMENTS:
        raise InvalidRequestError(
            f"unknown document {document!r}", hint=f"the documents are: {', '.join(DOCUMENTS)}"
        )
    return _FOLDER / f"{document}.json"


def schema(
    document: Annotated[
        str,
        typer.Argument(
            metavar="DOCUMENT", help=f"One of {', '.join(DOCUMENTS)}", show_default=False
        ),
    ] = "events",
    debug: DebugOpt = False,
) -> None:
    """Print the JSON Schema of what osp writes."""
    console.write_line(schema_path(document).read_text(encoding="utf-8").rstrip("\n"))
