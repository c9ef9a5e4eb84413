"""What `--data` means: the name of a configuration of the verses or of WMT, JSON lines, or parallel files."""

from pathlib import Path

from mcl_jax.data.jsonl import read_jsonl
from mcl_jax.data.parallel import load_wmt, read_parallel
from mcl_jax.data.records import Corpus, describe_unknown
from mcl_jax.data.verses_builder import Verses, load_verses


def load_corpus(
    data: Path | str = "languages",
    data_dir: Path | str | None = None,
    sword_dir: Path | str | None = None,
    *,
    source: str = "en",
    target: str = "de",
    most: int | None = None,
) -> Corpus:
    """One-to-many text by name or from files.

    Args:
      data: a configuration of the verses ("languages", "styles", "languages_whole", "styles_whole"), a path that ends
        in .jsonl, a folder of parallel files (see `parallel`), or WMT by its name in TFDS ("wmt19_translate/de-en").
      data_dir: where TFDS keeps what it makes; its default if None.
      sword_dir: a folder with the unpacked SWORD modules; None to fetch the Debian packages.
      source, target: languages of parallel files and of WMT.
      most: training pairs of WMT; all if None.
    Raises:
      ValueError: for a name that is none of these; names the nearest.
    """
    names = list(Verses.builder_configs)
    if str(data).endswith(".jsonl"):
        return read_jsonl(data)
    if data in names:
        return load_verses(data, data_dir, sword_dir)
    if Path(data).is_dir():
        return read_parallel(data, source, target)
    if str(data).startswith("wmt"):
        return load_wmt(str(data), data_dir, source=source, target=target, most=most)
    raise ValueError(
        "data: a folder with parallel files, a name such as wmt19_translate/de-en, a file that ends in .jsonl, or it "
        f"{describe_unknown(str(data), names)}"
    )
