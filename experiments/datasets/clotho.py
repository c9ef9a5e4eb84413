"""Clotho v2 (Drossos et al., arXiv 1910.09387): clips of 15 to 30 s from Freesound with 5 captions.

"development" is the training set, and "evaluation" the test set.
"""

import re
from pathlib import Path, PurePosixPath

from experiments.datasets.published import Part, corpus_of, needed
from mcl_jax.data.csv_rows import read_rows
from mcl_jax.data.media import Clip
from mcl_jax.data.records import Corpus, Target

LAYOUT = """\
Clotho v2.1 needs these files in one folder (zenodo.org/record/4783391):
  clotho_captions_development.csv, clotho_captions_validation.csv, clotho_captions_evaluation.csv
                                     file_name,caption_1,…,caption_5
  development/, validation/, evaluation/      the WAV files, from clotho_audio_development.7z and so on"""


def read_clotho(folder: Path | str) -> Corpus:
    """Reads Clotho v2.1, one record per clip; see `LAYOUT`. Missing clips are in `left_out`.

    Raises:
      FileNotFoundError: if a CSV file is missing; says what is needed.
      ValueError: if a CSV file has other columns, or a split has no clips; names it.
    """
    folder, items, left_out = Path(folder), [], []
    captions = tuple(f"caption_{number}" for number in range(1, 6))
    splits = {"development": "train", "validation": "validation", "evaluation": "test"}
    marks = {"file_name": rf"(?i).+({'|'.join(map(re.escape, Clip.endings))})"}
    paths, columns = {name: folder / f"clotho_captions_{name}.csv" for name in splits}, ("file_name", *captions)
    rows_of = {name: read_rows(needed(path, LAYOUT), columns, marks, left_out) for name, path in paths.items()}
    for published, split in splits.items():
        for row in rows_of[published]:
            name = PurePosixPath(published, row["file_name"]).as_posix()
            targets = [Target(row[caption]) for caption in captions]
            items.append((name, targets, split, Clip(name, (folder / name).read_bytes), name))
    parts = {split: Part(paths[name], folder / name, "in file_name") for name, split in splits.items()}
    return corpus_of("clotho", folder, parts, items, left_out)
