"""TensorBoard events of one training.

The calling thread writes them. A `SummaryWriter` would use a thread of its own, which dies at the first system error,
such as a full disk, and then blocks the next call for ever.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from mcl_jax.extras import needed_for
from mcl_jax.json_io import naming

FLUSH_SECONDS = 10.0


class Events:
    """An event file.

    Args:
      folder: folder of the file; created if it does not exist.
      purge_step: TensorBoard hides the events of earlier files in the folder from this step on.
    Raises:
      OSError: here and in the methods, if it cannot be written; names the folder.
      MissingExtra: if tensorboardX is not installed.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        with needed_for("writing TensorBoard events", "tensorboard"):
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
        self.folder = folder
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"))
            if purge_step is not None:
                start = SessionLog(status=SessionLog.START)
                self._writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))
            self._flushed = float("-inf")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each of these curves."""
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        with naming(self.folder):
            for name, value in values.items():
                event = Event(wall_time=time.time(), step=step, summary=summary.scalar(name, value))
                self._writer.write_event(event)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes all pending events to disk."""
        with naming(self.folder):
            self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes all pending events and closes the file."""
        with naming(self.folder):
            self._writer.close()
