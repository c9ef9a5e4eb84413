"""The core install: what it can do, and how a missing library is named."""

import configparser
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mcl_jax as mcl
from mcl_jax.extras import NO_TORCH, MissingExtra, needed_for, tell_without_traceback

ROOT = Path(__file__).parents[1]
CORE = {"jax", "flax", "optax", "orbax-checkpoint", "chex", "jaxtyping", "numpy", "safetensors"}
OPTIONAL = {"coco", "docs", "test", "wandb"}  # extras that running everything does without


def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def listed(text):
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def names(lines):
    return {canonicalize_name(Requirement(line).name) for line in lines}


def brought_by(name, extras=frozenset(), found=None):
    """Names of a distribution and of all that is installed with it, as (name, extras)."""
    found = set() if found is None else found
    if (name, extras) not in found:
        found.add((name, extras))
        for line in importlib.metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                brought_by(canonicalize_name(needed.name), frozenset(needed.extras), found)
    return found


def outside_core():
    """Top-level modules that are installed here, and that a core install lacks."""
    core = {"mcl-jax"}
    for name in names(listed(setup_cfg()["options"]["install_requires"])):
        core |= {brought for brought, _ in brought_by(name)}
    modules = importlib.metadata.packages_distributions()
    hidden = {module for module, by in modules.items() if not core & set(map(canonicalize_name, by))}
    return sorted(hidden - {"mcl_jax", "experiments"})


def in_core_install(*arguments):
    """A process that finds no module outside the core."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)


def needs(what, module, extra):
    return f"{what} needs the Python module {module}, which is not installed; run: pip install 'mcl_jax[{extra}]'"


def missing(*sentence):
    return f"MissingExtra: {needs(*sentence)}"


def test_the_core_needs_no_more_than_it_says():
    assert names(listed(setup_cfg()["options"]["install_requires"])) <= CORE
    hidden = outside_core()
    assert {"transformers", "PIL", "grain", "sacrebleu", "tensorboardX", "tyro", "matplotlib"} <= set(hidden)
    assert not {"jax", "flax", "rich", "scipy", "google"} & set(hidden)


def test_what_a_core_install_can_do(tmp_path):
    """All of the library is imported, README's first example runs, and every further use names its extra."""
    done = in_core_install(ROOT / "tests" / "core_child.py", json.dumps(outside_core()), tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    picture, clip = ("reading a picture", "PIL", "media"), ("reading a clip", "soundfile", "media")
    texts = missing("scoring texts", "sacrebleu", "metrics")
    assert told["imports"] == {
        "mcl_jax.answer.__main__": f"SystemExit: error: {needs('python -m mcl_jax.answer', 'tyro', 'text')}",
        "mcl_jax.data.pictures": missing(*picture),
        "mcl_jax.data.sound_files": missing(*clip),
        "mcl_jax.metrics.__main__": f"SystemExit: error: {needs('python -m mcl_jax.metrics', 'tyro', 'metrics')}",
    }
    assert told["readme"] == [1, 5]
    assert told["uses"] == {
        "tokenizer": missing("reading a tokenizer", "transformers", "text"),
        "gguf": missing("reading a GGUF file", "gguf", "text"),
        "gguf tokenizer": missing("reading the tokenizer of a GGUF file", "transformers", "text"),
        "llava": missing("the processor of LLaVA-NeXT", "PIL", "text,media"),
        "smolvlm": missing("the processor of SmolVLM", "PIL", "text,media"),
        "qwen2_audio": missing("the processor of Qwen2-Audio", "transformers", "text"),
        "picture": missing(*picture),
        "clip": missing(*clip),
        "flac": missing("writing a clip", "soundfile", "media"),
        "batches": missing("making batches", "grain", "data"),
        "bleu": texts,
        "words": texts,
        "encoder": missing("a sentence encoder", "tokenizers", "metrics"),
        "purity": "nothing",
    }
    printed, left, losses = told["run"]
    events = needs("writing TensorBoard events", "tensorboardX", "tensorboard")
    assert printed == f"{events}. The run goes on and writes everything else.\n"
    assert left == ["config.json", "metrics.jsonl", "results.json"] and losses == [0.5, 0.25]


def test_transformers_may_warn_but_not_that_pytorch_is_missing():
    """Whichever command imports it first; the filter is set by `mcl_jax.extras`, which they all import before it."""
    source = Path(importlib.util.find_spec("transformers").origin).read_text(encoding="utf-8")
    (warning,) = re.findall(rf'"({NO_TORCH}[^"]*)"', source)
    shown = lambda text: logging.getLogger("transformers").filter(
        logging.LogRecord("transformers", logging.WARNING, "", 0, text, (), None)
    )
    assert not shown(warning) and shown("another warning")


def test_an_experiment_that_lacks_a_library_says_so_in_a_line():
    program = (
        f"import core_child, runpy; core_child.hide({outside_core()!r}); "
        "runpy.run_module('experiments.markov', run_name='__main__')"
    )
    done = in_core_install("-c", program)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"error: {needs('running an experiment', 'tyro', 'experiments')}\n"


def test_requirements_list_the_core_and_all_extras():
    config = setup_cfg()
    lines = set(listed(config["options"]["install_requires"]))
    for extra, needed in config["options.extras_require"].items():
        if extra not in OPTIONAL:
            lines |= set(listed(needed))
    of_extras = {line for line in lines if line.startswith("mcl_jax[")}
    assert set(listed((ROOT / "requirements.txt").read_text())) == lines - of_extras
    extras = {extra for line in of_extras for extra in Requirement(line).extras}
    assert extras == set(config["options.extras_require"]) - OPTIONAL - {"experiments"}


def test_the_distribution_is_the_library_alone():
    config = setup_cfg()
    assert listed(config["options.packages.find"]["include"]) == ["mcl_jax*"]
    assert dict(config["options.package_data"]) == {"mcl_jax": "py.typed"}


@pytest.mark.slow
def test_the_wheel_holds_the_library_only(tmp_path):
    for name in ("mcl_jax", "experiments", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "requirements.txt", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", "."]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=600)
    (wheel,) = (tmp_path / "dist").iterdir()
    held = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in held} == {
        "mcl_jax",
        wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info",
    }
    assert "mcl_jax/py.typed" in held
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "mcl_jax").rglob("*.py")}
    assert {name for name in held if name.endswith(".py")} == sources


def test_what_is_loaded_when_it_is_used():
    assert mcl.data.__name__ == "mcl_jax.data" and mcl.run.Run.__name__ == "Run"
    assert {"checkpoint", "data", "metrics", "run"} <= set(dir(mcl))
    assert all(hasattr(mcl, name) for name in dir(mcl))
    with pytest.raises(AttributeError, match="module 'mcl_jax' has no attribute 'datas'"):
        mcl.datas  # noqa: B018


def test_other_errors_are_left_alone():
    with (
        pytest.raises(MissingExtra, match=re.escape(needs("this", "no_such_module", "text,data"))),
        needed_for("this", "text", "data"),
    ):
        import no_such_module  # noqa: F401
    with pytest.raises(ImportError, match="cannot import name 'nothing'") as found, needed_for("this", "text"):
        from json import nothing  # noqa: F401
    assert not isinstance(found.value, MissingExtra)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ModuleNotFoundError("No module named 'tfds'", name="tfds"), needs("this", "tfds", "data")),
        (MissingExtra("that needs PIL"), "that needs PIL"),
        (ModuleNotFoundError("No module named 'mcl_jax.no'", name="mcl_jax.no"), None),
        (ImportError("cannot import name 'nothing'", name="json"), None),
        (ValueError("wrong"), None),
    ],
)
def test_a_command_ends_without_traceback_for_missing_libraries_only(monkeypatch, capsys, error, line):
    shown = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, traceback: shown.append(error))
    tell_without_traceback("this", "data")
    sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err == ("" if line is None else f"error: {line}\n")
    assert shown == ([error] if line is None else [])
