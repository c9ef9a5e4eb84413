"""A headless Chromium, and what it finds in a page: the DevTools protocol over a pipe, without a driver or a network.

Protocol: JSON messages that end in NUL, to the browser's file descriptor 3 and from its 4.
"""

import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
OPTIONS = ("--headless", "--no-sandbox", "--remote-debugging-pipe", "--host-resolver-rules=MAP * ~NOTFOUND")
PIPE = 'exec "$@" 3<&0 4>&1 0</dev/null 1>/dev/null'
SECONDS = 60  # of silence, when something is waited for


class Chromium:
    """A browser with one page open; a context manager.

    Attributes:
      events: what the browser told of the page, in order.
    """

    def __init__(self, profile: Path):
        command = ["sh", "-c", PIPE, "sh", PROGRAM, *OPTIONS, f"--user-data-dir={profile}"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, **pipes, start_new_session=True)
        self._messages, self._session, self._number, self.events = self._read(), {}, 0, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *exception: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # Debian's program is a script that starts the browser
        self._process.communicate()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while (answer := next(self._messages)).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self) -> Iterator[dict[str, Any]]:
        rest, pipe = b"", self._process.stdout.fileno()
        while select.select([pipe], [], [], SECONDS)[0] and (chunk := os.read(pipe, 1 << 20)):
            *messages, rest = (rest + chunk).split(b"\0")
            yield from map(json.loads, messages)
        raise RuntimeError(f"{PROGRAM} has ended, or has said nothing for {SECONDS} seconds")

    def open(self, path: Path) -> None:
        """Loads a file, until its pictures are there; forgets what was before."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not self.found("Page.loadEventFired"):
            self.events.append(next(self._messages))

    def found(self, method: str) -> list[dict[str, Any]]:
        """The parameters of such events."""
        return [event["params"] for event in self.events if event["method"] == method]

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")
