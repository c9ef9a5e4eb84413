"""Tables of any layout: Parquet, CSV, TSV and JSON lines, in one file or in a folder with a file for each split.

    read_table("qa.parquet", source="question", targets="answers", mode="kind")
    read_table("phrases.csv", source="en", targets=("fr", "es"), split="part", splits={"train": "train", "test": "dev"})
    read_table("folder", source="q", targets="a")      # folder/train-00000-of-00002.parquet, …, folder/test.parquet

See `columns` for what columns may hold.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from mcl_jax.data.columns import Columns, Row, Splits, corpus_of_rows
from mcl_jax.data.csv_rows import decoded
from mcl_jax.data.jsonl import numbered_lines
from mcl_jax.data.records import Corpus
from mcl_jax.extras import needed_for
from mcl_jax.json_io import parse

LONGEST_CELL = 2**31 - 1  # characters; the limit of the csv module is 131,072 otherwise


def read_table(
    path: Path | str,
    *,
    source: str,
    targets: str | Sequence[str],
    mode: str | None = None,
    split: str | None = None,
    splits: Mapping[str, str] | None = None,
) -> Corpus:
    """Reads a corpus from a table.

    Args:
      path: a file .parquet, .csv, .tsv or .jsonl (UTF-8), or a folder of such files whose names begin with the name of
        their split, as in train-00000-of-00002.parquet.
      source: column of the sources. Rows with the same source are one record.
      targets: column or columns of the right answers: texts, or lists of texts.
      mode: column of the modes. By default, several columns of targets give their names.
      split: column of the splits.
      splits: names of the splits in the table by ours, such as {"train": "train", "test": "dev"}; others are left out.
        By default, they are named train, validation and test.
    Returns:
      The corpus, named after the file. Without `split` all rows of a file are in the training split:
      `corpus.with_test().with_validation()` takes the other splits from it.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the table lacks a column or a split (names the nearest one), if it is damaged or has no rows, or if
        a row has no answer or a wrong type; names file and line.
      MissingExtra: for Parquet, if pyarrow is not installed.
    """
    path, columns, named = Path(path), Columns(source, targets, mode, split), Splits(splits)
    if not path.exists():
        raise FileNotFoundError(f"{path} must be a table ({', '.join(READERS)}), but there is no such file or folder")
    if path.is_dir():
        if split is not None:
            raise ValueError(f"{path}: the names of the files in a folder tell the split, so give no column split")
        files, left_out = _files_of_splits(path, named)
    else:
        if splits and split is None:
            raise ValueError(f"{path}: the names of splits need a column split, or a folder with a file for each split")
        files, left_out = [(path, "train")], []
    rows = (row for file, of in files for row in _rows(file, of, columns))
    return corpus_of_rows(path.resolve().name, rows, columns, named, left_out)


def _files_of_splits(folder: Path, splits: Splits) -> tuple[list[tuple[Path, str]], list[tuple[str, str]]]:
    """Returns the tables in a folder with their splits, and (name, reason) of those that are none of a split."""
    tables = sorted(path for path in folder.iterdir() if path.suffix in READERS)
    if not tables:
        raise ValueError(f"{folder} must hold tables ({', '.join(READERS)}) named after their splits, got none")
    placed = [(path, _split_of(path, splits)) for path in tables]
    files = [(path, split) for path, split in placed if split is not None]
    others = [path for path, split in placed if split is None]
    missing = [n for n in splits.names.values() if not any(_begins(path, n) for path in tables)] if splits.given else []
    if missing or not files:
        wanted = " or ".join(missing or splits.names.values())
        raise ValueError(
            f"{folder} must hold a table whose name begins with {wanted}, got {[path.name for path in tables]}; for "
            "other names, say which is which (splits)"
        )
    return files, [] if splits.given else [(path.name, "its name begins with no split") for path in others]


def _split_of(path: Path, splits: Splits) -> str | None:
    """Returns the split of a file; of several names that its own begins with, the longest counts."""
    fitting = [(len(name), split) for split, name in splits.names.items() if _begins(path, name)]
    return max(fitting)[1] if fitting else None


def _begins(path: Path, split: str) -> bool:
    return path.name.startswith(split) and path.name[len(split) :][:1] in "-_."  # "" is the whole name


def _rows(path: Path, split: str, columns: Columns) -> Iterator[tuple[str, str, Row]]:
    """Yields place, split and values of the rows of a file.

    Raises:
      ValueError: if the file is damaged, has no rows or lacks a column; names it.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path} must be a table, a file that ends in {', '.join(READERS)}")
    number, unit = 0, "row" if path.suffix == ".parquet" else "line"
    for number, row in READERS[path.suffix](path, columns):
        yield f"{path}, {unit} {number}", split, row
    if not number:
        raise ValueError(f"{path} must hold rows, got an empty table")


def _csv(path: Path, columns: Columns, delimiter: str = ",") -> Iterator[tuple[int, Row]]:
    """Yields the number of the first line and the values of each row."""
    csv.field_size_limit(LONGEST_CELL)
    lines = csv.reader(io.StringIO(decoded(path), newline=""), strict=True, delimiter=delimiter)
    names, start = None, 1
    try:
        for cells in lines:
            number, start = start, lines.line_num + 1
            if names is None:
                names = _checked(path, columns, cells)
            elif cells:
                if len(cells) != len(names):
                    raise ValueError(f"{path}, line {number}: needed {len(names)} cells, got {len(cells)}")
                yield number, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {start}: is no row of a table ({error})") from None


def _checked(path: Path, columns: Columns, names: list[str]) -> list[str]:
    """Returns the names of the columns of a file, if those that are needed are among them."""
    try:
        columns.check(names)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return names


def _jsonl(path: Path, columns: Columns) -> Iterator[tuple[int, Row]]:
    """Yields the number of each line and its object. Some lines may lack a column, so none is checked here."""
    for number, line in numbered_lines(path):
        try:
            row = parse(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: needed a JSON object, got {line[:60]!r} ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: needed a JSON object, got {line[:60]!r}")
        yield number, row


def _parquet(path: Path, columns: Columns) -> Iterator[tuple[int, Row]]:
    """Yields the number and the values of each row; reads only the columns that are needed."""
    with needed_for("reading a Parquet file", "parquet"):
        import pyarrow
        from pyarrow.parquet import ParquetFile
    try:
        with ParquetFile(path, page_checksum_verification=True) as file:
            names = _checked(path, columns, file.schema_arrow.names)
            wanted = [name for name in names if any(name in (one, one.partition(".")[0]) for one in columns.names)]
            batches = file.iter_batches(batch_size=1024, columns=wanted)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from enumerate(rows, 1)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} is no sound Parquet file ({str(error).partition(chr(10))[0]})") from error


Reader = Callable[[Path, Columns], Iterator[tuple[int, Row]]]
READERS: dict[str, Reader] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".jsonl": _jsonl,
}
