"""METEOR and SPICE, which exist as Java programs only, run from the jars that pycocoevalcap ships.

Java must be on the PATH. SPICE needs CoreNLP 3.6.0 besides, which pycocoevalcap downloads and we do not: a folder with
`stanford-corenlp-3.6.0.jar` and `stanford-corenlp-3.6.0-models.jar`. What is missing is said by a `JavaMetricError`.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mcl_jax.metrics.captioning import Captions, Counts

PACKAGE = "pycocoevalcap"
INSTALL = f"pip install --no-deps {PACKAGE}==1.2"
METEOR_JAR = "meteor/meteor-1.5.jar"
SPICE_JAR, SPICE_LIBRARIES, SPICE_CLASS = "spice/spice-1.0.jar", "spice/lib", "edu.anu.spice.SpiceScorer"
CORENLP_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")

# METEOR 1.5 for English: exact, stem, synonym and paraphrase matches; content and function words.
MATCH_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75


class JavaMetricError(ValueError):
    """Java, or a jar that a metric needs, is not here, or the program failed."""


# --- METEOR -----------------------------------------------------------------------------------------------------------


def meteor(captions: Captions) -> Counts:
    """METEOR 1.5 for English, 0 to 1, as pycocoevalcap calls it: what matches is counted by Java, the rest is

        F (1 − γ (chunks / matches)^β),   F = P R / (α P + (1 − α) R)

    with P and R of matches that are weighted by their kind, and content words more than function words. Loading its
    paraphrases takes Java 10 to 40 s. Source: Denkowski and Lavie (2014), "Meteor universal".

    Raises:
        JavaMetricError: a ValueError; says what is missing or what Java said.
    """
    lines = [
        " ||| ".join(["SCORE", *references, answer])
        for answers, references in zip(captions.answers, captions.references, strict=True)
        for answer in answers
    ]
    command = [_java(), "-Xmx2G", "-jar", str(_shipped(METEOR_JAR)), "-", "-", "-stdio", "-l", "en", "-norm"]
    replies = _run(command, stdin="\n".join(lines) + "\n").splitlines()
    try:
        counts = np.array([reply.split() for reply in replies], np.float64).reshape(len(lines), 23)
    except ValueError:
        raise JavaMetricError(f"METEOR must give 23 counts for {len(lines)} lines each, got {replies[:1]}") from None
    whole = (counts[:, 20] == 1.0) & (counts[:, 21:23] == counts[:, 0:2]).all(axis=1)
    counts[whole, 20] = 0.0
    ends = np.cumsum([len(answers) for answers in captions.answers])
    return Counts(np.split(counts, ends[:-1]), meteor_value)


def meteor_value(sums: np.ndarray) -> np.ndarray:
    """METEOR of counts [..., 23] as the jar writes them, in [...], but with no chunk for answers that match as a whole.

    They are the lengths of answer and reference and their function words, content and function words that match, of
    each in turn, for the four kinds of match, the number of chunks, and the words that match of each.
    """
    length, function = sums[..., 0:2], sums[..., 2:4]  # the last axis: answer, reference
    kinds = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # kind of match; content, function; answer, reference
    content_matches, function_matches = np.moveaxis(np.einsum("k,...kwt->...wt", MATCH_WEIGHTS, kinds), -2, 0)
    weight = lambda content, function: DELTA * content + (1.0 - DELTA) * function
    shares = _ratio(weight(content_matches, function_matches), weight(length - function, function))
    precision, recall = shares[..., 0], shares[..., 1]
    f_mean = _ratio(precision * recall, ALPHA * precision + (1.0 - ALPHA) * recall)

    return f_mean * (1.0 - GAMMA * _ratio(sums[..., 20], sums[..., 21:23].mean(axis=-1)) ** BETA)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0.0)


# --- SPICE ------------------------------------------------------------------------------------------------------------


def spice(captions: Captions, corenlp: str | Path | None) -> list[np.ndarray]:
    """SPICE of every answer: F1 of the facts in its scene graph and in the references', N vectors [K], 0 to 1.

    An answer without words scores 0, without asking Java. NaN where neither side states a fact, as in coco-caption.

    Args:
        captions: tokenized.
        corenlp: folder with the two jars of CoreNLP 3.6.0.

    Raises:
        JavaMetricError: a ValueError; says what is missing or what Java said.

    Source: Anderson et al. (2016), "SPICE: semantic propositional image caption evaluation".
    """
    classes = [*_corenlp(corenlp), _shipped(SPICE_JAR), _shipped(SPICE_LIBRARIES) / "*"]
    pairs = zip(captions.answers, captions.references, strict=True)
    asked = [
        {"image_id": f"{n} {k}", "test": answer, "refs": references}
        for n, (answers, references) in enumerate(pairs)
        for k, answer in enumerate(answers)
        if answer
    ]
    with tempfile.TemporaryDirectory() as folder:
        question, reply = Path(folder, "question.json"), Path(folder, "reply.json")
        question.write_text(json.dumps(asked))
        class_path = os.pathsep.join(map(str, classes))
        command = [_java(), "-Xmx8G", "-cp", class_path, SPICE_CLASS, str(question), "-out", str(reply)]
        _run([*command, "-subset", "-silent"])
        if not reply.is_file():
            raise JavaMetricError("SPICE ended without a result")
        found = {entry["image_id"]: float(entry["scores"]["All"]["f"]) for entry in json.loads(reply.read_text())}
    return [
        np.array([found[f"{n} {k}"] if answer else 0.0 for k, answer in enumerate(answers)])
        for n, answers in enumerate(captions.answers)
    ]


def check_spice(corenlp: str | Path) -> None:
    """Raises JavaMetricError for what `spice` would miss here: Java, a jar; runs nothing."""
    _corenlp(corenlp)
    _shipped(SPICE_JAR)
    _shipped(SPICE_LIBRARIES)
    _java()


def _corenlp(folder: str | Path | None) -> list[Path]:
    if folder is None:
        raise JavaMetricError(f"SPICE needs a folder with {' and '.join(CORENLP_JARS)}, and none is configured")
    jars = [Path(folder).absolute() / name for name in CORENLP_JARS]
    if missing := [jar.name for jar in jars if not jar.is_file()]:
        raise JavaMetricError(f"SPICE needs {' and '.join(missing)} in {folder}")
    return jars


# --- Java -------------------------------------------------------------------------------------------------------------


def _java() -> str:
    if java := shutil.which("java"):
        return java
    raise JavaMetricError("METEOR and SPICE need Java, found no program `java` on the PATH")


def _shipped(name: str) -> Path:
    """A file that pycocoevalcap ships."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise JavaMetricError(f"METEOR and SPICE need the jars of {PACKAGE}, not found here: {INSTALL}")
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.exists():
        raise JavaMetricError(f"METEOR and SPICE need {path}, found no such file: {INSTALL}")
    return path


def _run(command: Sequence[str], stdin: str = "") -> str:
    """What a program writes to its standard output."""
    done = subprocess.run(command, input=stdin, capture_output=True, encoding="utf-8")
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise JavaMetricError(f"{' '.join(command[:4])} .. ended with status {done.returncode}, and said: {said[0]}")
    return done.stdout
