"""`python -m experiments.bench_head --help`"""

import gc
import sys

import jax
import tyro
from rich.console import Console
from rich.progress import Progress

from experiments.bench_head import measure, report, variants
from experiments.bench_head.config import QUICK, Config


def main(config: Config, console: Console) -> list[dict]:
    """Peak memory in processes of their own, then for each rank: check, time, write.

    Returns:
      The rows, as in --json.
    """
    say = lambda line: console.print(f"[dim]{line}[/dim]", highlight=False)
    peaks = {}
    for cell in measure.cells_with_peak(config):  # first, while this process holds nothing
        peaks[cell] = measure.peak_memory(config, *cell)
        variant, k, rank, mode = cell
        say(f"peak memory of {variant} K={k} r={rank} {mode}: {peaks[cell]['peak_rss_bytes'] / 2**20:.0f} MiB")

    rows = []
    for rank in config.ranks:
        setup = variants.make_setup(config, rank, max(config.ks))
        measure.check_gradients(config, setup, lambda line, rank=rank: say(f"r={rank} {line}"))
        for mode in config.modes:
            total = len(config.cells(mode)) * (config.warmup + config.repeats)
            with Progress(console=console, transient=True) as progress:
                task = progress.add_task(f"timing r={rank} {mode}", total=total)
                new = measure.time_cells(config, setup, mode, say, lambda p=progress, t=task: p.advance(t))
            cell = lambda row: (row["variant"], row["k"], row["rank"], row["mode"])
            rows += [row | peaks.get(cell(row), {}) for row in new]
            if config.json is not None:
                report.write_json(rows, config.json)
            gc.collect()
    return rows


def title_of(config: Config) -> str:
    """Sizes and machine, in one line."""
    device = jax.devices()[0]
    return (
        f"GPT-Neo L={config.layers} D={config.d_model} V={config.vocab}, B={config.batch} T={config.seq_len}, "
        f"{config.dtype}, {device.platform} ({device.device_kind}), jax {jax.__version__}"
    )


def cli(args: list[str]) -> None:
    """Reads the command line, runs, and prints the table and the summary."""
    config = tyro.cli(Config, prog="python -m experiments.bench_head", args=args, default=_preset(args))
    try:
        config.check()
    except ValueError as error:
        raise SystemExit(f"bench_head: {error}") from None
    console = Console(width=None if sys.stdout.isatty() else 130)
    rows = main(config, console)
    console.print(title_of(config), report.table(rows), sep="\n")
    if config.figure is not None:
        report.figure(rows, title_of(config), config.figure)
        console.print(f"figure: {config.figure}")
    for rank in config.ranks:
        console.print("\n".join(report.summary(rows, config.summary_k, rank)), highlight=False)


def _preset(args: list[str]) -> Config:
    return QUICK if "--quick" in args else Config()


if __name__ == "__main__":
    cli(sys.argv[1:])
