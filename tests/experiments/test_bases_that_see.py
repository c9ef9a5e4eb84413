"""SmolVLM and PaliGemma as bases of the experiment on pictures, and of answers."""

import json

import pytest
from answered import check_samples
from tiny_captions import GOLDEN, pictures_in, tiny
from tiny_paligemma import with_processor

from experiments.image_captioning.__main__ import main
from experiments.image_captioning.config import Config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("standard_promotion", "no_packages")]


@pytest.mark.parametrize("name", ["smolvlm", "paligemma"])
def test_a_run_leaves_its_results_and_answers(name, tmp_path, capsys):
    """Pictures of both shapes take the tokens that `encode` gives; of a SmolVLM, in rows and columns."""
    base = GOLDEN / "smolvlm" / "smolvlm"
    if name == "paligemma":
        base = with_processor(GOLDEN / "paligemma" / "gemma2", tmp_path / "base")
    config = tiny(Config, pictures_in(tmp_path / "mine"), base, max_length=128)
    main(config)
    found = json.loads((config.workdir / "results.json").read_text())["methods"]["mcl"]
    assert found["modes"] == ["en", "fr"] and sum(found["win_rate"]) == pytest.approx(1)
    assert found["test_loss"] > 0
    check_samples(capsys, config.workdir, lambda samples: [config.data.name + "/" + one["id"] for one in samples])
