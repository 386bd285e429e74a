"""How one wording of a stream goes over into the next, chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

# A share of words so small that it is not worth a reading; the others take it over.
_NOTHING = 0.005


class Wording(NamedTuple):
    """What the model reads: a prompt, and the style that words it."""

    prompt: str
    style: str


@dataclass(frozen=True, slots=True)
class Shares:
    """Where a chunk stands between two wordings.

    Attributes:
        words: what was read up to now, with shares that add up to 1; more than one where a change
            came before the last one was over. In the order in which they came.
        towards: what is read in the end.
        share: of `towards`, above 0 and at most 1; 1 where nothing changes any more.
    """

    words: tuple[tuple[Wording, float], ...]
    towards: Wording
    share: float

    @property
    def flat(self) -> tuple[tuple[Wording, float], ...]:
        """All wordings with a share in the chunk, each once; the shares add up to 1."""
        return _mixed(self.words, self.towards, self.share)


class Crossfade:
    """Counts the chunks of a change.

    Args:
        chunks: over which one wording goes over into the next; 1 changes at once.

    Raises:
        ValueError: there is no chunk to change in.
    """

    def __init__(self, chunks: int) -> None:
        if chunks < 1:
            raise ValueError(f"a change takes at least one chunk, got {chunks}")
        self._chunks = chunks
        self._before: tuple[tuple[Wording, float], ...] = ()
        self._towards: Wording | None = None
        self._faded = chunks

    def step(self, wording: Wording) -> Shares:
        """The next chunk, which is on its way to `wording`."""
        if self._towards is None:
            self._before = ((wording, 1.0),)
        elif self._towards != wording:
            # From wherever an unfinished change has come to.
            share = self._faded / self._chunks
            self._before, self._faded = _mixed(self._before, self._towards, share), 1
        else:
            self._faded = min(self._faded + 1, self._chunks)
        self._towards = wording
        return Shares(self._before, wording, self._faded / self._chunks)

    def as_json(self) -> dict[str, Any]:
        """All of it in plain JSON values."""
        return {
            "chunks": self._chunks,
            "before": [[*wording, share] for wording, share in self._before],
            "towards": None if self._towards is None else list(self._towards),
            "faded": self._faded,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Crossfade:
        """The crossfade of which this is the JSON.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        made = cls(int(value["chunks"]))
        made._before = tuple(
            (Wording(str(prompt), str(style)), float(share))
            for prompt, style, share in value["before"]
        )
        if value["towards"] is not None:
            prompt, style = value["towards"]
            made._towards = Wording(str(prompt), str(style))
        made._faded = min(max(int(value["faded"]), 1), made._chunks)
        return made


def _mixed(
    words: tuple[tuple[Wording, float], ...], towards: Wording, share: float
) -> tuple[tuple[Wording, float], ...]:
    """`words` and `towards` by `share`, each wording once; what is next to nothing is left out."""
    if share >= 1:
        return ((towards, 1.0),)
    shares: dict[Wording, float] = {}
    for wording, part in words:
        shares[wording] = shares.get(wording, 0.0) + part * (1 - share)
    # Last, as the one that came last.
    shares[towards] = shares.pop(towards, 0.0) + share
    kept = {wording: part for wording, part in shares.items() if part > _NOTHING}
    total = sum(kept.values())
    return tuple((wording, part / total) for wording, part in kept.items())
