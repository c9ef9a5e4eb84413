"""METEOR and SPICE, which exist only as Java programs, run from the jars that pycocoevalcap ships.

Java must be on the PATH. SPICE also needs CoreNLP 3.6.0, which we do not download: a folder with
`stanford-corenlp-3.6.0.jar` and `stanford-corenlp-3.6.0-models.jar`. A `JavaMetricError` names the missing part.
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
    """Java or a jar that a metric needs is missing, or the program failed."""


# --- METEOR -----------------------------------------------------------------------------------------------------------


def meteor(captions: Captions) -> Counts:
    """Computes METEOR 1.5 for English, 0 to 1, as pycocoevalcap calls it. Java counts the matches; the value is

        F (1 − γ (chunks / matches)^β),   F = P R / (α P + (1 − α) R)

    where P and R weight matches by their kind, and content words more than function words. Java takes 10 to 40 s to
    load the paraphrases. Source: Denkowski and Lavie (2014), "Meteor universal".

    Raises:
      JavaMetricError: if something is missing, or Java fails; a ValueError with the reason.
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
        raise JavaMetricError(
            f"METEOR must print 23 counts for each of {len(lines)} lines, got {replies[:1]}"
        ) from None
    whole = (counts[:, 20] == 1.0) & (counts[:, 21:23] == counts[:, 0:2]).all(axis=1)
    counts[whole, 20] = 0.0
    ends = np.cumsum([len(answers) for answers in captions.answers])
    return Counts(np.split(counts, ends[:-1]), meteor_value)


def meteor_value(sums: np.ndarray) -> np.ndarray:
    """Computes METEOR from the jar's counts [..., 23], with 0 chunks for answers that match as a whole.

    The counts are: lengths of answer and reference, and their numbers of function words; matching content and function
    words of each, for the four kinds of match; the number of chunks; and the matching words of each.
    """

    def weight(content: np.ndarray, function: np.ndarray) -> np.ndarray:
        return DELTA * content + (1.0 - DELTA) * function

    length, function = sums[..., 0:2], sums[..., 2:4]  # the last axis: answer, reference
    kinds = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # kind of match; content, function; answer, reference
    content_matches, function_matches = np.moveaxis(np.einsum("k,...kwt->...wt", MATCH_WEIGHTS, kinds), -2, 0)
    shares = _ratio(weight(content_matches, function_matches), weight(length - function, function))
    precision, recall = shares[..., 0], shares[..., 1]
    f_mean = _ratio(precision * recall, ALPHA * precision + (1.0 - ALPHA) * recall)
    return f_mean * (1.0 - GAMMA * _ratio(sums[..., 20], sums[..., 21:23].mean(axis=-1)) ** BETA)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns a / b, 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0.0)


# --- SPICE ------------------------------------------------------------------------------------------------------------


def spice(captions: Captions, corenlp: str | Path | None) -> list[np.ndarray]:
    """Computes SPICE of every answer: F1 of the facts in its scene graph and in those of the references.

    An answer without words scores 0. The value is NaN if neither side states a fact, as in coco-caption.

    Args:
      captions: tokenized captions.
      corenlp: folder with the two jars of CoreNLP 3.6.0.
    Returns:
      N vectors [K], 0 to 1.
    Raises:
      JavaMetricError: if something is missing, or Java fails; a ValueError with the reason.

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
        values = {entry["image_id"]: float(entry["scores"]["All"]["f"]) for entry in json.loads(reply.read_text())}
    return [
        np.array([values[f"{n} {k}"] if answer else 0.0 for k, answer in enumerate(answers)])
        for n, answers in enumerate(captions.answers)
    ]


def check_spice(corenlp: str | Path) -> None:
    """Raises a JavaMetricError if Java or a jar that `spice` needs is missing; runs nothing."""
    _corenlp(corenlp)
    _shipped(SPICE_JAR)
    _shipped(SPICE_LIBRARIES)
    _java()


def _corenlp(folder: str | Path | None) -> list[Path]:
    if folder is None:
        raise JavaMetricError(f"SPICE needs a folder with {' and '.join(CORENLP_JARS)}, but none is configured")
    jars = [Path(folder).absolute() / name for name in CORENLP_JARS]
    if missing := [jar.name for jar in jars if not jar.is_file()]:
        raise JavaMetricError(f"SPICE needs {' and '.join(missing)} in {folder}")
    return jars


# --- Java -------------------------------------------------------------------------------------------------------------


def _java() -> str:
    if java := shutil.which("java"):
        return java
    raise JavaMetricError("METEOR and SPICE need Java, but there is no program `java` on the PATH; install Java")


def _shipped(name: str) -> Path:
    """Returns the path of a file that pycocoevalcap ships."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise JavaMetricError(f"METEOR and SPICE need the jars of {PACKAGE}; install it with: {INSTALL}")
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.exists():
        raise JavaMetricError(f"METEOR and SPICE need {path}, but there is no such file; install it with: {INSTALL}")
    return path


def _run(command: Sequence[str], stdin: str = "") -> str:
    """Runs a program and returns its standard output."""
    done = subprocess.run(command, input=stdin, capture_output=True, encoding="utf-8")
    if done.returncode != 0:
        output = done.stderr.strip().splitlines() or ["nothing"]
        raise JavaMetricError(
            f"{' '.join(command[:4])} .. ended with status {done.returncode} and printed: {output[0]}"
        )
    return done.stdout
