"""Small files in the layouts in which TextCaps, AudioCaps and Clotho are published."""

import json

from tiny_media import ogg, png, sound, write

IMAGES = 100


def textcaps_rows(published, first, count):
    """Rows as in the JSON files: one for each of the 3 captions of a picture."""
    return [
        {
            "image_id": f"{number:016x}",
            "image_path": f"train/{number:016x}.jpg",
            "set_name": published,
            "caption_id": 3 * number + part,
            "caption_str": f"A sign {number} says {part}.",
            "reference_strs": [f"A sign {number} says {other}." for other in range(3)],
        }
        for number in range(first, first + count)
        for part in range(3)
    ]


def write_textcaps(folder):
    for published, first, count in (("train", 0, IMAGES), ("val", IMAGES, 3)):
        rows = textcaps_rows(published, first, count)
        write(folder / f"TextCaps_0.1_{published}.json", json.dumps({"dataset_name": "textcaps", "data": rows}))
        french = {str(row["caption_id"]): f"Panneau {row['caption_id']}." for row in rows if row["caption_id"] % 2}
        write(folder / f"TextCaps_0.1_{published}_fr.json", json.dumps(french))
    for number in range(IMAGES + 3):
        write(folder / f"train_images/{number:016x}.jpg", png())


def write_audiocaps(folder):
    header = "audiocap_id,youtube_id,start_time,caption"
    for published in ("train", "val", "test"):
        clips = [f"{published}{clip}" for clip in ("-a_B", "cd", "ef", "gh")]
        rows = [f'{n}{part},{clip},{30 * n},"{clip}, then {part}"' for n, clip in enumerate(clips) for part in range(2)]
        write(folder / f"{published}.csv", "\n".join([header, *rows, "", f'99,{published}ij,0," "']) + "\n")
        for name in (f"{published}-a_B_0.wav", "11.wav", f"{published}ij.WAV", "notes.txt"):
            write(folder / published / name, sound())
        write(folder / published / f"{published}ef.ogg", ogg())


def write_clotho(folder):
    for published in ("development", "validation", "evaluation"):
        rows = [f"rain {n}.wav," + ",".join(f'"Rain {n}, {part}"' for part in (1, 2, 3, 4, 4)) for n in range(3)]
        lines = ["file_name,caption_1,caption_2,caption_3,caption_4,caption_5", *rows]
        write(folder / f"clotho_captions_{published}.csv", "\n".join(lines) + "\n")
        for n in range(3):
            write(folder / published / f"rain {n}.wav", sound())
