"""The experiment on pictures end to end, on the tiny LLaVA and pictures of noise; its likelihood and its scores."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answered import check_samples
from flax.traverse_util import flatten_dict
from tiny_captions import LLAVA, QWEN, clips_in, pictures_in, tiny

from experiments.audio_captioning.audio import Clips
from experiments.audio_captioning.config import Config as AudioConfig
from experiments.common.captioning import cost
from experiments.common.captioning.scores import scores
from experiments.common.captioning.task import load, weighted
from experiments.common.decoding import Answers
from experiments.image_captioning.__main__ import main
from experiments.image_captioning.config import Config
from experiments.image_captioning.images import Pictures
from mcl_jax import data, metrics
from mcl_jax.data.schedule import TrainSchedule

pytestmark = pytest.mark.usefixtures("standard_promotion", "no_packages")
QUALITY = {f"oracle_{name}" for name in ("bleu_1", "bleu_4", "rouge_l", "cider_d", "meteor", "spice", "spider")}


@pytest.fixture
def config(tmp_path):
    return tiny(Config, pictures_in(tmp_path / "mine"), LLAVA)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("others", "decoders"),
    [(("moe",), ("tta",)), pytest.param(("mle_rk", "moe"), ("beam", "tta"), marks=pytest.mark.slow)],
)
def test_a_run_leaves_its_results_and_figures(config, encoded, others, decoders, capsys):
    config = config.replace(methods=("mcl", *others), experts_per_token=2, mle_decoders=decoders)
    main(config)
    found = json.loads((config.workdir / "results.json").read_text())["methods"]
    mcl = found["mcl"]
    name_of = lambda method, decoder: f"{method}/{decoder}" if len(decoders) > 1 else method
    assert set(found) == {"mcl", "nearest"} | {name_of(method, decoder) for method in others for decoder in decoders}
    nearest = found.pop("nearest")
    assert {"oracle_bleu_1", "div_2", "noun_named"} <= set(nearest) and not {"test_loss", "grounding"} & set(nearest)
    assert mcl["modes"] == ["en", "fr"] and np.shape(mcl["win_matrix"]) == (2, 3) and np.sum(mcl["win_matrix"]) == 2 * 7
    assert 0.5 <= mcl["purity"] <= 1 and sum(mcl["win_rate"]) == pytest.approx(1) and len(mcl["win_rate"]) == 3
    for name, of in found.items():
        assert {"test_loss", "loss_of_mode", "div_2", "mbleu_4", "decode_seconds"} | QUALITY <= set(of), name
        assert {"grounding", "retrieval", "noun_named"} <= set(of) and of["noun_items"] == {"seen": 3, "unseen": 0}
        assert set(of["of_mode"]) == {"en", "fr"} and set(of["of_mode"]["fr"]) >= {"oracle_cider_d", "oracle_spider"}
        assert {len(share) for share in of["language_rate"].values()} == {3}
        assert ("win_matrix" in of) == (name == "mcl") and ("loss_above_mcl" in of) == (name != "mcl")
        missing = of["not_available"]
        assert of["oracle_meteor"] is of["oracle_spider"] is of["oracle_similarity"] is None
        assert "no_such_package_of_jars" in missing["oracle_meteor"] and "corenlp" in missing["oracle_spider"]
        assert "MiniLM" in missing["oracle_similarity"] and "oracle_cider_d" not in missing
    losses = [{found[name_of(method, decoder)]["test_loss"] for decoder in decoders} for method in others]
    assert [len(of) for of in losses] == [1] * len(others) and len(set().union(*losses)) == len(others)
    assert [(of["id"], of["source"], len(of["references"])) for of in mcl["samples"]] == [
        ("04.png", "", 2),
        ("16.png", "", 2),
        ("23.png", "", 2),
    ]
    for sample in mcl["samples"]:
        assert {name: len(texts) for name, texts in sample["answers"].items()} == dict.fromkeys([*found, "nearest"], 3)
        assert sample["log_likelihoods"].pop("nearest") == [None] * 3
        assert all(len(of) == 3 and max(of) < 0 for of in sample["log_likelihoods"].values())
    figures = {path.name for path in (config.workdir / "figures").iterdir()}
    assert figures == {"loss.png", "win_matrix.png", "quality_diversity.png"}
    # The tower saw each record once: not for each hypothesis, method or epoch (5 steps of 4 are nearly two of 12).
    assert set(encoded.values()) == {1}
    assert {name for name in encoded if int(name[:2]) % 6 < 3} == {f"{i:02}.png" for i in range(24) if i % 6 < 3}
    assert len(encoded) == 12 + 3 + 7
    page = (config.workdir / "page.html").read_text()
    for title in ("grounding in nats per answer", "retrieval", "noun named", "Captions of the nearest"):
        assert title in page
    before = contents(config.workdir)
    main(config)  # says that it is finished
    check_samples(capsys, config.workdir, lambda samples: [config.data.name + "/" + one["id"] for one in samples])
    assert contents(config.workdir) == before


# -------------------------------------------------------------------------------------------------------- Likelihood


def drawn(adapters):
    """Adapters with B not zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), adapters)


def shapes(task, method):
    return jax.eval_shape(
        lambda: (
            task.initial_state(
                method, task.config.optimizer.make(task.config.training.steps), task.config.objective_of(method)
            ).adapters
        )
    )


def test_the_likelihood_is_that_of_the_answer_behind_the_picture(config):
    """By hand: a plain model with the hypothesis merged, features of `encode`, log softmax, the answer's tokens."""
    task = load(config, Pictures())
    items = task.encode(task.records("test", 4))
    batch = next(data.eval_batches(items.encoded, config.batches))
    adapters, model = drawn(shapes(task, "mcl")), task.model("mcl")
    of = jax.jit(task.log_likelihood_fn("mcl"))
    hypothesis = jax.tree.map(lambda x: x[1], adapters)
    log_p, counts = of(task.params, hypothesis, task.inputs(items, batch), None)

    record, mode = items.records[batch["index"][0]], task.corpus.modes[batch["mode"][0]]
    (caption,) = [target.text for target in record.targets if target.mode == mode]
    answer = [*task.tokenizer(caption)["input_ids"], task.tokenizer.eos_token_id]
    run = jax.jit(task.module.apply, static_argnames="method")
    variables = {"params": model.merge(task.params, adapters, 1)}
    features = run(variables, **task.perception.processor.inputs([record.media.read()]), method="encode")
    number = int((np.abs(np.asarray(features)).max(-1) > 0).sum())
    tokens = np.array([[task.module.placeholder] * number + answer])
    logits = run(variables, tokens, None, features)[0, number - 1 : -1]
    by_hand = jax.nn.log_softmax(logits)[np.arange(len(answer)), np.array(answer)].sum()
    assert counts[0] == len(answer) >= 3
    np.testing.assert_allclose(log_p[0], by_hand, rtol=1e-5)
    blind = run(variables, tokens, None, 0 * features)[0, number - 1 : -1]
    assert np.abs(blind - logits).max() > 1e-3  # the picture matters


def test_a_sparse_mixture_trains_with_the_balance_of_what_it_reads(config):
    config = config.replace(methods=("moe",), experts_per_token=2, batch_size=2)
    task = load(config, Pictures())
    items = task.encode(task.records("test", 1))
    batch = task.inputs(items, next(data.eval_batches(items.encoded, config.batches)))
    adapters = jax.tree.map(lambda x: x[0], drawn(shapes(task, "moe")))
    evaluated, trained = (jax.jit(task.log_likelihood_fn("moe", train=train)) for train in (False, True))
    longer = batch | {name: np.pad(batch[name], ((0, 0), (0, 7))) for name in ("tokens", "target_mask")}
    balance = []
    for padded in (batch, longer):
        log_p, counts = evaluated(task.params, adapters, padded, None)
        less, _ = trained(task.params, adapters, padded, None)
        balance.append(np.asarray((log_p - less) / counts / config.experts.balance_weight))
    assert (balance[0] > 0.5).all() and (balance[0] <= 1.5 + 1e-3).all()  # E/k = 3/2 if all tokens choose the same
    np.testing.assert_allclose(balance[0], balance[1], rtol=1e-3)  # padding does not count


@pytest.mark.parametrize("method", ["mcl", "mle_rk", "moe"])
@pytest.mark.parametrize("media", ["pictures", "clips"])
def test_adapters_are_of_the_language_model_alone(tmp_path, method, media):
    """Towers have layers named q_proj and k_proj too."""
    if media == "pictures":
        task = load(tiny(Config, pictures_in(tmp_path / "mine"), LLAVA), Pictures())
    else:
        task = load(tiny(AudioConfig, clips_in(tmp_path / "mine"), QWEN), Clips(1.0))
    found = flatten_dict(shapes(task, method))
    assert {path[0] for path in found} == {"language_model"}
    assert {path[-2] for path in found} == {"q_proj", "k_proj", "v_proj", "up_proj", "down_proj"}
    assert {len(leaf) for leaf in found.values()} == {3 if method == "mcl" else 1}


@pytest.mark.slow
def test_the_cost_of_the_tower_does_not_depend_on_k(config):
    task = load(config.replace(objective="wta"), Pictures(), scan=False)
    (tower, one), (same_tower, three) = cost.costs(task, (1, 3)).values()
    assert tower == same_tower > 0
    assert 1.3 * one < three < 3 * one  # in matrix products K + 2 passes against 3
    head = 2 * task.module.unembedding(task.params).size * config.training.batch_size * 64  # of one pass
    assert one > 2 * head


# ------------------------------------------------------------------------------------------------------------ Scores


def record(name, **captions):
    targets = [data.Target(text, mode) for mode, texts in captions.items() for text in texts]
    picture = data.Picture(f"{name}.png", lambda: b"")
    return data.Record(name, "", tuple(targets[:1]), tuple(targets[1:]), "test", picture)


RECORDS = (
    record("1", en=["a red dog on the grass", "the dog is red"], fr=["un chien rouge dans le pré"]),
    record("2", en=["two white birds"], fr=["deux oiseaux blancs", "des oiseaux"]),
    record("3", en=["a house of stone"], fr=["une maison en pierre"], es=["una casa de piedra"]),
)
TEXTS = [
    ["a red dog on the grass", "un chien rouge dans le pré"],
    ["a white bird", "les oiseaux blancs"],
    ["the house", ""],
]


def score(texts, records=RECORDS, split=None, train=RECORDS[:1], **options):
    answers = Answers(texts, [[-1.0] * len(of) for of in texts], 0.0)
    return scores(answers, records, split or records, train, **options)


def test_language_rate_counts_for_each_hypothesis():
    records = tuple(record(str(n), en=["a dog"], fr=["un chien"]) for n in range(3))
    assert score(TEXTS, records)["language_rate"] == {"en": [1.0, 0.0], "fr": [0.0, pytest.approx(2 / 3)]}
    assert "language_rate" not in score(TEXTS, tuple(record(str(n), loud=["a dog"]) for n in range(3)))


def test_nouns_are_those_of_english_captions_and_apart_where_training_captions_lack_them():
    french = record("4", fr=["un oiseau"])
    found = score([*TEXTS[:2], ["a hut", "la maison"], ["a bird", ""]], (*RECORDS, french))
    assert found["noun_items"] == {"seen": 1, "unseen": 2} and "noun_named" not in found["not_available"]
    assert found["noun_named"]["mean"] == pytest.approx(2 / 3)  # a dog, a bird, no house
    assert found["noun_named_seen"] == 1.0  # of one record, so there is no interval
    assert found["noun_named_unseen"]["mean"] == 0.5 and found["noun_named_unseen"]["low"] == 0.0
    found = score([["un oiseau"]], (french,))
    assert found["noun_named"] is None and "English caption" in found["not_available"]["noun_named"]
    assert found["noun_items"] == {"seen": 0, "unseen": 0} and "oracle_meteor" in found["not_available"]


def test_of_mode_is_against_the_references_of_that_mode_alone():
    found = score(TEXTS)["of_mode"]
    assert set(found) == {"en", "es", "fr"}
    french = [["un chien rouge dans le pré"], ["deux oiseaux blancs", "des oiseaux"], ["une maison en pierre"]]
    whole = metrics.score_captions(TEXTS, french)
    assert found["fr"]["oracle_cider_d"] == whole["oracle_cider_d"].mean > 0
    assert found["fr"]["oracle_bleu_1"] == whole["oracle_bleu_1"].mean
    assert found["fr"]["oracle_spider"] is None
    only = metrics.score_captions(TEXTS[2:], [["una casa de piedra"]])  # one item has Spanish references
    assert found["es"]["oracle_bleu_1"] == only["oracle_bleu_1"].mean != found["fr"]["oracle_bleu_1"]


def test_transcripts_have_word_errors_over_all_references_and_of_each_mode():
    found = score(TEXTS, transcripts=True)
    # "les oiseaux blancs" has 1 error of 3 words, and "the house" 3 of "a house of stone".
    assert found["oracle_wer"] == pytest.approx((0 + 1 + 3) / (6 + 3 + 4))
    assert found["intervals"]["mean_wer"][0] <= found["mean_wer"] <= found["intervals"]["mean_wer"][1]
    assert found["oracle_wer_per_reference"] > found["oracle_wer"] < found["mean_wer"]
    french = metrics.oracle_wer(
        TEXTS, [["un chien rouge dans le pré"], ["deux oiseaux blancs", "des oiseaux"], ["une maison en pierre"]]
    )
    assert found["of_mode"]["fr"]["oracle_wer"] == french.mean
    assert found["of_mode"]["fr"]["intervals"]["oracle_wer"] == [french.low, french.high]
    without = score(TEXTS)
    assert not [name for name in without if name.endswith("wer")] and "oracle_wer" not in without["of_mode"]["fr"]


def test_documents_of_cider_d_are_the_references_of_the_split():
    whole, part = score(TEXTS), score(TEXTS[:1], RECORDS[:1], split=RECORDS)
    one = metrics.score_captions(TEXTS, [[t.text for t in record.references] for record in RECORDS])
    assert part["oracle_cider_d"] == pytest.approx(one["oracle_cider_d"].per_item[0]) and whole["oracle_cider_d"] > 0
    assert part["of_mode"]["fr"]["oracle_cider_d"] > 0
    alone = score(TEXTS[:1], RECORDS[:1])
    for of in (alone, alone["of_mode"]["fr"]):  # every n-gram is in the only item: it would be 0 whatever is answered
        assert of["oracle_cider_d"] is None and "at least 2 items" in of["not_available"]["oracle_cider_d"]


def test_what_is_not_finite_is_not_there():
    found = score(TEXTS)
    json.dumps(found, allow_nan=False)
    assert "vocabulary" in found and "vocabulary" not in found["intervals"]  # it has no interval
    low, high = found["intervals"]["oracle_bleu_1"]
    assert low <= found["oracle_bleu_1"] <= high


def test_answers_without_words_score_nothing():
    found = score([["", ""]] * 3)
    json.dumps(found, allow_nan=False)
    assert found["oracle_bleu_1"] == found["div_2"] == found["vocabulary"] == 0
    assert found["mbleu_4"] == pytest.approx(1)  # the same answer twice
    assert found["of_mode"]["en"]["oracle_cider_d"] == 0


def test_the_folder_of_corenlp_reaches_spice_and_java_is_asked_once_for_meteor(tmp_path, monkeypatch):
    asked = []

    def meteor(captions):
        asked.append(captions)
        raise metrics.JavaMetricError("no Java")

    monkeypatch.setattr("mcl_jax.metrics.java.spice", lambda of, folder: [np.array([0.0, 1.0])] * len(of.answers))
    monkeypatch.setattr("mcl_jax.metrics.java.meteor", meteor)
    found = score(TEXTS, corenlp=tmp_path)
    assert len(asked) == 1 and found["not_available"]["oracle_meteor"] == "no Java"
    assert found["oracle_spice"] == 1 and found["mean_spice"] == 0.5
    spanish = found["of_mode"]["es"]  # of one item, so there is no CIDEr-D, and half of SPICE is no SPIDEr
    assert spanish["oracle_spider"] is None and "CIDEr-D" in spanish["not_available"]["oracle_spider"]
    assert found["of_mode"]["fr"]["oracle_spider"] > 0.5


# ----------------------------------------------------------------------------------------------------- Weighted modes


def test_modes_are_drawn_as_often_as_they_weigh(tmp_path):
    captions = lambda n: (data.Target(f"dog {n}", "en"), data.Target(f"chien {n}", "fr"))
    picture = data.Picture("1.png", lambda: b"")
    records = tuple(
        data.Record(f"{n:02}", "", captions(n), split="train" if n < 40 else "test", media=picture) for n in range(43)
    )
    corpus = data.Corpus("mine", records, (("44", "broken"),))
    config = lambda **of: Config.from_options(workdir=tmp_path, data="mine", **of)
    assert weighted(corpus, config()) is corpus
    found = weighted(corpus, config(modes=("fr", "en"), mode_weights=(1, 9)))
    assert found.split("test") == corpus.split("test") and found.left_out == corpus.left_out
    assert (found.name, found.modes, found.counts()) == (corpus.name, corpus.modes, corpus.counts())
    targets = [record.targets for record in found.split("train")]
    schedule = TrainSchedule([np.ones(len(of), np.int64) for of in targets], data.BatchConfig(4, (8,)))
    modes = [of[i].mode for epoch in range(200) for of, i in zip(targets, schedule.drawn_targets(epoch), strict=True)]
    deviation = np.sqrt(0.9 * 0.1 / len(modes))
    assert len(modes) == 8000 and abs(np.mean([mode == "en" for mode in modes]) - 0.9) < 4 * deviation


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(modes=("en", "fr"), mode_weights=(9,)),
            r"--mode-weights needs one number for each of --modes \('en', 'fr'\)",
        ),
        (dict(mode_weights=(9, 1)), r"needs one number for each of --modes \(\), got \(9, 1\)"),
        (dict(modes=("en", "fr"), mode_weights=(9, 0)), r"--mode-weights must be at least 1, got \(9, 0\)"),
        (dict(modes=("en", "de")), r"corpus 'mine': a mode must be one of \['en', 'fr'\], got 'de'"),
        (
            dict(base=QWEN),
            r"grouped has no processor for pictures; use a LLaVA-1.6, a SmolVLM or a PaliGemma for pictures",
        ),
        (dict(base=LLAVA.parent / "mistral"), r"mistral has no processor for pictures; use a LLaVA-1.6, "),
        (dict(prompt="what is this ?"), r"the prompt must have '<image>' \(token 36\) 1 times"),
        (dict(data="stamps/picture"), r"did you mean 'stamps/pictures'\?"),
    ],
)
def test_refusals(config, change, message):
    with pytest.raises(ValueError, match=message):
        task = load(config.replace(**change), Pictures())
        task.encode(task.records("test"))


def test_clips_are_refused_before_anything_is_trained(tmp_path):
    config = tiny(Config, clips_in(tmp_path / "mine"), None)
    with pytest.raises(ValueError, match=r"--data .*mine must have pictures, but has clips"):
        load(config, Pictures())
    assert not config.data.cache.exists()
