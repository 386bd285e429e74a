"""Every failure that `osp` reports in a sentence instead of a traceback.

Each class carries the exit code of the process, so a script can tell them apart:

    OspError                      1
    ├── InvalidRequestError       2    bad flag, bad value, bad preset file
    │   └── UnreadableMediaError  2    the picture cannot be used as input
    ├── WeightsMissingError       3    the model card is known, its weights are not here
    ├── WontFitError              4    memory or disk too small
    ├── ChecksumError             5    a file is not the one it claims to be
    ├── BatchPartlyFailedError    6    some items of a batch failed, the others are done
    ├── CheckpointError           1    missing or unexpected keys, named
    ├── RuntimeFailureError       1    the run itself failed
    └── InterruptedRunError     130    stopped by Ctrl-C
        └── TerminatedRunError  143    stopped by SIGTERM
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self


class OspError(Exception):
    """A failure with a sentence for the user and, often, what to do instead.

    Args:
        message: one sentence, no trailing full stop, naming the offending value.
        hint: what to type or change instead; shown on a line of its own.
        kept: files that hold what was done before the failure, and from which it can go on.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, hint: str | None = None, kept: tuple[Path, ...] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.kept = kept

    def __str__(self) -> str:
        return self.message

    def at(self, place: str) -> Self:
        """The error, its message beginning with the place that it is about, if there is one."""
        if not place or self.message.startswith(place):
            return self
        return type(self)(f"{place}: {self.message}", hint=self.hint, kept=self.kept)


class InvalidRequestError(OspError):
    """What was asked cannot be done: a bad flag, value or preset file."""

    exit_code: ClassVar[int] = 2


class UnreadableMediaError(InvalidRequestError):
    """The input picture or video is missing, damaged, too large or no picture at all."""


class WeightsMissingError(OspError):
    """The weights of a known model are not installed."""

    exit_code: ClassVar[int] = 3


class WontFitError(OspError):
    """The run needs more memory or disk than there is."""

    exit_code: ClassVar[int] = 4


class ChecksumError(OspError):
    """A file's contents differ from its published checksum."""

    exit_code: ClassVar[int] = 5


class BatchPartlyFailedError(OspError):
    """Some items of a batch failed; the others were finished and saved."""

    exit_code: ClassVar[int] = 6


class CheckpointError(OspError):
    """A checkpoint does not fit the model: keys are missing or unexpected, and named."""


class RuntimeFailureError(OspError):
    """The run failed after it had started."""


class InterruptedRunError(OspError):
    """The user stopped the run; the message names what was saved."""

    exit_code: ClassVar[int] = 130


class TerminatedRunError(InterruptedRunError):
    """The system stopped the run, with SIGTERM."""

    exit_code: ClassVar[int] = 143
