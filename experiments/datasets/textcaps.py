"""TextCaps (Sidorov et al., arXiv 2003.12462): images of OpenImages with 5 captions, which read the text in them.

The captions of its test set are not public, so the validation set is used for testing, and one training image in fifty
for validation. In the bilingual form, captions with a French text are French and the others English: the paper
translated half of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.datasets.published import Part, corpus_of, needed, text_of
from mcl_jax.data.media import Picture
from mcl_jax.data.records import Corpus, Target, split_of
from mcl_jax.json_io import read_json

LAYOUT = """\
TextCaps needs these files in one folder (textvqa.org/textcaps/dataset):
  TextCaps_0.1_train.json, TextCaps_0.1_val.json
  train_images/IMAGE_ID.jpg          from train_val_images.zip, the images of both sets
and for textcaps/bilingual
  TextCaps_0.1_train_fr.json, TextCaps_0.1_val_fr.json
      French texts by caption_id, such as {"17": "Une bouteille de vin.", …}. A caption with such a text becomes French;
      translate half of the captions to have half in each language."""


def read_textcaps(folder: Path | str, bilingual: bool = False) -> Corpus:
    """Reads TextCaps, one record per image; see `LAYOUT`. Missing images are in `left_out`.

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
        needed(folder / name, LAYOUT)
    parts = {}
    for published, split in (("train", "train"), ("val", "test")):
        path, captions = folder / f"TextCaps_0.1_{published}.json", {}
        parts[split] = Part(path, folder / "train_images", "IMAGE_ID.jpg")
        french = _french(path) if bilingual else None
        for image_id, target in _captions(path, french, left_out):
            captions.setdefault(image_id, []).append(target)
        for image_id, targets in captions.items():
            name = f"train_images/{image_id}.jpg"
            held_out = split_of(f"textcaps {image_id}", 0.02, 0.0) if split == "train" else split
            items.append((image_id, targets, held_out, Picture(name, (folder / name).read_bytes), name))
    return corpus_of(f"textcaps/{'bilingual' if bilingual else 'english'}", folder, parts, items, left_out)


def _captions(
    path: Path, french: dict[str, str] | None, left_out: list[tuple[str, str]]
) -> Iterator[tuple[str, Target]]:
    """Yields image ids and captions, in the order of the file. French texts without a caption are left out."""
    unused = set(french or ())
    for number, row in enumerate(_rows(path)):
        where = f"{path}, data[{number}]"
        image_id, text = (text_of(row[name], f"{where}: {name}") for name in ("image_id", "caption_str"))
        key = row["caption_id"]
        if type(key) not in (int, str):
            raise ValueError(f"{where}: caption_id must be an integer or a text, got {key!r}")
        unused.discard(str(key))
        mode = None if french is None else "fr" if str(key) in french else "en"
        yield image_id, Target(french[str(key)] if mode == "fr" else text, mode)
    left_out += [(key, f"a French text whose caption is not in {path.name}") for key in sorted(unused)]


def _rows(path: Path) -> list[dict[str, Any]]:
    """Reads the captions of a published JSON file; each has an image_id, a caption_id and a caption_str."""
    content, columns = read_json(path), ("image_id", "caption_id", "caption_str")
    rows = content.get("data") if isinstance(content, dict) else None

    def fits(row: Any) -> bool:
        return isinstance(row, dict) and row.keys() >= set(columns)

    if not isinstance(rows, list) or not all(map(fits, rows)):
        problem = "no list" if not isinstance(rows, list) else repr(next(row for row in rows if not fits(row)))[:80]
        layout = '{"data": [{"image_id": …, "caption_id": …, "caption_str": …}, …]}'
        raise ValueError(f"{path} must be {layout}, got another layout ({problem})\n{LAYOUT}")
    return rows


def _french(path: Path) -> dict[str, str]:
    """Reads the French texts by caption id."""
    path = path.with_name(f"{path.stem}_fr.json")
    texts = read_json(path)
    if not isinstance(texts, dict):
        raise ValueError(f'{path} must be texts by caption_id, such as {{"17": "Une bouteille."}}, got {texts!r:.60}')
    return {key: text_of(text, f"{path}: the text of caption {key}") for key, text in texts.items()}
