"""TextCaps, AudioCaps and Clotho v2, read from their published files.

TextCaps (Sidorov et al., arXiv 2003.12462): images of OpenImages with 5 captions, which read the text in them. The
captions of its test set are not public, so the validation set is used for testing, and one training image in fifty for
validation. In the bilingual form, captions with a French text are French and the others English: the paper translated
half of them.

AudioCaps (Kim et al., NAACL 2019): clips of 10 s from YouTube, with one caption in the training set and 5 elsewhere.

Clotho v2 (Drossos et al., arXiv 1910.09387): clips of 15 to 30 s from Freesound with 5 captions. "development" is the
training set, "evaluation" the test set.
"""

import dataclasses
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mcl_jax.data.csv_rows import read_rows
from mcl_jax.data.media import Clip, Media, Picture
from mcl_jax.data.paths import locate
from mcl_jax.data.records import Corpus, Record, Target, split_of
from mcl_jax.json_io import check_unicode, read_json

NO_FILE = "no such file"
TEXTCAPS_LAYOUT = """\
TextCaps needs these files in one folder (textvqa.org/textcaps/dataset):
  TextCaps_0.1_train.json, TextCaps_0.1_val.json
  train_images/IMAGE_ID.jpg          from train_val_images.zip, the images of both sets
and for textcaps/bilingual
  TextCaps_0.1_train_fr.json, TextCaps_0.1_val_fr.json
      French texts by caption_id, such as {"17": "Une bouteille de vin.", …}. A caption with such a text becomes French;
      translate half of the captions to have half in each language."""
AUDIOCAPS_LAYOUT = """\
AudioCaps needs these files in one folder (github.com/cdjkim/audiocaps, folder dataset):
  train.csv, val.csv, test.csv       audiocap_id,youtube_id,start_time,caption
  train/, val/, test/                clips cut to their 10 s, named YOUTUBEID_START, YOUTUBEID or AUDIOCAPID, as .wav,
                                     .flac, .ogg, .mp3 or the like
Clips that YouTube no longer has are left out and counted."""
CLOTHO_LAYOUT = """\
Clotho v2.1 needs these files in one folder (zenodo.org/record/4783391):
  clotho_captions_development.csv, clotho_captions_validation.csv, clotho_captions_evaluation.csv
                                     file_name,caption_1,…,caption_5
  development/, validation/, evaluation/      the WAV files, from clotho_audio_development.7z and so on"""


def read_textcaps(folder: Path | str, bilingual: bool = False) -> Corpus:
    """Reads TextCaps, one record per image; see `TEXTCAPS_LAYOUT`. Missing images are in `left_out`.

    Args:
      folder: folder with the files.
      bilingual: whether captions with a French text are French, so that "en" and "fr" are the modes.
    Raises:
      FileNotFoundError: if a JSON file is missing; says what is needed.
      ValueError: if a file has another layout, or a split has no images; names it.
    """
    folder, items, left_out = Path(folder), [], []
    names = [f"TextCaps_0.1_{part}{end}.json" for part in ("train", "val") for end in ("", "_fr")[: 1 + bilingual]]
    for name in names:  # checks all before reading any
        _needed(folder / name, TEXTCAPS_LAYOUT)
    parts = {}
    for published, split in (("train", "train"), ("val", "test")):
        path, captions = folder / f"TextCaps_0.1_{published}.json", {}
        parts[split] = Part(path, folder / "train_images", "IMAGE_ID.jpg")
        french = _french(path) if bilingual else None
        for image_id, target in _textcaps_captions(path, french, left_out):
            captions.setdefault(image_id, []).append(target)
        for image_id, targets in captions.items():
            name = f"train_images/{image_id}.jpg"
            held_out = split_of(f"textcaps {image_id}", 0.02, 0.0) if split == "train" else split
            items.append((image_id, targets, held_out, Picture(name, (folder / name).read_bytes), name))
    return _corpus(f"textcaps/{'bilingual' if bilingual else 'english'}", folder, parts, items, left_out)


def _textcaps_captions(
    path: Path, french: dict[str, str] | None, left_out: list[tuple[str, str]]
) -> Iterator[tuple[str, Target]]:
    """Yields image ids and captions, in the order of the file. French texts without a caption are left out."""
    unused = set(french or ())
    for number, row in enumerate(_textcaps_rows(path)):
        where = f"{path}, data[{number}]"
        image_id, text = (_text(row[name], f"{where}: {name}") for name in ("image_id", "caption_str"))
        key = row["caption_id"]
        if type(key) not in (int, str):
            raise ValueError(f"{where}: caption_id must be an integer or a text, got {key!r}")
        unused.discard(str(key))
        mode = None if french is None else "fr" if str(key) in french else "en"
        yield image_id, Target(french[str(key)] if mode == "fr" else text, mode)
    left_out += [(key, f"a French text whose caption is not in {path.name}") for key in sorted(unused)]


def _textcaps_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the captions of a published JSON file; each has an image_id, a caption_id and a caption_str."""
    content, columns = read_json(path), ("image_id", "caption_id", "caption_str")
    rows = content.get("data") if isinstance(content, dict) else None

    def fits(row: Any) -> bool:
        return isinstance(row, dict) and row.keys() >= set(columns)

    if not isinstance(rows, list) or not all(map(fits, rows)):
        problem = "no list" if not isinstance(rows, list) else repr(next(row for row in rows if not fits(row)))[:80]
        needed = '{"data": [{"image_id": …, "caption_id": …, "caption_str": …}, …]}'
        raise ValueError(f"{path} must be {needed}, got another layout ({problem})\n{TEXTCAPS_LAYOUT}")
    return rows


def _french(path: Path) -> dict[str, str]:
    """Reads the French texts by caption id."""
    path = path.with_name(f"{path.stem}_fr.json")
    texts = read_json(path)
    if not isinstance(texts, dict):
        raise ValueError(f'{path} must be texts by caption_id, such as {{"17": "Une bouteille."}}, got {texts!r:.60}')
    return {key: _text(text, f"{path}: the text of caption {key}") for key, text in texts.items()}


def read_audiocaps(folder: Path | str) -> Corpus:
    """Reads AudioCaps, one record per clip; see `AUDIOCAPS_LAYOUT`. Missing clips are in `left_out`.

    Raises:
      FileNotFoundError: if a CSV file is missing; says what is needed.
      ValueError: if a CSV file has other columns, or a split has no clips; names it.
    """
    folder, items, left_out = Path(folder), [], []
    marks = {"audiocap_id": r"\d+", "youtube_id": r"\S+", "start_time": r"\d+(\.\d+)?"}
    splits = {"train": "train", "val": "validation", "test": "test"}
    paths, columns = {published: folder / f"{published}.csv" for published in splits}, (*marks, "caption")
    rows_of = {
        published: read_rows(_needed(path, AUDIOCAPS_LAYOUT), columns, marks, left_out)
        for published, path in paths.items()
    }
    for published, split in splits.items():
        files = {Path(name).stem: name for name in _files(folder / published) if name.lower().endswith(Clip.endings)}
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
    return _corpus("audiocaps", folder, parts, items, left_out)


def _clip_of(key: str, rows: list[dict[str, str]], files: dict[str, str]) -> str | None:
    """Returns the file of a clip, which may have any of several names."""
    names = [key, rows[0]["youtube_id"], *(row["audiocap_id"] for row in rows)]
    return next((files[name] for name in names if name in files), None)


def read_clotho(folder: Path | str) -> Corpus:
    """Reads Clotho v2.1, one record per clip; see `CLOTHO_LAYOUT`. Missing clips are in `left_out`.

    Raises:
      FileNotFoundError: if a CSV file is missing; says what is needed.
      ValueError: if a CSV file has other columns, or a split has no clips; names it.
    """
    folder, items, left_out = Path(folder), [], []
    captions = tuple(f"caption_{number}" for number in range(1, 6))
    splits = {"development": "train", "validation": "validation", "evaluation": "test"}
    marks = {"file_name": rf"(?i).+({'|'.join(map(re.escape, Clip.endings))})"}
    paths, columns = {name: folder / f"clotho_captions_{name}.csv" for name in splits}, ("file_name", *captions)
    rows_of = {name: read_rows(_needed(path, CLOTHO_LAYOUT), columns, marks, left_out) for name, path in paths.items()}
    for published, split in splits.items():
        for row in rows_of[published]:
            name = PurePosixPath(published, row["file_name"]).as_posix()
            targets = [Target(row[caption]) for caption in captions]
            items.append((name, targets, split, Clip(name, (folder / name).read_bytes), name))
    parts = {split: Part(paths[name], folder / name, "in file_name") for name, split in splits.items()}
    return _corpus("clotho", folder, parts, items, left_out)


Item = tuple[str, list[Target], str, Media, str]  # id, captions, split, image or clip, its path in the folder


class Part(NamedTuple):
    """Files of a published split: that of the captions, the folder of images or clips, and the names needed there."""

    captions: Path
    folder: Path
    names: str


def _corpus(
    name: str, folder: Path, parts: Mapping[str, Part], items: Iterable[Item], left_out: Iterable[tuple[str, str]]
) -> Corpus:
    """Makes a corpus without blank or repeated captions, and without records whose file is missing or shared.

    Raises:
      ValueError: if a split has no records left; checked before any file is read.
    """
    records, left_out = [], list(left_out)
    reasons = _not_of_their_own(folder, items)
    for key, targets, split, media, path in items:
        if key in reasons:
            left_out.append((path if reasons[key] == NO_FILE else key, reasons[key]))
            continue
        stripped = [dataclasses.replace(target, text=" ".join(target.text.split())) for target in targets]
        left_out += [(key, "a blank caption") for target in stripped if not target.text]
        if kept := tuple(dict.fromkeys(target for target in stripped if target.text)):
            records.append(Record(key, "", kept, split=split, media=media))
    filled = {record.split for record in records}
    for part in (parts[split] for split in parts if split not in filled):
        some = ", ".join(_files(part.folder)[:3]) or "no files"
        raise ValueError(
            f"{part.captions} has no usable captions, because none of their files is in {part.folder}, which has "
            f"{some}; the files must be named {part.names}"
        )
    return Corpus(name, tuple(records), tuple(left_out))


def _not_of_their_own(folder: Path, items: Iterable[Item]) -> dict[str, str]:
    """Returns the reason, by id, why a record has no file of its own. A file shared by two records goes to neither."""
    reasons: dict[str, str] = {}
    owner: dict[Hashable, str] = {}
    for key, *_, path in items:
        try:
            file = locate(folder, path)
        except ValueError:
            reasons[key] = "a path outside the folder"
            continue
        if not file.is_file:
            reasons[key] = NO_FILE
        elif (first := owner.setdefault(file.identity, key)) != key:
            reasons |= {first: f"one file with {key}", key: f"one file with {first}"}
    return reasons


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, got {value!r:.80}")
    return check_unicode(value, name)


def _needed(path: Path, layout: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {str(path.parent)!r}\n{layout}")
    return path


def _files(folder: Path) -> list[str]:
    """Returns the sorted names in a folder; none if there is no such folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
