"""A data set that is made once knows what it was made of: it is made again when those files change."""

import json
import os
import subprocess
import sys
import threading

import fake_stamps
import fake_sword
import pytest
from published_files import write_audiocaps, write_clotho, write_textcaps
from tiny_media import png, sound, write

from experiments.datasets import load_captions, load_corpus, load_verses, read_verses
from experiments.datasets.sources import made_of, only_one_process
from mcl_jax.data import read_captions


def test_wrong_names_put_right_make_the_data_set_again(tmp_path, capsys):
    files = tmp_path / "files"
    write_audiocaps(files)
    names = sorted(path.name for path in (files / "val").iterdir())
    for name in names:
        (files / "val" / name).rename(files / "val" / f"x{name}")
    with pytest.raises(ValueError, match=r"val\.csv has no usable captions, .* in .*/val, which has x11\.wav"):
        load_captions("audiocaps", tmp_path, files)
    assert not list(tmp_path.glob("audiocaps/**/*.array_record*"))  # no data set without its validation split
    (files / "val/xval-a_B_0.wav").rename(files / "val/val-a_B_0.wav")
    assert load_captions("audiocaps", tmp_path, files).counts()["validation"] == 1
    for path in (files / "val").glob("x*"):
        path.rename(path.with_name(path.name[1:]))
    capsys.readouterr()
    corpus = load_captions("audiocaps", tmp_path, files)
    assert corpus.counts()["validation"] == 3
    assert f"files in {files}; making it again from the files in {files}" in capsys.readouterr().out
    assert load_captions("audiocaps", tmp_path, files) == corpus
    line = capsys.readouterr().out
    assert "making" not in line and "corpus 'audiocaps': left out 6, kept 9; no clip in train/: traingh_90; " in line


@pytest.mark.parametrize(
    ("pattern", "content", "message"),
    [
        ("dataset_info.json", b"\xff", "description .* made of .*files cannot be read .*: move dataset_info.json"),
        ("dataset_info.json", b"{}", "description .* cannot be read"),
        ("dataset_info.json", b"{", "description .* cannot be read"),
        ("metadata.json", b"{", "description .* cannot be read"),
        ("*train.array_record*", b"", r"data set in .*clotho.* is damaged .*: move that folder away"),
        ("*test.array_record*", None, "data set in .* is damaged"),
    ],
)
def test_a_data_set_that_is_damaged_is_named(tmp_path, pattern, content, message):
    write_clotho(tmp_path / "files")
    load_captions("clotho", tmp_path, tmp_path / "files")
    (file,) = tmp_path.glob(f"clotho/**/{pattern}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
    with pytest.raises(ValueError, match=message) as caught:
        load_captions("clotho", tmp_path, tmp_path / "files")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["size", "time", "more", "caption"])
def test_names_sizes_and_times_count(tmp_path, change):
    files = tmp_path / "files"
    write_clotho(files)
    before = load_captions("clotho", tmp_path, files)
    file = files / "evaluation/rain 1.wav"
    if change == "size":
        write(file, sound(kind="WAV", subtype="PCM_16"))
    elif change == "time":
        os.utime(file, ns=(1, 1))
    elif change == "more":
        write(files / "evaluation/snow.wav", sound())
    else:
        captions = files / "clotho_captions_evaluation.csv"
        captions.write_text(captions.read_text().replace("Rain 1, 2", "Hail"))
    corpus = load_captions("clotho", tmp_path, files)
    assert corpus.made_of != before.made_of and corpus.made_of == load_captions("clotho", tmp_path, files).made_of
    assert (corpus == before) == (change != "caption")


MAKE_IT = """
import sys, time
from experiments.datasets import load_captions
from experiments.datasets import sources
inside = sources.set_aside
def slowly(folder):
    print("inside", flush=True)
    time.sleep(1.5)
    return inside(folder)
sources.set_aside = slowly
print(load_captions("clotho", sys.argv[1], sys.argv[2]).counts())
"""


def test_two_processes_make_a_stale_data_set_once(tmp_path):
    files = tmp_path / "files"
    write_clotho(files)
    load_captions("clotho", tmp_path, files)
    os.utime(files / "evaluation/rain 1.wav", ns=(1, 1))  # now it is stale
    command = [sys.executable, "-c", MAKE_IT, str(tmp_path), str(files)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    printed = [out for out, _ in outs]
    assert sum("inside" in out for out in printed) == 1, printed
    assert len({out.strip().splitlines()[-1] for out in printed}) == 1
    assert not list(tmp_path.glob("clotho/**/*.before")) and not list(tmp_path.glob("clotho/**/lock"))


def test_a_process_waits_for_the_one_that_prepares(tmp_path, capsys):
    entered, leave, order = threading.Event(), threading.Event(), []

    def first():
        with only_one_process(tmp_path / "made", "to prepare it"):
            entered.set()
            leave.wait()
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    threading.Timer(0.2, leave.set).start()
    with only_one_process(tmp_path / "made", "to prepare it", poll=0.01):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    line = capsys.readouterr().out.replace("\n", " ")
    assert f"Waiting to prepare it: {tmp_path}" in line and f"is in use by process {os.getpid()}" in line


def test_what_was_made_stays_if_it_cannot_be_made_again(tmp_path, capsys):
    files = tmp_path / "files"
    write_textcaps(files)
    corpus = load_captions("textcaps/english", tmp_path, files)
    (files / "TextCaps_0.1_val.json").rename(files / "val.json")
    with pytest.raises(FileNotFoundError, match=r"no TextCaps_0\.1_val\.json in"):
        load_captions("textcaps/english", tmp_path, files)
    (files / "val.json").rename(files / "TextCaps_0.1_val.json")
    assert load_captions("textcaps/english", tmp_path, files) == corpus
    assert corpus.split("test")[0].media.read().shape == (5, 7, 3)
    assert len(list(tmp_path.glob("textcaps/english/*"))) == 1
    capsys.readouterr()
    assert load_captions("textcaps/english", tmp_path) == corpus
    assert (
        f"no folder is given; using the data set that was made from 107 files in {files}\n" in capsys.readouterr().out
    )
    write(files / f"train_images/{5:016x}.jpg", png()[:50])
    assert load_captions("textcaps/english", tmp_path) == corpus
    assert "these have changed since then, so pass that folder to make it again" in capsys.readouterr().out
    assert load_captions("textcaps/english", tmp_path, tmp_path / "moved") == corpus
    assert f"there is no folder {tmp_path / 'moved'}; using the data set" in capsys.readouterr().out


def test_a_data_set_of_before_is_made_again(tmp_path):
    files = tmp_path / "files"
    fake_stamps.write_stamps(files)
    load_captions("stamps/sounds", tmp_path, files)
    (metadata,) = tmp_path.glob("stamps/sounds/*/metadata.json")
    metadata.write_text(json.dumps({"left_out": []}))
    assert load_captions("stamps/sounds", tmp_path, files).left_out
    assert json.loads(metadata.read_text())["sources"]["folder"] == str(files)


def test_other_stamps_are_other_data(tmp_path):
    for name in ("all", "few"):
        fake_stamps.write_stamps(tmp_path / name)
    for path in (tmp_path / "few/animals").glob("beast1*.png"):
        path.unlink()
    counts = [
        len(load_captions("stamps/pictures", tmp_path, tmp_path / name).records) for name in ("all", "few", "all")
    ]
    assert counts == [92, 82, 92]


def test_verses_of_other_modules_are_other_verses(tmp_path, monkeypatch, capsys):
    read = fake_sword.install(monkeypatch, chapters=60)
    folders = [tmp_path / "a", tmp_path / "b"]
    for number, folder in enumerate(folders):
        write(folder / "mods.d/engkjv.conf", "x" * number)
    assert read_verses(tmp_path, folders[0]) == read_verses(tmp_path, folders[0]) and len(read) == 3
    read_verses(tmp_path, folders[1])
    assert len(read) == 6
    first = load_verses("languages", tmp_path, folders[0])
    with_more = fake_sword.install(monkeypatch, chapters=70)
    again = load_verses("languages", tmp_path, folders[1])
    assert len(with_more) == 3 and len(again.records) == len(first.records) + 20
    capsys.readouterr()
    assert load_corpus("languages", tmp_path, folders[1]) == again and len(with_more) == 3
    out = capsys.readouterr().out
    assert "verses: kept 142; left out" in out and "(Rom 16)" in out and "making" not in out
    assert load_corpus("languages", tmp_path) == again
    assert (
        f"no folder is given; using the data set that was made from 1 files in {folders[1]}" in capsys.readouterr().out
    )


def test_a_cache_of_verses_that_is_damaged_is_read_anew(tmp_path, monkeypatch):
    read = fake_sword.install(monkeypatch)
    aligned = read_verses(tmp_path)
    (cache,) = tmp_path.glob("verses_*.json")
    for damage in ('{"verses": [', '{"verses": [{"book": "Matt"}]}', "[]"):
        cache.write_text(damage)
        assert read_verses(tmp_path) == aligned
    assert len(read) == 12


def test_a_folder_of_ones_own_is_known_by_its_files(tmp_path):
    write(tmp_path / "mine/A.PNG", png())
    write(tmp_path / "mine/captions.jsonl", json.dumps({"file": "A.PNG", "caption": "a cat"}))
    before = read_captions(tmp_path / "mine").made_of
    write(tmp_path / "mine/notes.txt", "nothing of the data")
    assert read_captions(tmp_path / "mine").made_of == before != ""
    os.utime(tmp_path / "mine/A.PNG", ns=(1, 1))
    assert read_captions(tmp_path / "mine").made_of != before
    assert made_of(tmp_path / "nowhere", ["**/*"])["files"] == 0


def test_what_will_not_do_is_refused_before_a_file_is_read(tmp_path, monkeypatch):
    files, listed = tmp_path / "files", []
    fake_stamps.write_stamps(files)
    with monkeypatch.context() as patch:
        patch.setattr("mcl_jax.data.media.Media.read", lambda media: pytest.fail(f"{media.name} was read"))

        def check(corpus):
            listed.append(corpus)
            raise ValueError("too few")

        with pytest.raises(ValueError, match="too few"):
            load_captions("stamps/pictures", tmp_path, files, modes=("fr", "es"), families=False, check=check)
        with pytest.raises(ValueError, match="a mode must be one of .* got 'xx'"):
            load_captions("stamps/pictures", tmp_path, files, modes=("xx",), check=check)
    (corpus,) = listed
    assert len(corpus.records) == 39 and corpus.modes == ("es", "fr")
    assert not list(tmp_path.glob("stamps/**/*.array_record*"))
    assert len(load_captions("stamps/pictures", tmp_path, files, check=listed.append).records) == len(listed[1].records)
