"""`python -m mcl_jax.answer` on tiny bases: what it prints, what it refuses, and what answer.json holds."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tokenizers as tk
from tiny_media import png, sound, tone
from transformers import PreTrainedTokenizerFast

import mcl_jax as mcl
from mcl_jax import generation
from mcl_jax.answer import Answerer, Recipe, Trained
from mcl_jax.answer.__main__ import cli
from mcl_jax.checkpoint import Checkpoints
from mcl_jax.generation import BeamSearch, DiverseBeamSearch, Greedy, Sampling
from mcl_jax.run import Run
from mcl_jax.selector import Selector

GOLDEN = Path(__file__).parent / "golden"
LLAVA, QWEN = GOLDEN / "llava" / "llama", GOLDEN / "qwen2_audio" / "grouped"
WORDS = [f"w{i}" for i in range(30)]
PROMPT = "w1 {source} >"
TEXTS = ["w3", "w4 w5 w6 w7 w8", "w2 w2"]
K = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The tiny Llama with a tokenizer of whole words."""
    return with_words("llama", tmp_path_factory.mktemp("base"))


def with_words(name, folder):
    folder = shutil.copytree(GOLDEN / "models" / name, folder / name)
    vocabulary = {word: i for i, word in enumerate(["<eos>", "<unk>", "=", ">", *WORDS])}
    words = tk.Tokenizer(tk.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tk.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    return folder


def hypotheses_of(folder):
    """Hypotheses of a base, with adapters that are not zero: as if they were trained."""
    module, params, _ = mcl.models.from_pretrained(folder)
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=5, targets=mcl.models.lora_targets(module)))
    tokens = jnp.zeros((1, 2), jnp.int32)
    init = lambda: model.init(jax.random.key(0), params, tokens, num_hypotheses=K, method="hidden")
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), jax.eval_shape(init))
    return model, params, drawn


@pytest.fixture(scope="module")
def trained(base):
    return hypotheses_of(base)


@pytest.fixture(scope="module")
def finished(base, trained, tmp_path_factory):
    """A finished run of these hypotheses."""
    folder, decoder = tmp_path_factory.mktemp("runs") / "mine", BeamSearch(num_beams=3)
    with Run(folder, {"seed": 1}) as run:
        saved(run.checkpoint_dir("mine"), trained, 1.0)
        Recipe(base, trained[0].config, prompt=PROMPT, decoder=decoder, max_new_tokens=5, tag="mine").save(run.workdir)
        run.finish({"loss": 0.5})
    return folder


@pytest.fixture(scope="module")
def peft(base, trained, tmp_path_factory):
    """PEFT folders of these hypotheses."""
    folder = tmp_path_factory.mktemp("peft")
    mcl.interop.save_peft(folder, trained[0], trained[2], base=str(base))
    return folder


def saved(directory, trained, *losses):
    """Writes checkpoints 1, 2, … with these evaluation losses; the adapters of each are scaled by its number."""
    _, params, adapters = trained
    state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optax.sgd(0.1), rng=jax.random.key(0))
    with Checkpoints(directory) as checkpoints:
        for step, loss in enumerate(losses, 1):
            scaled = jax.tree.map(lambda x, step=step: x * step, adapters)
            state = state.replace(step=jnp.int32(step), adapters=scaled)
            checkpoints.save(state, metrics={"eval_loss": loss}, config={})


@pytest.fixture
def says(capsys):
    """says(*arguments): what the command prints, and its error or None."""

    def command(*arguments):
        capsys.readouterr()
        try:
            cli([*map(str, arguments)])
        except SystemExit as end:
            return capsys.readouterr().out, str(end)
        return capsys.readouterr().out, None

    return command


def lines(found):
    out, error = found
    assert error is None
    return [json.loads(line) for line in out.splitlines()]


def typed(monkeypatch, content):
    """Standard input holds these bytes."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


# ------------------------------------------------------------------------------------------------------------ Answers


def test_answers_are_those_of_generate_with_their_likelihoods(finished, base, trained, says):
    found = lines(says(finished, *TEXTS, "--json", "--answers=3", "--batch-size=2"))
    assert [line["input"] for line in found] == TEXTS
    model, params, adapters = trained
    tokenizer = mcl.models.from_pretrained(base)[2]
    for text, line in list(zip(TEXTS, found, strict=True))[:1]:  # the shortest, which is padded most
        prompt = jnp.asarray([tokenizer.encode(PROMPT.replace("{source}", text))])
        decoded = generation.decode(
            model, params, adapters, prompt, BeamSearch(num_beams=3, num_return=3), 5, eos_token_id=0, pad_token_id=0
        )
        log_p = generation.log_likelihoods(model, params, adapters, prompt, decoded)[:, :, 0]  # [H, K, n]
        answers = iter(line["answers"])
        for k in range(K):
            for i in range(3):
                answer, length = next(answers), int(decoded.lengths[k, 0, i])
                assert answer["hypothesis"] == k and answer["tokens"] == length
                assert answer["text"] == tokenizer.decode(decoded.tokens[k, 0, i], skip_special_tokens=True).strip()
                assert answer["log_likelihood"] == pytest.approx(float(log_p[k, k, i]), rel=1e-4)
                assert answer["log_likelihood_per_token"] == pytest.approx(float(log_p[k, k, i]) / length, rel=1e-4)
                np.testing.assert_allclose(answer["log_likelihoods"], log_p[:, k, i], rtol=1e-4)
        assert next(answers, None) is None


def test_the_table_shows_each_answer_in_a_line(finished, says):
    out, error = says(finished, "w3", "w9 w8")
    assert error is None
    title, columns, *rows = out.splitlines()[: K + 2]
    assert title == "w3" and columns.split() == ["k", "nats", "per", "token", "answer"]
    assert len(rows) == K and out.splitlines()[K + 2] == "w9 w8"
    line, _ = lines(says(finished, "w3", "w9 w8", "--json"))
    for row, answer in zip(rows, line["answers"], strict=True):
        k, nats, per_token, *words = row.split()
        assert int(k) == answer["hypothesis"] and " ".join(words) == answer["text"]
        assert float(nats) == pytest.approx(answer["log_likelihood"], abs=0.006)
        assert float(per_token) == pytest.approx(answer["log_likelihood_per_token"], abs=0.006)


def test_peft_folders_give_the_same_answers(finished, peft, says):
    options = ("--json", "--max-new-tokens=5", "--answers=3")  # three beams for both
    wanted = lines(says(finished, *TEXTS[:2], *options))
    found = lines(says(peft, *TEXTS[:2], *options, "--prompt", PROMPT))
    for line, other in zip(found, wanted, strict=True):
        for answer, expected in zip(line["answers"], other["answers"], strict=True):
            assert (answer["hypothesis"], answer["text"]) == (expected["hypothesis"], expected["text"])
            assert answer["log_likelihood"] == pytest.approx(expected["log_likelihood"], rel=1e-4)


def test_an_answer_json_beside_peft_folders_is_read(finished, peft, tmp_path, says):
    folder = shutil.copytree(peft, tmp_path / "both")
    shutil.copy(finished / "answer.json", folder)
    assert Trained.find(folder).recipe == Trained.find(finished).recipe
    assert Trained.find(folder).adapters is None


@pytest.fixture(scope="module")
def softly(base):
    """Soft prompts of the base, as if they were trained."""
    module, params, _ = mcl.models.from_pretrained(base)
    model = mcl.SoftPrompts(module, 2)
    init = lambda: model.init(jax.random.key(0), params, jnp.zeros((1, 2), jnp.int32), num_hypotheses=K)
    drawn = np.random.default_rng(1).normal(0, 0.5, (K, 2, 24))
    return model, params, jax.tree.map(lambda _: jnp.asarray(drawn, jnp.float32), jax.eval_shape(init))


@pytest.fixture(scope="module")
def soft_runs(base, softly, tmp_path_factory):
    """A finished run of soft prompts, and PEFT folders of them."""
    folder, options = tmp_path_factory.mktemp("soft"), dict(prompt=PROMPT, decoder=Greedy(), max_new_tokens=4)
    with Run(folder / "run", {"seed": 1}) as run:
        saved(run.checkpoint_dir("soft"), softly, 1.0)
        Recipe(base, soft_prompt=2, tag="soft", **options).save(run.workdir)
        run.finish({"loss": 0.5})
    mcl.interop.save_peft(folder / "peft", softly[0], softly[2], base=str(base))
    Recipe(base, **options).save(folder / "peft")
    return folder / "run", folder / "peft"


def test_soft_prompts_are_found_in_a_run_and_in_peft_folders(softly, soft_runs):
    for folder in soft_runs:
        model, adapters = Trained.find(folder).hypotheses(softly[0].module)
        assert model == softly[0]
        jax.tree.map(np.testing.assert_array_equal, adapters, softly[2])


@pytest.mark.slow
def test_soft_prompts_answer_from_a_run_and_from_peft_folders(soft_runs, says):
    run, peft = soft_runs
    found = lines(says(run, *TEXTS[:2], "--json"))
    assert [[answer["hypothesis"] for answer in line["answers"]] for line in found] == [[0, 1, 2]] * 2
    assert found == lines(says(peft, *TEXTS[:2], "--json"))
    texts = {answer["text"] for answer in found[0]["answers"]}
    assert len(texts) == K  # each soft prompt asks for something else


@pytest.mark.slow
def test_adapters_of_a_tied_output_layer_get_a_base_that_is_untied(tmp_path, says):
    folder = shutil.copytree(GOLDEN / "peft" / "tied", tmp_path / "adapters")
    Recipe(with_words("llama_tied_biased", tmp_path), prompt=PROMPT, decoder=Greedy(), max_new_tokens=3).save(folder)
    (found,) = lines(says(folder, TEXTS[1], "--json"))
    assert len({answer["log_likelihood"] for answer in found["answers"]}) == K


@pytest.mark.parametrize(("best", "step"), [(False, 3), (True, 2)])
def test_the_last_checkpoint_answers_or_the_best(finished, trained, tmp_path, best, step):
    folder = shutil.copytree(finished, tmp_path / "run")
    saved(folder / "checkpoints" / "again" / "mcl", trained, 2.0, 1.0, 3.0)
    dataclasses.replace(Recipe.load(folder), tag="again/mcl", best=best).save(folder)
    found = Trained.find(folder).adapters
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y * step), found, trained[2])


def test_the_base_has_the_dtype_and_the_bits_of_the_recipe(finished):
    half = Answerer.load(Trained.find(finished, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(half.adapters)} == {jnp.dtype(jnp.float32)}
    few = Answerer.load(Trained.find(finished, quantization="int8"))
    assert jnp.dtype(jnp.int8) in {leaf.dtype for leaf in jax.tree.leaves(few.params)}


def test_samples_do_not_depend_on_the_batch(finished, base, trained):
    recipe = Recipe(base, trained[0].config, prompt=PROMPT, decoder=Sampling(num_samples=3), max_new_tokens=5)
    answerer = Answerer.load(dataclasses.replace(Trained.find(finished), recipe=recipe))
    texts = lambda questions, first: [[a.text for a in given] for given in answerer(questions, rows=2, first=first)]
    before, after = texts(["w3", "w4 w5"], 0), texts(["w4 w5", "w3"], 1)
    assert before[1] == after[0]
    assert before[0] != after[1]  # the same text, with other random keys
    assert len(before[0]) == 3 * K and texts(["w3"], 0) == before[:1]


# ----------------------------------------------------------------------------------------------------------- Selector


@pytest.fixture(scope="module")
def selective(finished, trained, tmp_path_factory):
    """The finished run with a selector whose order of the hypotheses is not that of their numbers."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("selective") / "run")
    width = trained[0].module.config.hidden_size
    kernel = np.random.default_rng(2).normal(size=(width, K)).astype(np.float32)
    Selector(kernel, np.array([0.0, 1.0, 0.5], np.float32)).save(folder)
    return folder


def test_the_answers_of_likelier_hypotheses_come_first(selective, says):
    answerer = Answerer.load(Trained.find(selective))
    found, top = answerer(TEXTS), answerer(TEXTS, top_hypotheses=2)
    answerer.selector = None
    wanted = answerer(TEXTS)
    for given, plain in zip(found, wanted, strict=True):
        gamma = [answer.probability for answer in given]
        assert sum(gamma) == pytest.approx(1.0, rel=1e-5) and gamma == sorted(gamma, reverse=True)
        same = [dataclasses.replace(answer, probability=None) for answer in given]
        assert sorted(same, key=lambda answer: answer.hypothesis) == plain
    assert {tuple(answer.hypothesis for answer in given) for given in found} != {(0, 1, 2)}
    for given, whole in zip(top, found, strict=True):
        for answer, same in zip(given, whole[:2], strict=True):
            assert (answer.hypothesis, answer.text) == (same.hypothesis, same.text)
            np.testing.assert_allclose(answer.log_likelihoods, same.log_likelihoods, rtol=1e-4)
            assert answer.probability == pytest.approx(same.probability, rel=1e-5)
            assert answer.log_likelihood == pytest.approx(same.log_likelihood, rel=1e-4)
            assert answer.log_likelihood_per_token == pytest.approx(same.log_likelihood_per_token, rel=1e-4)
    out, error = says(selective, *TEXTS[:1], "--top-hypotheses=2")
    _, columns, *rows = out.splitlines()
    assert error is None and columns.split() == ["k", "gamma", "nats", "per", "token", "answer"]
    for row, answer in zip(rows, top[0], strict=True):
        k, gamma, *_ = row.split()
        assert int(k) == answer.hypothesis and float(gamma) == pytest.approx(answer.probability, abs=0.006)
    with pytest.raises(ValueError, match="top_hypotheses needs a selector, which these hypotheses do not have"):
        answerer(TEXTS, top_hypotheses=1)


@pytest.mark.parametrize(
    ("top", "message"),
    [("0", "error: --top-hypotheses must be from 1 to 3, the number of hypotheses, got 0"), ("4", "error: --top-")],
)
def test_more_hypotheses_than_there_are(selective, says, no_weights, top, message):
    assert says(selective, "w3", f"--top-hypotheses={top}")[1].startswith(message)


def test_selectors_that_do_not_fit(finished, tmp_path, says, no_weights):
    folder = shutil.copytree(finished, tmp_path / "run")
    wanted = f"error: --top-hypotheses needs a selector, but {folder} has no selector.safetensors"
    assert says(folder, "w3", "--top-hypotheses=1")[1] == wanted
    mcl.selector.init(5, K + 1).save(folder)
    wanted = f"error: {folder}/selector.safetensors must choose among 3 hypotheses, got 4"
    assert says(folder, "w3")[1] == wanted


# ------------------------------------------------------------------------------------------------------------- Inputs


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_texts_come_from_standard_input(finished, says, monkeypatch, arguments):
    typed(monkeypatch, b"w3\n\n  \nw9 w8\r\n")
    found = lines(says(finished, *arguments, "--json"))
    assert [line["input"] for line in found] == ["w3", "w9 w8"]


@pytest.fixture(scope="module")
def sees(tmp_path_factory):
    """PEFT adapters of the tiny LLaVA."""
    model, _, adapters = hypotheses_of(LLAVA)
    folder = tmp_path_factory.mktemp("sees")
    mcl.interop.save_peft(folder, model, adapters, base=str(LLAVA))
    return folder


@pytest.fixture
def album(tmp_path):
    """A folder with three pictures, one of them in a folder of its own, and a text."""
    rng, folder = np.random.default_rng(0), tmp_path / "album"
    (folder / "more").mkdir(parents=True)
    for name, size in (("b.png", (9, 17)), ("a.PNG", (14, 11)), ("more/c.png", (9, 17))):
        (folder / name).write_bytes(png(rng.integers(0, 256, (*size, 3), dtype=np.uint8)))
    (folder / "notes.txt").write_text("no picture")
    return folder


SEEING = ("--prompt", "what is this <image>", "--max-new-tokens=3")


def test_a_folder_stands_for_its_pictures_and_broken_ones_are_left_out(sees, album, says, capsys):
    found = lines(says(sees, album, *SEEING, "--json", "--batch-size=2"))
    assert [line["input"] for line in found] == [str(album / name) for name in ("a.PNG", "b.png", "more/c.png")]
    alone = lines(says(sees, *[album / "more" / "c.png"] * 2, *SEEING, "--json", "--batch-size=2"))
    assert [a["text"] for a in alone[0]["answers"]] == [a["text"] for a in found[2]["answers"]]
    differ = [line["answers"][0]["log_likelihood"] for line in found]
    assert len(set(differ)) == 3  # the pictures are seen
    (album / "b.png").write_bytes(b"no picture")
    try:
        cli([str(sees), str(album), *SEEING, "--json", "--batch-size=2"])
    except SystemExit as end:
        assert str(end) == "error: 1 of 3 inputs were left out, since they cannot be read"
    printed = capsys.readouterr()
    assert [json.loads(line)["input"] for line in printed.out.splitlines()] == [found[0]["input"], found[2]["input"]]
    (told,) = printed.err.splitlines()
    assert told.startswith(f"left out: {album / 'b.png'}: the image cannot be read")


def test_clips_are_cropped_and_padded_as_the_recipe_says(tmp_path, says):
    model, _, adapters = hypotheses_of(QWEN)
    mcl.interop.save_peft(tmp_path / "hears", model, adapters)
    prompt = "hear <|audio_bos|><|AUDIO|><|audio_eos|>:"
    Recipe(QWEN, kind="clips", prompt=prompt, max_new_tokens=3, seconds=0.3, window=40).save(tmp_path / "hears")
    whole = np.concatenate([tone(0.3, hertz=300.0), tone(0.3, hertz=900.0)])
    (tmp_path / "whole.wav").write_bytes(sound(whole))
    (tmp_path / "short.wav").write_bytes(sound(whole[: len(whole) // 40]))
    out, error = says(tmp_path / "hears", tmp_path / "whole.wav", tmp_path / "short.wav", "--json")
    assert error == "error: 1 of 2 inputs were left out, since they cannot be read"
    (line,) = map(json.loads, out.splitlines())
    answerer = Answerer.load(Trained.find(tmp_path / "hears"))
    clip = mcl.data.Clip("whole.wav", (tmp_path / "whole.wav").read_bytes).read()
    ((first, *_),) = answerer([clip[:4800]], rows=2)
    assert first.log_likelihood == pytest.approx(line["answers"][0]["log_likelihood"], rel=1e-5)


# ------------------------------------------------------------------------------------------------------------- Errors


@pytest.fixture
def no_weights(monkeypatch):
    """Fails if weights are read."""
    monkeypatch.setattr("mcl_jax.answer.answerer.from_pretrained", lambda *of, **options: pytest.fail("weights read"))


def without(folder, target, *names):
    """A copy of a run without some of its files."""
    shutil.copytree(folder, target)
    for name in names:
        shutil.rmtree(target / name) if (target / name).is_dir() else (target / name).unlink()
    return target


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["results.json"], "the run in {} is not finished; run its command again, which resumes it"),
        (["answer.json"], "the run in {} has no answer.json, which says how to answer; experiments write it for the "),
        (["config.json"], "{} is neither a run directory, which has a config.json, nor a folder of PEFT adapters"),
        (["checkpoints"], "there are no checkpoints in {}/checkpoints/mine, from which the run would answer"),
        (["checkpoints/mine/1"], "there is no checkpoint in {}/checkpoints/mine"),
    ],
)
def test_runs_that_cannot_answer(finished, tmp_path, says, no_weights, missing, message):
    folder = without(finished, tmp_path / "run", *missing)
    out, error = says(folder, "w3")
    assert out == "" and error.startswith(f"error: {message.format(folder)}") and "\n" not in error


def test_folders_that_are_none(tmp_path, finished, says, no_weights):
    assert says(tmp_path / "no", "w3")[1].endswith("or a folder of PEFT adapters, but it does not exist")
    assert says(finished / "answer.json", "w3")[1].endswith("or a folder of PEFT adapters, but it is a file")


def test_a_base_that_was_moved(finished, base, sees, tmp_path, says, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "run")
    entries = json.loads((folder / "answer.json").read_text())
    (folder / "answer.json").write_text(json.dumps(entries | {"base": str(tmp_path / "gone")}))
    with monkeypatch.context() as patch:
        patch.setattr("mcl_jax.answer.answerer.from_pretrained", lambda *of, **options: pytest.fail("weights read"))
        wanted = f"error: there is no base at {tmp_path / 'gone'}; give its present place with --base"
        assert says(folder, "w3")[1] == wanted
        assert says(folder, "w3", "--base", LLAVA)[1].endswith("takes pictures, but the hypotheses answer text")
    found, wanted = (says(run, "w3", "w9 w8", *more) for run, more in ((folder, ("--base", base)), (finished, ())))
    assert found == wanted and found[1] is None
    other = says(folder, "w3", "--base", GOLDEN / "models" / "qwen2")[1]
    assert other == f"error: the base {GOLDEN / 'models' / 'qwen2'} has no tokenizer files, which answers in words need"


def test_adapters_that_do_not_fit_the_base_are_refused(finished, base, says, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    entries = json.loads((folder / "answer.json").read_text())
    (folder / "answer.json").write_text(json.dumps(entries | {"lora": entries["lora"] | {"rank": 4}}))
    error = says(folder, "w3")[1]
    assert error.startswith(f"error: the adapters do not fit the base {base}: model/layers/mlp/down_proj/a is (3, ")


def test_peft_folders_need_a_base_and_a_prompt(peft, sees, trained, tmp_path, says, no_weights, album):
    mcl.interop.save_peft(tmp_path / "nameless", trained[0], trained[2])
    assert says(tmp_path / "nameless", "w3")[1].endswith("do not name their base; give it with --base")
    assert says(sees, album)[1].endswith("answer pictures; give the prompt, with its placeholder, with --prompt")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("album/b.png", "album/b.png is a picture, but these hypotheses answer text; give the lines of a file"),
        ("album/notes.txt", "album/notes.txt is a file, but these hypotheses answer text"),
        ("  ", "a text must not be blank"),
        ("w\udc80", "a text must be Unicode"),
    ],
)
def test_inputs_that_are_no_texts(finished, album, says, no_weights, monkeypatch, argument, message):
    monkeypatch.chdir(album.parent)
    assert says(finished, "w3", argument)[1].startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("album/d.png", "there is no file or folder album/d.png; these hypotheses answer pictures"),
        ("album/a.wav", "album/a.wav is a clip, but these hypotheses answer pictures"),
        ("album/notes.txt", "file 'album/notes.txt' must be an image or an audio clip"),
        ("album/empty", "the folder album/empty has no pictures: no file whose name ends in one of .png"),
    ],
)
def test_inputs_that_are_no_pictures(sees, album, says, no_weights, monkeypatch, argument, message):
    (album / "a.wav").write_bytes(sound(tone(0.3)))
    (album / "empty").mkdir()
    monkeypatch.chdir(album.parent)
    assert says(sees, "album/a.PNG", argument, *SEEING)[1].startswith(f"error: {message}")


def test_nothing_on_standard_input(finished, says, no_weights, monkeypatch):
    typed(monkeypatch, b" \n")
    assert says(finished)[1] == "error: there is nothing to answer: give texts, as arguments or on standard input"
    typed(monkeypatch, b"\xff\xfe")
    assert says(finished)[1].startswith("error: standard input must be text in UTF-8")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--batch-size=0", "--batch-size must be at least 1, got 0"),
        ("--answers=0", "answers must be at least 1, got 0"),
        ("--max-new-tokens=0", "max_new_tokens must be at least 1, got 0"),
        ("--prompt=no", 'the prompt template needs "{source}" once'),
        ("--temperature=-1", "temperature must be positive, got -1"),
        ("--no-repeat-ngram-size=-1", "no_repeat_ngram_size must be at least 0, got -1"),
        ("--stop-strings=", "stop_strings must be texts that are not empty, got ''"),
        ("--stream", "--stream needs tokens that stay, but "),
        ("--stream --json", "--stream shows answers to people and --json is for programs; give one of them"),
    ],
)
def test_options_that_are_wrong(finished, says, no_weights, option, message):
    assert says(finished, "w3", *option.split(" "))[1].startswith(f"error: {message}")


# ------------------------------------------------------------------------------------------------- Options of decoding


def test_generation_config_of_the_base_decides_where_adapters_do_not(peft, base, tmp_path, capsys):
    moved = shutil.copytree(base, tmp_path / "base")
    entries = {"eos_token_id": [0, 5], "do_sample": True, "temperature": 0.7, "top_k": 9, "repetition_penalty": 1.2}
    (moved / "generation_config.json").write_text(json.dumps(entries))
    given = dict(base=moved, repetition_penalty=1.5, temperature=0.3)
    recipe = Trained.find(peft, **given).recipe
    assert recipe.decoder == Sampling(temperature=0.3, top_k=9)
    assert (recipe.eos_token_id, recipe.repetition_penalty, recipe.max_new_tokens) == ((0, 5), 1.5, 64)
    said = f"Taken from {moved / 'generation_config.json'}: eos_token_id=[0, 5], Sampling(top_k=9)."
    assert capsys.readouterr().out.splitlines() == [said]
    assert Trained.find(peft, **given | {"temperature": 0.0}).recipe.decoder == Greedy()
    assert "Sampling" not in capsys.readouterr().out


def test_a_base_without_a_chat_template(finished, base, says):
    error = says(finished, "w3", "--chat")[1]
    assert error.startswith(f"error: a prompt as a chat needs chat_template in {base / 'tokenizer_config.json'} or ")


@pytest.mark.slow
def test_the_command_streams(finished, says):
    options = ("--temperature=0", "--max-new-tokens=13", "--no-repeat-ngram-size=2", "--stop-strings=w7")
    out, error = says(finished, "w3", "w9 w8", "--stream", *options)
    assert error is None
    found = lines(says(finished, "w3", "w9 w8", "--json", *options))
    texts = [answer["text"] for line in found for answer in line["answers"]]
    assert len(texts) == 2 * K and all("w7" not in text for text in texts)
    rows = out.splitlines()
    tables = [rows.index("w3", 1), len(rows) - K - 2]
    assert [row.split(maxsplit=3)[3] for at in tables for row in rows[at + 2 : at + 2 + K]] == texts
    for k in range(K):  # the pieces before the table are the words of the answer, without the last
        pieces = [row.split(maxsplit=1)[1] for row in rows[1 : tables[0]] if row.startswith(f"    {k}")]
        assert texts[k].startswith(" ".join(pieces)) and pieces


# ------------------------------------------------------------------------------------------------------------- Recipe


LORA = mcl.LoraConfig(
    rank=3,
    alpha=7,
    targets=("q_proj", "v_proj"),
    rank_pattern={"layers/q_proj": (5, 2)},
    shared_rank=1,
    dtype=jnp.bfloat16,
    param_dtype=jnp.float32,
)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("base", LORA, prompt="a {source} b", decoder=DiverseBeamSearch(6, 3), tag="seed1/mcl", best=True),
        Recipe("base", LORA, "clips", "<|AUDIO|>", Sampling(2, top_p=0.9), dtype=jnp.bfloat16, seconds=1.5, window=152),
        Recipe("base", kind="pictures", prompt="é", quantization="nf4", repetition_penalty=1.1, max_new_tokens=7),
        Recipe("base", decoder=BeamSearch(4, early_stopping="never", length_penalty=0.5)),
        Recipe("base", chat=True, no_repeat_ngram_size=3, stop_strings=("\n",), eos_token_id=(3, 5)),
    ],
)
def test_a_recipe_is_read_back_as_it_was_written(recipe, tmp_path):
    assert recipe.save(tmp_path) == tmp_path / "answer.json"
    found = Recipe.load(tmp_path)
    without_lora = lambda recipe: dataclasses.replace(recipe, lora=None)
    assert without_lora(found) == without_lora(recipe)
    if recipe.lora is None:
        assert found.lora is None
        return
    assert jnp.dtype(found.lora.dtype) == jnp.bfloat16 and jnp.dtype(found.lora.param_dtype) == jnp.float32
    for name in ("rank", "alpha", "patterns", "shared_rank", "dropout"):
        assert getattr(found.lora, name) == getattr(recipe.lora, name)
    assert found.lora.ranks_of("model/layers/q_proj") == (5, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "films"}, "kind must be one of text, pictures, clips, got 'films'"),
        ({"decoder": {"name": "Best"}}, "decoder must have the name of one of Greedy, Sampling, BeamSearch, "),
        ({"decoder": {"name": "BeamSearch", "width": 3}}, "BeamSearch has no width; it has "),
        ({"decoder": {"name": "BeamSearch", "num_beams": 0}}, "num_beams must be at least 1, got 0"),
        ({"lora": {"rank": 2, "alfa": 2}}, "LoraConfig has no alfa; it has alpha"),
        ({"lora": 3}, "lora must be an object, got 3"),
        ({"soft_prompt": 3}, "the adapters are low-rank or soft prompts, so lora or soft_prompt must be null"),
        ({"soft_prompt": 0}, "soft_prompt must be at least 1, got 0"),
        ({"prompts": []}, "Recipe has no prompts; it has base"),
        ({"base": None}, "Recipe needs base"),
        ({"dtype": "float31"}, "a dtype must be one such as float32 or bfloat16, got 'float31'"),
        ({"quantization": "int3"}, "quantization must be int8, nf4 or null, got 'int3'"),
        ({"padded": True}, "padded needs the kind pictures, got 'text'"),
        ({"seconds": -1.0}, "seconds must be a number above 0, got -1.0"),
        ({"prompt": 3}, "prompt must be a text, got 3"),
        ({"stop_strings": [3]}, "stop_strings must be texts that are not empty, got 3"),
    ],
)
def test_an_answer_json_that_is_wrong(tmp_path, change, message):
    path = Recipe("base", LORA).save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError) as error:
        Recipe.load(tmp_path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_decoders_of_your_own_cannot_be_stored():
    with pytest.raises(ValueError, match="decoder must be one of Greedy, Sampling, BeamSearch, DiverseBeamSearch, got"):
        Recipe("base", LORA, decoder=object())


@pytest.mark.parametrize(
    ("decoder", "number", "wanted"),
    [
        (Greedy(), 1, Greedy()),
        (None, 3, BeamSearch(3, num_return=3)),
        (Greedy(), 3, BeamSearch(3, num_return=3)),
        (BeamSearch(5), 2, BeamSearch(5, num_return=2)),
        (BeamSearch(2), 3, BeamSearch(3, num_return=3)),
        (DiverseBeamSearch(4, 2), 5, DiverseBeamSearch(6, 2, num_return=5)),
        (Sampling(top_k=7), 3, Sampling(3, top_k=7)),
    ],
)
def test_several_answers_per_hypothesis(decoder, number, wanted):
    assert Recipe("base", decoder=decoder).with_answers(number).decoder == wanted
