"""One stream of pictures for any number of viewers, none of whom can hold it up."""

from __future__ import annotations

import io
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Below 90 skies show steps, above it the bytes double for nothing that can be seen.
_QUALITY = 90


def jpeg(frame: NDArray[np.uint8]) -> bytes:
    """A picture `(height, width, 3)` as JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


class Viewer:
    """What waits for one viewer; from `Broadcast.join`.

    Attributes:
        skipped: pictures that were left out because the viewer was too slow.
    """

    def __init__(self, changed: threading.Condition, size: int) -> None:
        self.skipped = 0
        self._changed = changed
        self._size = size
        self._waiting: deque[bytes] = deque()
        self._ended = False

    def take(self, seconds: float) -> bytes | None:
        """The next picture; None where none comes in so long, or none ever will (`is_over`)."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended, seconds)
            return self._waiting.popleft() if self._waiting else None

    @property
    def is_over(self) -> bool:
        """Whether all pictures were taken and none follow."""
        with self._changed:
            return self._ended and not self._waiting

    def _put(self, picture: bytes) -> bool:
        """Whether pictures were left out for this one."""
        behind = len(self._waiting) >= self._size
        if behind:
            # To the present in one step: a picture here and there would keep it late for ever.
            self.skipped += len(self._waiting)
            self._waiting.clear()
        self._waiting.append(picture)
        return behind


class Broadcast:
    """Hands each picture to all who look at that time.

    Args:
        size: pictures that may wait for a viewer; a slower one skips to the newest.

    Attributes:
        num_frames: published so far.
        skipped: left out for slow viewers, over all of them.
    """

    def __init__(self, size: int) -> None:
        self.num_frames = 0
        self.skipped = 0
        self._size = max(2, size)
        self._changed = threading.Condition()
        self._viewers: set[Viewer] = set()
        self._latest: NDArray[np.uint8] | None = None
        self._latest_picture: bytes | None = None
        self._ended = False

    @property
    def num_viewers(self) -> int:
        """Who looks now."""
        with self._changed:
            return len(self._viewers)

    @property
    def has_ended(self) -> bool:
        """Whether no more pictures come."""
        return self._ended

    def publish(self, frame: NDArray[np.uint8]) -> bool:
        """Show a frame; whether a viewer skipped some for it."""
        # Coded once for all, not at all for nobody, and outside of the lock.
        picture = jpeg(frame) if self.num_viewers else None
        with self._changed:
            self.num_frames += 1
            self._latest, self._latest_picture = frame, picture
            skipping = False
            for viewer in self._viewers if picture is not None else ():
                before = viewer.skipped
                assert picture is not None
                skipping |= viewer._put(picture)
                self.skipped += viewer.skipped - before
            self._changed.notify_all()
        return skipping

    def join(self, limit: int) -> Viewer | None:
        """A new viewer, who begins with the picture of now; None where `limit` look already."""
        viewer = Viewer(self._changed, self._size)
        with self._changed:
            if len(self._viewers) >= limit:
                return None
            if self._latest is not None:
                viewer._put(self._latest_picture or jpeg(self._latest))
            viewer._ended = self._ended
            self._viewers.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """A viewer looks away."""
        with self._changed:
            self._viewers.discard(viewer)
            self._changed.notify_all()

    def end(self) -> None:
        """No more pictures come."""
        with self._changed:
            self._ended = True
            for viewer in self._viewers:
                viewer._ended = True
            self._changed.notify_all()

    def wait_for_viewers(self, seconds: float) -> None:
        """Wait until the last one has left, but no longer than that."""
        with self._changed:
            self._changed.wait_for(lambda: not self._viewers, seconds)
