"""The page of a run, read as a browser reads it: what it shows, and that no text becomes a tag."""

import base64
import io
import re
from html.parser import HTMLParser

import made_up_run as made_up
import pytest
import soundfile
from PIL import Image

from experiments.common import page
from mcl_jax.run import Run

VOID = {"meta", "link", "img"}
URIS = {"src", "href", "srcset", "action", "poster", "data"}
*SAMPLES, METHODS, HYPOTHESES = range(1, 12 + 3)  # tables, after that of the settings


class Parsed(HTMLParser):
    """Tags with their attributes, texts, and tables as rows of cells; raises if tags do not match."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.tables, self._open, self.texts = [], [], [], []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        match tag:
            case "table":
                self.tables.append([])
            case "tr":
                self.tables[-1].append([])
            case "td" | "th":
                self.tables[-1][-1].append("")
            case "small":
                self.handle_data(" | ")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_up.run(tmp_path_factory.mktemp("somewhere") / "a <run>")


@pytest.fixture(scope="module")
def html(run):
    path = page.write(run, made_up.results(), made_up.records(), made_up.COLUMNS)
    assert path == run.workdir / "page.html"
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def parsed(html):
    return Parsed(html)


def read(uri):
    kind, _, encoded = uri.partition(";base64,")
    return kind, io.BytesIO(base64.b64decode(encoded, validate=True))


def test_no_text_becomes_a_tag(parsed):
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "b", "s", "fr", "run"}
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    text = "".join(parsed.texts)
    assert all(trap in text for trap in made_up.TRAPS)


def test_nothing_is_fetched(parsed, html):
    uris = [uri for _, attributes in parsed.tags for name, uri in attributes.items() if name in URIS]
    inside = [uri for uri in uris if uri.startswith("#")]
    assert inside == ["#methods"] and [tag["id"] for tag in parsed.all("section") if "id" in tag] == ["methods"]
    assert len(uris) == 1 + 2 + 2 + 1  # icon, figures, samples
    assert all(uri.startswith("data:") for uri in uris if uri not in inside)
    assert "url(" not in html and "@import" not in html
    assert not re.search(r"https?://", html)
    policy = parsed.all("meta")[1]["content"]
    assert policy.startswith("default-src 'none';") and "script-src" not in policy and "http" not in policy


def test_settings_are_shown_by_option_and_name_no_folder_of_the_machine(tmp_path):
    config = {
        "base": {"path": "/somewhere/else/llava-7b", "dtype": "float32"},
        "objective": {"name": "wta", "rate": 0.3},
    }
    html = page.write(Run(tmp_path, config), made_up.results()).read_text()
    settings = Parsed(html).tables[0]
    assert settings == [["base", "llava-7b"], ["dtype", "float32"], ["objective", "wta"], ["rate", "0.3"]]
    assert "/somewhere" not in html


def test_methods_and_settings(parsed, run):
    settings, methods = parsed.tables[0], parsed.tables[METHODS]
    assert settings == [["base", "llava-7b"], ["num_hypotheses", "3"], ["prompt", "<s>{source}"], ["alpha", "None"]]
    assert methods == [
        ["", "test loss", "above <MCL>", "CIDEr-D", "SPICE", "win rate"],
        ["LoRA-MCL", "1.250", "", "0.500 | 0.250 to 0.750", "", "0.50 0.25 0.25"],
        ["LoRA-MLE, rank r·K | beam", "1.500", "0.250 | 0.125 to 0.375", "", "", "1.00"],
        ["LoRA-MoE | tta", "2.000", "", "", "n/a", ""],
    ]
    text = "".join(parsed.texts)
    assert "SPICE is not available: no <Java>" in text
    assert text.count("a <run>") == 2  # title and heading
    assert str(run.workdir.parent) not in text and "/somewhere" not in text


def test_win_matrix_is_shaded_by_the_share_of_a_mode(parsed):
    assert parsed.tables[HYPOTHESES] == [
        ["mode", "hypothesis 0", "hypothesis 1", "hypothesis 2"],
        ["<fr>", "0.25 | 1", "0.00 | 0", "0.75 | 3"],
        ["en", "0.57 | 4", "0.43 | 3", "0.00 | 0"],
    ]
    shades = [attributes["style"] for attributes in parsed.all("td") if "style" in attributes]
    assert shades == [f"--share: {share}" for share in ("0.250", "0.000", "0.750", "0.571", "0.429", "0.000")]


def test_samples_show_every_answer_with_its_likelihood(parsed):
    assert len(parsed.all("article")) == len(SAMPLES) == len(parsed.tables) - 3
    text = "".join(parsed.texts)
    for sample, number in zip(made_up.results()["methods"]["mcl"]["samples"][::2], SAMPLES, strict=True):
        header, *rows = parsed.tables[number]
        assert header == ["", *(f"answer {k}" for k in range(5))]
        assert [row[0] for row in rows] == ["LoRA-MCL", "LoRA-MLE, rank r·K | beam", "LoRA-MoE | tta"]
        for row, (name, answers) in zip(rows, sample["answers"].items(), strict=True):
            said = [f"{text} | {p:.3f}" for text, p in zip(answers, sample["log_likelihoods"][name], strict=True)]
            assert row[1:] == [*said, *[""] * (len(said) < 5)]
        named, unnamed = sample["references"]
        assert f"{named['mode']} {named['text']}" in text and f"\n{unnamed['text']}\n" in text
        assert f"\n{sample['id']}\n" in text and f"\n{sample['source']}\n" in text
    assert "\nid 1\n" not in text  # twelve of 23, evenly spread


def test_pictures_and_clips_are_in_the_page(parsed, run):
    order = [tag for tag, _ in parsed.tags if tag in {"article", "img", "audio"}]
    assert order == ["article", "img", "article", "audio", *["article"] * (len(SAMPLES) - 2), "img", "img"]
    picture, loss, other = parsed.all("img")
    assert loss["alt"] == "Held-out loss and purity over the training steps" and other["alt"] == "something else"
    kind, file = read(loss["src"])
    assert kind == "data:image/png" and file.read() == (run.workdir / "figures" / "loss.png").read_bytes()
    kind, file = read(picture["src"])
    assert kind == "data:image/jpeg" and picture["alt"] == made_up.NAMES[0]
    with Image.open(file) as image:
        assert (image.format, image.size) == ("JPEG", (made_up.WIDTH, made_up.HEIGHT))
    (clip,) = parsed.all("audio")
    kind, file = read(clip["src"])
    assert kind == "data:audio/flac" and clip["aria-label"] == made_up.NAMES[1] and "controls" in clip
    assert soundfile.info(file).duration == pytest.approx(made_up.SECONDS)


def test_a_file_that_cannot_be_read_says_why(parsed):
    errors = [text for text in parsed.texts if text.startswith(made_up.NAMES[2:])]
    assert len(errors) == 2
    assert errors[0].startswith("broken.png: the image cannot be read: ")
    assert errors[1] == "missing.flac: no such file"
    places = [parsed.texts.index(text) for text in ("id 4", errors[0], "id 6", errors[1], "id 8")]
    assert places == sorted(places)


def test_a_page_of_text_alone(tmp_path):
    results = made_up.results()
    for name in ("win_matrix", "modes"):
        del results["methods"]["mcl"][name]
    made = made_up.run(tmp_path / "run")
    for figure in (made.workdir / "figures").iterdir():
        figure.unlink()
    parsed = Parsed(page.write(made, results).read_text("utf-8"))
    assert not parsed.all("img") and not parsed.all("audio")
    assert "Curves" not in parsed.texts and "Which hypothesis wins which mode" not in parsed.texts
    assert parsed.tables[METHODS][0] == ["", "test loss", "purity", "win rate"]
    assert len(parsed.tables) == 2 + len(SAMPLES)


def test_answers_without_likelihoods_have_no_number(tmp_path):
    results = made_up.results()
    for sample in results["methods"]["mcl"]["samples"]:
        sample["log_likelihoods"]["moe/tta"] = [None, None]
    parsed = Parsed(page.write(made_up.run(tmp_path / "run"), results).read_text("utf-8"))
    answers = results["methods"]["mcl"]["samples"][0]["answers"]["moe/tta"]
    assert parsed.tables[SAMPLES[0]][3] == ["LoRA-MoE | tta", *answers, ""]


def test_half_an_emoji_costs_no_page(tmp_path):
    results = made_up.results()
    results["methods"]["mcl"]["samples"][0]["references"][0]["text"] = "half \ud83d of it"
    texts = Parsed(page.write(made_up.run(tmp_path / "run"), results).read_text("utf-8")).texts
    assert "half \\ud83d of it" in texts


def test_metrics_without_interval_and_without_value(tmp_path):
    results = made_up.results()
    results["methods"]["mcl"] |= {"intervals": {}, "purity": None, "not_available": {"purity": "one mode, '<fr>'"}}
    parsed = Parsed(page.write(made_up.run(tmp_path / "run"), results).read_text("utf-8"))
    assert parsed.tables[METHODS][1][:3] == ["LoRA-MCL", "1.250", "n/a"]
    assert "purity is not available: one mode, '<fr>'" in parsed.texts
