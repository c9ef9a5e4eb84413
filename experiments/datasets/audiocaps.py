"""AudioCaps (Kim et al., NAACL 2019): clips of 10 s from YouTube, with 1 caption for training and 5 otherwise."""

from pathlib import Path

from experiments.datasets.published import Part, corpus_of, files_in, needed
from mcl_jax.data.csv_rows import read_rows
from mcl_jax.data.media import Clip
from mcl_jax.data.records import Corpus, Target

LAYOUT = """\
AudioCaps needs these files in one folder (github.com/cdjkim/audiocaps, folder dataset):
  train.csv, val.csv, test.csv       audiocap_id,youtube_id,start_time,caption
  train/, val/, test/                clips cut to their 10 s, named YOUTUBEID_START, YOUTUBEID or AUDIOCAPID, as .wav,
                                     .flac, .ogg, .mp3 or the like
Clips that YouTube no longer has are left out and counted."""


def read_audiocaps(folder: Path | str) -> Corpus:
    """Reads AudioCaps, one record per clip; see `LAYOUT`. Missing clips are in `left_out`.

    Raises:
      FileNotFoundError: if a CSV file is missing; says what is needed.
      ValueError: if a CSV file has other columns, or a split has no clips; names it.
    """
    folder, items, left_out = Path(folder), [], []
    marks = {"audiocap_id": r"\d+", "youtube_id": r"\S+", "start_time": r"\d+(\.\d+)?"}
    splits = {"train": "train", "val": "validation", "test": "test"}
    paths, columns = {published: folder / f"{published}.csv" for published in splits}, (*marks, "caption")
    rows_of = {
        published: read_rows(needed(path, LAYOUT), columns, marks, left_out) for published, path in paths.items()
    }
    for published, split in splits.items():
        files = {Path(name).stem: name for name in files_in(folder / published) if name.lower().endswith(Clip.endings)}
        clips: dict[str, list[dict[str, str]]] = {}
        for row in rows_of[published]:
            clips.setdefault(f"{row['youtube_id']}_{row['start_time']}", []).append(row)
        for key, rows in clips.items():
            if (name := _clip_of(key, rows, files)) is None:
                left_out.append((key, f"no clip in {published}/"))
                continue
            targets, clip = [Target(row["caption"]) for row in rows], Clip(name, (folder / published / name).read_bytes)
            items.append((key, targets, split, clip, f"{published}/{name}"))
    parts = {split: Part(paths[name], folder / name, "YOUTUBEID_START.wav") for name, split in splits.items()}
    return corpus_of("audiocaps", folder, parts, items, left_out)


def _clip_of(key: str, rows: list[dict[str, str]], files: dict[str, str]) -> str | None:
    """Returns the file of a clip, which may have any of several names."""
    names = [key, rows[0]["youtube_id"], *(row["audiocap_id"] for row in rows)]
    return next((files[name] for name in names if name in files), None)
