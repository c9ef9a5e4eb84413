"""A SmolVLM as the base of the experiment on pictures, and of answers."""

import json

import pytest
from answered import check_samples
from tiny_captions import LLAVA, pictures_in, tiny

from experiments.image_captioning.__main__ import main
from experiments.image_captioning.config import Config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("standard_promotion", "no_packages")]
SMOLVLM = LLAVA.parents[1] / "smolvlm" / "smolvlm"


def test_a_run_on_smolvlm_leaves_its_results_and_answers(tmp_path, capsys):
    """Rows and columns of tiles reach the prompts: pictures of both shapes take the tokens that encode gives."""
    config = tiny(Config, pictures_in(tmp_path / "mine"), SMOLVLM, max_length=128)
    main(config)
    found = json.loads((config.workdir / "results.json").read_text())["methods"]["mcl"]
    assert found["modes"] == ["en", "fr"] and sum(found["win_rate"]) == pytest.approx(1)
    assert found["test_loss"] > 0
    check_samples(capsys, config.workdir, lambda samples: [config.data.name + "/" + one["id"] for one in samples])
