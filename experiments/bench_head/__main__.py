"""Command line of the benchmark: `python -m experiments.bench_head --help`."""

import functools
import gc
import sys

import jax
from rich.console import Console
from rich.progress import Progress

from experiments.bench_head import measure, peak, report, variants
from experiments.bench_head.config import QUICK, Config
from experiments.common.options import parse_sized
from mcl_jax.command_line import attempt, errors_in_a_line
from mcl_jax.console import PLAIN_WIDTH, plain, say
from mcl_jax.json_io import write_json


def main(config: Config, console: Console) -> list[dict]:
    """Measures peak memory in separate processes; then checks, times and writes the rows of each rank.

    Returns:
      The rows, as in --json.
    """

    def tell(line: str) -> None:
        say(plain(line, "dim"), console=console)

    peaks = {}
    for cell in peak.cells_with_peak(config):  # first, while this process uses little memory
        peaks[cell] = peak.peak_memory(config, cell)
        tell(f"peak memory of {cell}: {peaks[cell]['peak_rss_bytes'] / 2**20:.0f} MiB")

    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    rows = []
    for rank in config.ranks:
        setup = variants.make_setup(config, rank, max(config.ks))
        for mode in config.modes:
            programs = measure.checked_programs(config, setup, mode, tell)
            with Progress(console=console, transient=True) as progress:
                task = progress.add_task(
                    f"timing r={rank} {mode}", total=len(programs) * (config.warmup + config.repeats)
                )
                tick = functools.partial(progress.advance, task)
                seconds = measure.rounds(programs, config.warmup, config.repeats, tick, config.patience)
            for row in measure.rows_of(config, rank, mode, programs, seconds):
                rows.append(row | peaks.get((row["variant"], row["k"], rank, mode), {}))
            del programs
            gc.collect()  # frees their states before the next ones are made
            if config.json is not None:
                write_json(config.json, rows)
    return rows


def title_of(config: Config) -> str:
    """Describes sizes and machine in one line."""
    device = jax.devices()[0]
    return (
        f"GPT-Neo L={config.layers} D={config.d_model} V={config.vocab}, B={config.batch} T={config.seq_len}, "
        f"{config.dtype}, {device.platform} ({device.device_kind}), jax {jax.__version__}"
    )


def parse(args: list[str]) -> Config:
    """The command line; with --quick the defaults are those of the preset."""
    return parse_sized(QUICK, args, "python -m experiments.bench_head")


def cli(args: list[str]) -> None:
    """Runs the command line, and prints the table and the summary."""
    with errors_in_a_line():
        config = parse(args).check()
        console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        rows = main(config, console)
        if config.figure is not None:
            with attempt(str(config.figure)):
                report.figure(rows, title_of(config), config.figure)
        say(title_of(config), console=console)
        console.print(report.table(rows))
        for rank in config.ranks:
            say("\n".join(report.summary(rows, config.summary_k, rank)), console=console)


if __name__ == "__main__":
    cli(sys.argv[1:])
