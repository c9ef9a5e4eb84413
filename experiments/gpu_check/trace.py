"""The kernels that take the most time, from a trace of jax.profiler."""

import collections
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def largest(function: Callable[[], Any], most: int = 30) -> list[dict[str, Any]]:
    """Runs a function under the profiler; returns name, milliseconds and number of calls of the largest kernels."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            function()
        files = sorted(Path(folder).rglob("*.trace.json.gz"))
        if not files:
            return []
        events = json.loads(gzip.decompress(files[-1].read_bytes()))["traceEvents"]
    lanes = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    devices = {pid for pid, name in lanes.items() if "GPU" in name or "TPU" in name}
    threads = {
        (e["pid"], e["tid"]): e["args"]["name"]
        for e in events
        if e.get("name") == "thread_name" and e["pid"] in devices
    }
    total, calls, source = collections.Counter(), collections.Counter(), {}
    for event in events:
        if event.get("ph") != "X" or "Stream" not in threads.get((event["pid"], event.get("tid")), ""):
            continue
        total[event["name"]] += event["dur"] / 1000
        calls[event["name"]] += 1
        source[event["name"]] = str((event.get("args") or {}).get("name", ""))[:160]
    everything = sum(total.values())
    return [{"name": "everything", "ms": round(everything, 2), "calls": sum(calls.values())}] + [
        {"name": name[:90], "ms": round(ms, 2), "calls": calls[name], "op": source[name]}
        for name, ms in total.most_common(most)
    ]
