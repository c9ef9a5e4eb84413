"""What a core install can do: `python core_child.py HIDDEN FOLDER` prints a JSON object.

HIDDEN is a JSON list of modules that are not found, as if their distributions were not installed.
"""

import contextlib
import importlib
import io
import json
import pkgutil
import re
import shutil
import sys
from pathlib import Path

TESTS = Path(__file__).parent
EXAMPLE = re.findall(r"```python\n(.*?)```", (TESTS.parent / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]


class Hiding:
    """A finder that does not find some modules."""

    def __init__(self, finder, hidden):
        self._finder, self._hidden = finder, hidden

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in self._hidden else self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


def hide(hidden):
    sys.meta_path[:] = [Hiding(finder, frozenset(hidden)) for finder in sys.meta_path]


def said(action):
    """What an action raises, with its kind."""
    try:
        action()
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def imports():
    """What each module of the library raises when it is imported, if anything."""
    import mcl_jax

    names = [module.name for module in pkgutil.walk_packages(mcl_jax.__path__, "mcl_jax.")]
    found = {name: said(lambda name=name: importlib.import_module(name)) for name in names}
    return {name: error for name, error in found.items() if error != "nothing"}


def readme():
    names = {}
    exec(EXAMPLE, names)
    return [int(names["state"].step), len(names["metrics"]["win_rate"])]


def uses(folder):
    """What each use of a library outside the core says."""
    import numpy as np

    import mcl_jax as mcl

    golden, load = TESTS / "golden", mcl.models.from_pretrained
    with_tokenizer = shutil.copytree(golden / "models" / "llama", folder / "llama")
    (with_tokenizer / "tokenizer.json").write_text("{}")
    (folder / "model.gguf").write_bytes(b"GGUF")
    encoded = mcl.data.encode_records([mcl.data.Record("1", "ab", (mcl.data.Target("cd"),))], Letters(), max_length=17)
    config = mcl.data.BatchConfig(batch_size=1, lengths=(17,))
    return {
        "tokenizer": said(lambda: load(with_tokenizer)),
        "gguf": said(lambda: load(folder / "model.gguf")),
        "gguf tokenizer": said(lambda: mcl.models.gguf_tokenizer.build(folder, {"tokenizer.ggml.tokens": ["a"]})),
        "llava": said(lambda: load(golden / "llava" / "llama")),
        "smolvlm": said(lambda: load(golden / "smolvlm" / "smolvlm")),
        "qwen2_audio": said(lambda: load(golden / "qwen2_audio" / "grouped")),
        "picture": said(mcl.data.Picture("a.png", bytes).read),
        "clip": said(mcl.data.Clip("a.wav", bytes).read),
        "flac": said(lambda: mcl.data.clips.encode_flac(np.zeros(7, np.float32))),
        "batches": said(lambda: mcl.data.train_batches(encoded, config)),
        "bleu": said(lambda: mcl.metrics.oracle_bleu([["a"]], [["a"]])),
        "words": said(lambda: mcl.metrics.Tokenization()),
        "encoder": said(lambda: mcl.metrics.SentenceEncoder.load(folder)),
        "purity": said(lambda: mcl.metrics.purity([0, 1, 1], ["a", "b", "b"], 2)),
    }


class Letters:
    """A tokenizer."""

    eos_token_id = 0

    def encode(self, text):
        return [ord(letter) for letter in text]


def run(folder):
    """What a run of two trainings prints, and leaves behind."""
    import mcl_jax as mcl

    with contextlib.redirect_stdout(io.StringIO()) as out, mcl.run.Run(folder, {"seed": 3}) as run:
        for step, tag in ((1, "a"), (1, "b"), (2, "a")):
            run.log(step, {"loss": 0.5}, tag=tag)
        run.rewind("a", 1)
        run.log(2, {"loss": 0.25}, tag="a")
        run.finish({"loss": 0.25})
    return [out.getvalue(), sorted(path.name for path in folder.iterdir()), [line["loss"] for line in run.lines("a")]]


if __name__ == "__main__":
    hide(json.loads(sys.argv[1]))
    folder = Path(sys.argv[2])
    print(json.dumps({"imports": imports(), "readme": readme(), "uses": uses(folder), "run": run(folder / "run")}))
