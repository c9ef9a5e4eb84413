"""How an answerer decodes: defaults of the base, stop strings, chats, and answers that are shown while they grow."""

import io
import itertools

import pytest
import rich.console
from toy_language import K, Pieces, bigram_hypotheses

from mcl_jax.answer import Answerer, Recipe
from mcl_jax.answer.live import growing
from mcl_jax.generation import BeamSearch, Defaults, Greedy, Sampling

RECIPE = Recipe("base", prompt="{source}f", decoder=Sampling(3, temperature=2.0), max_new_tokens=17)


class Chatty(Pieces):
    """`Pieces` with a chat template that puts a message between "c" and "de"."""

    chat_template = "c{message}de"

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        ((role, content),) = [(message["role"], message["content"]) for message in messages]
        assert role == "user" and not tokenize and add_generation_prompt
        return f"c{content}de"


@pytest.fixture(scope="module")
def hypotheses():
    return bigram_hypotheses()


def test_a_stream_shows_the_answers_as_they_grow(hypotheses):
    answerer, seen = Answerer(RECIPE, *hypotheses, Pieces()), []
    (wanted,) = answerer(["g"])
    assert answerer(["g"], stream=seen.append) == [wanted]
    assert len(seen) == 3  # 8, 16 and 17 tokens
    for (before,), (after,) in itertools.pairwise(seen):
        assert all(new.startswith(old) for (_, old), (_, new) in zip(before, after, strict=True))
    assert seen[-1] == [[(answer.hypothesis, answer.text) for answer in wanted]]
    assert [k for k, _ in seen[0][0]] == [0] * 3 + [1] * 3 + [2] * 3
    assert seen[0] != seen[-1]


def test_a_chat_is_what_the_template_makes_of_the_prompt(hypotheses):
    """With bigrams, only the last token of a prompt decides, so the tokens of the inputs are compared."""
    chat = Answerer(Recipe("base", prompt="{source}f", chat=True), *hypotheses, Chatty())
    plain = Answerer(Recipe("base", prompt="c{source}fde"), *hypotheses, Chatty())
    found, wanted = (answerer._inputs(["ga", "b"]) for answerer in (chat, plain))
    assert found["tokens"].tolist() == wanted["tokens"].tolist()


def test_the_defaults_of_the_base_stand_where_the_recipe_has_none():
    base = Defaults(None, {"repetition_penalty": 1.2, "eos_token_id": (4,), "max_new_tokens": 9}, BeamSearch(3))
    settled = Recipe("base", repetition_penalty=1.5, stop_strings=["a"]).settled(base)
    assert (settled.decoder, settled.max_new_tokens, settled.eos_token_id) == (BeamSearch(3), 9, (4,))
    assert (settled.repetition_penalty, settled.stop_strings, settled.no_repeat_ngram_size) == (1.5, ("a",), 0)
    nothing = Recipe("base").settled(Defaults())
    assert (nothing.decoder, nothing.max_new_tokens, nothing.repetition_penalty) == (Greedy(), 64, 1.0)


def test_end_tokens_and_stop_strings_reach_the_decoder(hypotheses):
    recipe = Recipe("base", eos_token_id=(4,), stop_strings=("ab",), no_repeat_ngram_size=2, max_new_tokens=5)
    options = Answerer(recipe, *hypotheses, Pieces())._options()
    assert options["eos_token_id"] == (12, 4) and options["pad_token_id"] == 12
    assert (options["stop_strings"], options["no_repeat_ngram_size"]) == (("ab",), 2)


@pytest.mark.parametrize(
    ("decoder", "change", "wanted"),
    [
        (BeamSearch(4, num_return=3), {"temperature": 0.5}, Sampling(3, temperature=0.5)),
        (Sampling(2, top_k=7), {"temperature": 0.5, "top_p": 0.9}, Sampling(2, 0.5, 7, 0.9)),
        (Greedy(), {"top_p": 0.9}, Sampling(top_p=0.9)),
        (Sampling(2), {"temperature": 0.0}, Greedy()),
    ],
)
def test_a_temperature_draws(decoder, change, wanted):
    assert Recipe("base", decoder=decoder).drawing(**change).decoder == wanted


def test_wrong_values():
    with pytest.raises(ValueError, match="top_p must not be given with temperature 0, .* got 0.9"):
        Recipe("base").drawing(0.0, 0.9)
    with pytest.raises(ValueError, match="stop_strings must be texts that are not empty, got ''"):
        Recipe("base", stop_strings=[""])


# ---------------------------------------------------------------------------------------------------------- Console


def shown(answers, **options):
    out = io.StringIO()
    with growing("the question", rich.console.Console(file=out, width=60, **options)) as show:
        for answer in answers:
            show([answer])
    return out.getvalue()


def test_pieces_are_lines_where_there_is_no_terminal():
    grown = [[(0, "one tw"), (2, "x")], [(0, "one two\nthree f"), (2, "x y [bold]z")], [(0, "one two\nthree four")]]
    assert shown(grown).splitlines() == ["the question", "    0  one", "    0  two three", "    2  x y"]


def test_lines_grow_on_a_terminal():
    out = shown(
        [[(k, f"answer {k}") for k in range(K)], [(k, f"answer {k} [i]") for k in range(K)]], force_terminal=True
    )
    assert all(f"answer {k} [i]" in out for k in range(K)) and out.index("answer 0") < out.index("answer 0 [i]")
