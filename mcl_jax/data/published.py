"""TextCaps, AudioCaps and Clotho v2, in the files in which they are published.

TextCaps (Sidorov et al., arXiv 2003.12462): pictures of OpenImages with 5 captions, which read the text in them. The
captions of its test set are not public, so its validation set is tested on, and every fiftieth picture of the training
set is for validation. In the bilingual form, captions that have a French text are French and the others English: the
paper translated half of them.

AudioCaps (Kim et al., NAACL 2019): clips of 10 s from YouTube, with one caption in the training set and 5 elsewhere.

Clotho v2 (Drossos et al., arXiv 1910.09387): clips of 15 to 30 s from Freesound with 5 captions. "development" is for
training, "evaluation" is the test set.
"""

import csv
import dataclasses
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from mcl_jax.data.media import Clip, Media, Picture
from mcl_jax.data.paths import locate
from mcl_jax.data.records import Corpus, Record, Target, split_of
from mcl_jax.json_io import read_json

TEXTCAPS_LAYOUT = """\
TextCaps needs these files in one folder (textvqa.org/textcaps/dataset):
  TextCaps_0.1_train.json, TextCaps_0.1_val.json
  train_images/IMAGE_ID.jpg          from train_val_images.zip, the pictures of both sets
and for textcaps/bilingual
  TextCaps_0.1_train_fr.json, TextCaps_0.1_val_fr.json
      French texts by caption_id, such as {"17": "Une bouteille de vin.", …}. A caption that has one is French instead
      of English: to have half of the captions in each language, give half of them."""
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
    """TextCaps, a record for each picture; see `TEXTCAPS_LAYOUT`.

    Args:
      folder: holds the files.
      bilingual: whether captions with a French text are French, so that "en" and "fr" are the modes.
    Raises:
      FileNotFoundError: for a missing JSON file; says what was needed.
      ValueError: for a file in another layout; names it.
    """
    items = []
    for published, split in (("train", "train"), ("val", "test")):
        captions: dict[str, list[Target]] = {}
        for image_id, target in _textcaps_captions(Path(folder), published, bilingual):
            captions.setdefault(image_id, []).append(target)
        for image_id, targets in captions.items():
            name = f"train_images/{image_id}.jpg"
            held_out = split_of(f"textcaps {image_id}", 0.02, 0.0) if split == "train" else split
            items.append((image_id, targets, held_out, Picture(name, (Path(folder) / name).read_bytes), name))
    return _corpus(f"textcaps/{'bilingual' if bilingual else 'english'}", folder, items)


def _textcaps_captions(folder: Path, published: str, bilingual: bool) -> Iterator[tuple[str, Target]]:
    """Ids of pictures and captions, in the order of the file."""
    path = _needed(folder / f"TextCaps_0.1_{published}.json", TEXTCAPS_LAYOUT)
    french: dict[str, str] = {}
    if bilingual:
        french = read_json(_needed(path.with_name(f"{path.stem}_fr.json"), TEXTCAPS_LAYOUT))
    try:
        for row in read_json(path)["data"]:
            key, text = str(row["caption_id"]), row["caption_str"]
            mode = ("fr" if key in french else "en") if bilingual else None
            yield row["image_id"], Target(french.get(key, text), mode)
    except (AttributeError, KeyError, TypeError) as error:
        needed = '{"data": [{"image_id": …, "caption_id": …, "caption_str": …}, …]}'
        raise ValueError(f"{path}: needed {needed}, got another layout ({error!r})\n{TEXTCAPS_LAYOUT}") from None


def read_audiocaps(folder: Path | str) -> Corpus:
    """AudioCaps, a record for each clip; see `AUDIOCAPS_LAYOUT`. Clips that are not there are in `left_out`.

    Raises:
      FileNotFoundError: for a missing CSV file; says what was needed.
      ValueError: for a CSV file with other columns; names it.
    """
    folder, items, left_out = Path(folder), [], []
    for published, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        columns = ("audiocap_id", "youtube_id", "start_time", "caption")
        there = sorted((folder / published).glob("*"))
        files = {path.stem: path for path in there if path.suffix.lower() in Clip.endings}
        clips: dict[str, list[dict[str, str]]] = {}
        for row in _csv_rows(folder / f"{published}.csv", columns, AUDIOCAPS_LAYOUT):
            clips.setdefault(f"{row['youtube_id']}_{row['start_time']}", []).append(row)
        for key, rows in clips.items():
            names = [key, rows[0]["youtube_id"], *(row["audiocap_id"] for row in rows)]
            path = next((files[name] for name in names if name in files), None)
            if path is None:
                left_out.append((key, f"no clip in {published}/"))
            else:
                clip, name = Clip(path.name, path.read_bytes), f"{published}/{path.name}"
                items.append((key, [Target(row["caption"]) for row in rows], split, clip, name))
    return _corpus("audiocaps", folder, items, left_out)


def read_clotho(folder: Path | str) -> Corpus:
    """Clotho v2.1, a record for each clip; see `CLOTHO_LAYOUT`.

    Raises:
      FileNotFoundError: for a missing CSV file; says what was needed.
      ValueError: for a CSV file with other columns; names it.
    """
    folder, items = Path(folder), []
    captions = tuple(f"caption_{number}" for number in range(1, 6))
    for published, split in (("development", "train"), ("validation", "validation"), ("evaluation", "test")):
        for row in _csv_rows(folder / f"clotho_captions_{published}.csv", ("file_name", *captions), CLOTHO_LAYOUT):
            name = PurePosixPath(published, row["file_name"]).as_posix()
            targets = [Target(row[caption]) for caption in captions]
            items.append((name, targets, split, Clip(name, (folder / name).read_bytes), name))
    return _corpus("clotho", folder, items)


Item = tuple[str, list[Target], str, Media, str]  # id, captions, split, the picture or clip, its path in the folder


def _corpus(name: str, folder: Path | str, items: Iterable[Item], left_out: Iterable[tuple[str, str]] = ()) -> Corpus:
    """Records without blank captions and repetitions, and without files of another record or out of the folder."""
    records, left_out = [], list(left_out)
    reasons = _not_of_their_own(folder, items)
    for key, targets, split, media, _ in items:
        if key in reasons:
            left_out.append((key, reasons[key]))
            continue
        stripped = [dataclasses.replace(target, text=" ".join(target.text.split())) for target in targets]
        left_out += [(key, "a blank caption") for target in stripped if not target.text]
        if kept := tuple(dict.fromkeys(target for target in stripped if target.text)):
            records.append(Record(key, "", kept, split=split, media=media))
    return Corpus(name, tuple(records), tuple(left_out))


def _not_of_their_own(folder: Path | str, items: Iterable[Item]) -> dict[str, str]:
    """By id, why its file is not its own. Nobody knows whose a file is that two records have: neither gets it."""
    reasons: dict[str, str] = {}
    owner: dict[Hashable, str] = {}
    for key, *_, path in items:
        try:
            file = locate(folder, path)
        except ValueError:
            reasons[key] = "a path out of the folder"
            continue
        if (first := owner.setdefault(file.identity, key)) != key:
            reasons |= {first: f"one file with {key}", key: f"one file with {first}"}
    return reasons


def _csv_rows(path: Path, columns: tuple[str, ...], layout: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV file by column."""
    with open(_needed(path, layout), encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        try:
            if not set(columns) <= set(reader.fieldnames or ()):
                raise ValueError(f"{path}: needed the columns {', '.join(columns)}, got {reader.fieldnames}\n{layout}")
            yield from reader
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: needed UTF-8, got {error}") from None


def _needed(path: Path, layout: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {str(path.parent)!r}\n{layout}")
    return path
