"""What a newcomer gets wrong about data and base is said in a line, before anything long is done."""

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_media import png, write, write_lines
from tiny_paligemma import with_processor

from experiments.audio_captioning import __main__ as audio_captioning
from experiments.audio_captioning import config as audio
from experiments.common.captioning import task
from experiments.image_captioning import __main__ as image_captioning
from experiments.image_captioning import config as image
from experiments.image_captioning.images import Pictures
from mcl_jax.command_line import errors_in_a_line

GOLDEN = Path(__file__).parents[1] / "golden"
LLAMA, LLAVA, QWEN = GOLDEN / "models" / "llama", GOLDEN / "llava", GOLDEN / "qwen2_audio" / "grouped"


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """refused(options, experiment) -> the line that the command ends with; no weights are read, no base trained."""
    for name in ("mcl_jax.models.from_pretrained", "experiments.common.captioning.task.small_base"):
        monkeypatch.setattr(name, lambda *of, name=name, **options: pytest.fail(f"{name} was called"))

    def line(*options, experiment=image):
        main = {image: image_captioning.main, audio: audio_captioning.main}[experiment]
        args = ["--workdir", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"), *map(str, options)]
        with pytest.raises(SystemExit, match=r"^error: [^\n]*$") as error, errors_in_a_line():
            main(experiment.parse(args))
        return str(error.value)

    return line


@pytest.fixture
def folder(tmp_path):
    """Seven pictures, five of them to train on, and a broken one."""
    for n in range(7):
        write(tmp_path / "mine" / f"{n}.png", png())
    write(tmp_path / "mine" / "broken.png", b"no picture")
    split = {3: "validation", 4: "test"}
    lines = [{"file": f"{n}.png", "caption": "a cat", "mode": "en", "split": split.get(n, "train")} for n in range(7)]
    write_lines(tmp_path / "mine" / "captions.jsonl", *lines, {"file": "broken.png", "caption": "a dog"})
    return tmp_path / "mine"


@pytest.mark.parametrize("base", [LLAMA, LLAVA / "mistral", QWEN], ids=["text", "no-processor", "hears"])
def test_a_base_that_does_not_see_is_refused_before_the_data_is_read(base, refused):
    needed = "has no processor for pictures; use a LLaVA-1.6, a SmolVLM or a PaliGemma for pictures"
    assert f"--base {base} {needed}" in refused("--base", base, "--data", "nowhere")


def test_a_base_that_does_not_hear_is_refused(refused):
    assert "has no processor for clips" in refused("--base", LLAVA / "llama", "--data", "nowhere", experiment=audio)


def test_a_base_that_is_not_there_is_refused(refused, tmp_path):
    assert "nowhere must be a Hugging Face folder" in refused("--base", tmp_path / "nowhere", "--data", "nowhere")


def test_a_folder_smaller_than_a_batch_is_refused(refused, folder):
    assert f"--data {folder} has only 5 training records, fewer than --batch-size 6" in refused(
        "--data", folder, "--batch-size", 6
    )


def test_a_batch_of_answers_may_be_larger_than_the_number_of_records(refused, folder):
    split = {3: "validation", 4: "test"}
    line = lambda n, caption: {"file": f"{n}.png", "caption": caption, "split": split.get(n, "train")}
    write_lines(folder / "captions.jsonl", *[line(n, caption) for n in range(7) for caption in ("a cat", "a pet")])
    given = ("--data", folder, "--examples", "answers", "--batch-size")
    assert f"--data {folder} has only 10 training answers, fewer than --batch-size 11" in refused(*given, 11)
    with pytest.raises(pytest.fail.Exception, match="small_base was called"):
        refused(*given, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "captions.jsonl").unlink(),
            "captions.jsonl must hold JSON lines with file, caption, but there is no such file",
        ),
        (
            lambda f: (f / "5.png").rename(f / "05.png"),
            "line 6: file '5.png' is not in the folder; did you mean '05.png'",
        ),
        (
            lambda f: [write(f / f"{n}.png", b"") for n in range(7)],
            "no records; left out the image cannot be read",
        ),
    ],
    ids=["no-captions", "misspelt", "all-broken"],
)
def test_a_folder_that_cannot_be_read_is_refused(change, message, refused, folder):
    change(folder)
    line = refused("--data", folder, "--batch-size", 3)
    assert message in line and "object at" not in line


def test_a_misspelt_mode_is_refused(refused, folder):
    assert "corpus 'mine': a mode must be one of ['en'], got 'fx'" in refused("--data", folder, "--modes", "en", "fx")


def test_modes_of_captions_that_name_none_are_refused(refused, tmp_path):
    write(tmp_path / "mine" / "0.png", png())
    write_lines(tmp_path / "mine" / "captions.jsonl", {"file": "0.png", "caption": "a cat"})
    assert "must name the modes en, fr, got no modes" in refused("--data", tmp_path / "mine", "--modes", "en", "fr")


@pytest.mark.parametrize(("prompt", "found"), [("What is this?", 0), ("<image>, <image>", 2)])
def test_a_prompt_without_one_placeholder_is_refused_before_a_small_base_is_trained(prompt, found, refused):
    assert f"the placeholder of the small base, once, but contains it {found} times: {prompt!r}" in refused(
        "--prompt", prompt
    )


def test_a_chat_without_a_base_that_has_a_template_is_refused_before_the_data_is_read(refused, tmp_path):
    assert "--chat needs a --base with a chat template, which the small" in refused("--chat", "--data", "nowhere")
    pali = with_processor(GOLDEN / "paligemma" / "gemma2", tmp_path / "pali")
    for base, experiment in ((LLAVA / "llama", image), (pali, image), (GOLDEN / "whisper" / "tiny", audio)):
        line = refused("--chat", "--base", base, "--data", "nowhere", experiment=experiment)
        assert f"a prompt as a chat needs chat_template in {base / 'tokenizer_config.json'} or the file {base}" in line


def test_a_misspelt_data_set_is_refused(refused):
    assert "got 'stamps/picturs'; did you mean 'stamps/pictures'?" in refused("--data", "stamps/picturs")


def test_after_a_mistake_the_same_workdir_will_do(refused, folder):
    refused("--data", "nowhere")
    assert "fewer than" in refused("--data", folder)


@pytest.fixture
def unread(monkeypatch):
    """No picture or clip may be read."""
    monkeypatch.setattr("mcl_jax.data.media.Media.read", lambda media: pytest.fail(f"{media.name} was read"))


def other_splits(folder, **names):
    """Rewrites captions.jsonl with other splits."""
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()[:7]]
    write_lines(folder / "captions.jsonl", *(line | {"split": names[line["split"]]} for line in lines))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            dict(train="test", validation="validation", test="test"),
            "has only 0 training records, fewer than --batch-size 3",
        ),
        (
            dict(train="validation", validation="train", test="train"),
            "has only 1 training records (and 1 for test), fewer than --batch-size 3",
        ),
    ],
)
def test_splits_that_lack_are_refused_before_a_picture_is_read(refused, folder, unread, names, message):
    other_splits(folder, **names)
    assert f"--data {folder} {message}" in refused("--data", folder, "--batch-size", 3)


def test_what_is_taken_for_validation_is_not_trained_on(refused, folder, unread):
    other_splits(folder, train="train", validation="train", test="test")
    line = refused("--data", folder, "--batch-size", 6)
    assert "has only 5 training records (and 1 for validation), fewer than --batch-size 6" in line


def test_clips_are_no_pictures_and_that_is_known_by_their_names(refused, folder, unread):
    assert f"--data {folder} must have clips, but has pictures" in refused("--data", folder, experiment=audio)


def test_a_mode_that_is_misspelt_is_known_from_the_captions(refused, folder, unread):
    assert "a mode must be one of ['en'], got 'fx'" in refused("--data", folder, "--modes", "fx")


def test_a_missing_validation_split_is_taken_from_training_for_run_and_small_base(
    folder, monkeypatch, tmp_path, capsys
):
    other_splits(folder, train="train", validation="train", test="test")
    given = {}

    def small_base(path, settings, modality, corpus):
        given["corpus"] = corpus
        raise ValueError("reached")

    monkeypatch.setattr(task, "small_base", small_base)
    args = ["--workdir", str(tmp_path / "run"), "--cache", str(tmp_path), "--data", str(folder), "--batch-size", "5"]
    for _ in range(2):
        with pytest.raises(ValueError, match="reached"):
            task.load(image.parse(args), Pictures())
        assert given["corpus"].counts() == {"train": 5, "validation": 1, "test": 1}
        line = "The corpus 'mine' has no validation split. 1 of its 6 training records are used for it, the same ones"
        assert line in capsys.readouterr().out
    held_out = {given["corpus"].split("validation")[0].id}
    with pytest.raises(ValueError, match="reached"):  # those of the run, whatever the small base would take
        task._small(image.parse(args), Pictures(), {"0.png", "5.png"})
    assert {r.id for r in given["corpus"].split("validation")} == {"0.png", "5.png"} != held_out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--base", LLAVA / "llama", "--targets", "q_prj"), "'q_prj' matches no linear layer"),
        (("--base", LLAVA / "llama", "--prompt", "What is this?"), "<image>"),
        (("--base", LLAVA / "llama", "--corenlp", "nowhere"), "SPICE needs stanford-corenlp-3.6.0.jar"),
        (("--prompt", os.fsdecode(b"<image>\xff")), "--prompt must be Unicode, got half a character"),
    ],
)
def test_options_that_cannot_be_are_refused_before_the_data_is_read(refused, options, message):
    assert message in refused(*options, "--data", "nowhere")


def test_targets_that_cannot_be_are_refused_before_a_small_base_is_trained(refused, folder):
    assert "'q_prj' matches no linear layer" in refused("--data", folder, "--batch-size", 5, "--targets", "q_prj")


def test_a_base_without_its_weights_is_refused_before_the_data_is_read(refused, tmp_path):
    base = shutil.copytree(LLAVA / "llama", tmp_path / "base")
    for path in base.glob("*.safetensors"):
        path.unlink()
    assert "there is no weight file" in refused("--base", base, "--data", "nowhere")
