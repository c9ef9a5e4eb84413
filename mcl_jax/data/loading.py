"""What `--data` means: the name of a configuration of the verses, or a JSON-lines file."""

from pathlib import Path

from mcl_jax.data.jsonl import read_jsonl
from mcl_jax.data.records import Corpus, describe_unknown
from mcl_jax.data.verses_builder import Verses, load_verses


def load_corpus(
    data: str = "languages", data_dir: Path | str | None = None, sword_dir: Path | str | None = None
) -> Corpus:
    """One-to-many text by name or from a file.

    Args:
      data: a configuration of the verses ("languages", "styles", "languages_whole", "styles_whole"), or a path that
        ends in .jsonl.
      data_dir: where TFDS keeps the verses; its default if None.
      sword_dir: a folder with the unpacked SWORD modules; None to fetch the Debian packages.
    Raises:
      ValueError: for a name that is neither; names the nearest.
    """
    if str(data).endswith(".jsonl"):
        return read_jsonl(data)
    names = list(Verses.builder_configs)
    if data not in names:
        raise ValueError(f"data: a file that ends in .jsonl, or it {describe_unknown(data, names)}")
    return load_verses(data, data_dir, sword_dir)
