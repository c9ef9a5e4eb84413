"""Batches: shapes and masks, lengths, drawn targets, resuming, processes."""

import json

import jax
import numpy as np
import pytest
from tiny_tokenizers import Letters

from mcl_jax.data import (
    NO_MODE,
    NO_RECORD,
    BatchConfig,
    Prompt,
    Record,
    Target,
    encode_records,
    eval_batches,
    train_batches,
)
from mcl_jax.data.schedule import TrainSchedule

PROMPT = Prompt("{source}>")
CONFIG = BatchConfig(batch_size=6, lengths=(8, 16, 24), seed=3, window=3)


def make_records(number=101, seed=0):
    """Records with one to three targets; each target's first letter is its mode, and lengths differ."""
    rng = np.random.default_rng(seed)
    word = lambda: "".join(rng.choice(list("uvwxyz"), rng.integers(1, 9)))
    modes = lambda: "abc"[: rng.integers(1, 4)]
    return [Record(f"r{i:03}", word(), tuple(Target(mode + word(), mode) for mode in modes())) for i in range(number)]


RECORDS = make_records(seed=2)


def encode(records=RECORDS, **options):
    return encode_records(records, Letters(), PROMPT, max_length=24, mode_names=("a", "b", "c"), **options)


ENCODED = encode()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def text_of(batch, row):
    """(what precedes the target, the target) as texts, from tokens and mask alone."""
    predicted = batch["tokens"][row, 1:][batch["target_mask"][row]]
    assert predicted[-1] == 0  # the end of sequence is learned
    start = int(np.argmax(batch["target_mask"][row])) + 1
    return Letters().decode(batch["tokens"][row, :start]), Letters().decode(predicted[:-1])


def test_rows_are_prompt_target_eos_padding():
    for batch in train_batches(ENCODED, CONFIG, epochs=2):
        for row in range(6):
            record = RECORDS[batch["index"][row]]
            source, answer = text_of(batch, row)
            assert source == record.source + ">"
            assert Target(answer, "abc"[batch["mode"][row]]) in record.targets
            length = len(source) + len(answer)
            assert batch["target_mask"][row].sum() == len(answer) + 1
            assert not batch["target_mask"][row, length:].any() and not batch["tokens"][row, length:].any()


def test_examples_are_numbered():
    numbers = {
        (r, t): n for n, (r, t) in enumerate((r, t) for r, x in enumerate(RECORDS) for t in range(len(x.targets)))
    }
    assert ENCODED.num_examples == len(numbers) > len(RECORDS)
    for batch in train_batches(ENCODED, CONFIG, epochs=2):
        for row in range(6):
            record, answer = batch["index"][row], text_of(batch, row)[1]
            (target,) = (t for t, target in enumerate(RECORDS[record].targets) if target.text == answer)
            assert batch["example"][row] == numbers[record, target]


def test_array_types_and_few_shapes():
    lengths = set()
    for batch in train_batches(ENCODED, CONFIG, epochs=3):
        length = batch["target_mask"].shape[1]
        lengths.add(length)
        shapes = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
        assert shapes == {
            "tokens": ((6, length + 1), "int32"),
            "target_mask": ((6, length), "bool"),
            "mode": ((6,), "int32"),
            "example": ((6,), "int32"),
            "index": ((6,), "int32"),
        }
        needed = int(np.max(np.nonzero(batch["target_mask"])[1])) + 1
        assert length == min(bucket for bucket in CONFIG.lengths if bucket >= needed)
    assert lengths == set(CONFIG.lengths)


def test_an_epoch_has_each_record_once_and_leaves_out_others_each_time():
    batches = list(train_batches(ENCODED, CONFIG, epochs=3))
    epochs = [np.concatenate([b["index"] for b in batches[16 * e : 16 * (e + 1)]]) for e in range(3)]
    assert len(batches) == 3 * (101 // 6)
    assert all(len(set(epoch)) == len(epoch) == 96 for epoch in epochs)
    left_out = [set(range(101)) - set(epoch) for epoch in epochs]
    assert left_out[0] != left_out[1] != left_out[2]
    assert not np.array_equal(epochs[0], epochs[1])


def test_sorting_within_windows_saves_padding():
    def tokens(window):
        config = BatchConfig(batch_size=6, lengths=(6, 8, 10, 12, 14, 16, 18, 20), seed=3, window=window)
        return sum(batch["tokens"].size for batch in train_batches(ENCODED, config, epochs=4))

    assert tokens(16) < 0.85 * tokens(1)


def test_padding_is_what_the_batches_of_an_epoch_hold():
    masks = [batch["target_mask"] for batch in train_batches(ENCODED, CONFIG, epochs=1)]
    real = sum(np.flatnonzero(row)[-1] + 1 for mask in masks for row in mask)
    assert TrainSchedule(ENCODED.lengths(), CONFIG).padding == pytest.approx(
        1 - real / sum(mask.size for mask in masks)
    )


def test_short_and_long_batches_are_mixed():
    config = BatchConfig(batch_size=6, lengths=tuple(range(1, 25)), window=16)
    lengths = [batch["target_mask"].shape[1] for batch in train_batches(ENCODED, config, epochs=1)]
    assert sorted(lengths) != lengths and sorted(lengths, reverse=True) != lengths


def test_targets_are_drawn_uniformly_anew_in_each_epoch_and_as_a_function_of_the_seed():
    schedule = TrainSchedule([np.array([3, 4])] * 600 + [np.array([3, 4, 5])] * 900, BatchConfig(batch_size=6))
    draws = np.stack([schedule.drawn_targets(epoch) for epoch in range(4)])
    frequency = lambda draws, n: np.bincount(draws.ravel(), minlength=n) / draws.size
    np.testing.assert_allclose(frequency(draws[:, :600], 2), 1 / 2, atol=0.04)
    np.testing.assert_allclose(frequency(draws[:, 600:], 3), 1 / 3, atol=0.04)
    agreement = np.mean(draws[0, :600] == draws[1, :600])
    assert 0.4 < agreement < 0.6
    again = TrainSchedule([np.array([3, 4])] * 1500, BatchConfig(batch_size=6))
    np.testing.assert_array_equal(again.drawn_targets(2)[:600], draws[2, :600])
    other = TrainSchedule([np.array([3, 4])] * 1500, BatchConfig(batch_size=6, seed=1))
    assert not np.array_equal(other.drawn_targets(2)[:600], draws[2, :600])


def test_batches_carry_the_drawn_targets():
    schedule = TrainSchedule(ENCODED.lengths(), CONFIG)
    batches = train_batches(ENCODED, CONFIG, epochs=2)
    for number, batch in enumerate(batches):
        drawn = schedule.drawn_targets(number // 16)
        for index, mode in zip(batch["index"], batch["mode"], strict=True):
            assert RECORDS[index].targets[drawn[index]].mode == "abc"[mode]


def test_seed_decides():
    first = lambda seed: next(train_batches(ENCODED, BatchConfig(batch_size=6, lengths=(24,), seed=seed)))
    assert_same(first(1), first(1))
    assert not np.array_equal(first(1)["index"], first(2)["index"])


@pytest.mark.parametrize("stop", [0, 1, 15, 16, 17, 37, 47])
def test_resumed_batches_are_those_that_would_have_come(stop):
    whole = list(train_batches(ENCODED, CONFIG, epochs=3))
    began = train_batches(ENCODED, CONFIG, epochs=3)
    for _ in range(stop):
        next(began)
    place = json.loads(json.dumps(began.get_state()))
    resumed = train_batches(encode(), CONFIG, epochs=3)
    next(resumed)  # something is already made ahead
    resumed.set_state(place)
    assert resumed.epoch == began.epoch == stop / 16
    rest = list(resumed)
    assert len(rest) == 48 - stop
    for a, b in zip(rest, whole[stop:], strict=True):
        assert_same(a, b)
    assert resumed.get_state()["next_batch"] == 48


def test_place_of_other_batches_is_refused_naming_what_differs():
    place = train_batches(ENCODED, CONFIG).get_state()
    other = BatchConfig(batch_size=6, lengths=(8, 16, 24), seed=4, window=3)
    with pytest.raises(ValueError, match=r"other batches: seed: 3 in the stored position, 4 now$"):
        train_batches(ENCODED, other).set_state(place)
    with pytest.raises(
        ValueError, match="data: 101 records, checksum .* in the stored position, 101 records, checksum .* now"
    ):
        train_batches(encode(make_records(seed=3)), CONFIG).set_state(place)
    with pytest.raises(ValueError, match="kind: train in the stored position, eval now"):
        eval_batches(ENCODED, CONFIG).set_state(place)


def test_processes_share_the_rows_of_each_batch_at_one_length():
    whole = list(train_batches(ENCODED, CONFIG, epochs=1))
    shares = [list(train_batches(ENCODED, CONFIG, epochs=1, process_index=i, process_count=3)) for i in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert_same(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})
    place = train_batches(ENCODED, CONFIG, process_index=0, process_count=3)
    next(place)
    resumed = train_batches(ENCODED, CONFIG, process_index=1, process_count=2)  # another number of processes
    resumed.set_state(place.get_state())
    np.testing.assert_array_equal(next(resumed)["index"], whole[1]["index"][3:])
    with pytest.raises(ValueError, match="batch_size 6 must be divisible by the 4 processes"):
        train_batches(ENCODED, CONFIG, process_index=0, process_count=4)
    with pytest.raises(ValueError, match=r"process_index must be in \[0, process_count=2\), got 2"):
        train_batches(ENCODED, CONFIG, process_index=2, process_count=2)


@pytest.mark.parametrize("processes", [1, 2])
def test_packed_batches_have_the_examples_of_the_others_in_fewer_rows(processes):
    options = dict(epochs=1, process_count=processes)
    of_process = lambda i: list(train_batches(ENCODED, CONFIG, pack=2, process_index=i, **options))
    for batch, *parts in zip(train_batches(ENCODED, CONFIG, epochs=1), *map(of_process, range(processes)), strict=True):
        packed = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        R, here = len(packed["tokens"]), packed["packed"] >= 0
        assert (
            R in (2, 4, 6)
            and packed["tokens"].shape == (R, 25)
            and {len(part["tokens"]) for part in parts} == {R // processes}
        )
        for name in ("mode", "index", "example"):
            np.testing.assert_array_equal(packed[name][here], batch[name][packed["packed"][here]])
        assert here.sum() == 6 and packed["target_mask"].sum() == batch["target_mask"].sum()
        place = [(row, s + 1, n) for row, of_row in enumerate(packed["packed"]) for s, n in enumerate(of_row) if n >= 0]
        for row, text, n in place:
            (at,) = np.nonzero(packed["texts"][row] == text)
            alone = {
                "tokens": packed["tokens"][row : row + 1, at[0] : at[-1] + 2],
                "target_mask": packed["target_mask"][row : row + 1, at[0] : at[-1] + 1],
            }
            assert text_of(alone, 0) == text_of(batch, n)


def test_packed_rows_that_processes_cannot_share():
    with pytest.raises(ValueError, match="pack 2 must be divisible by the 3 processes"):
        train_batches(ENCODED, CONFIG, pack=2, process_count=3)


def test_evaluation_has_every_target_once_and_says_which_rows_fill_up():
    batches = list(eval_batches(ENCODED, CONFIG))
    seen = []
    for batch in batches:
        for row in range(6):
            if batch["index"][row] == NO_RECORD:
                assert not batch["target_mask"][row].any() and batch["mode"][row] == NO_MODE
            else:
                seen.append((int(batch["index"][row]), text_of(batch, row)[1]))
    assert sorted(seen) == sorted((i, target.text) for i, r in enumerate(RECORDS) for target in r.targets)
    filled_up = sum(int((batch["index"] == NO_RECORD).sum()) for batch in batches)
    assert filled_up == -len(seen) % 6 > 0
    lengths = [batch["target_mask"].shape[1] for batch in batches]
    assert lengths == sorted(lengths, reverse=True)


def test_a_jitted_step_compiles_once_a_length():
    traced = []

    @jax.jit
    def step(batch):
        traced.append(batch["tokens"].shape)
        return batch["target_mask"].sum()

    batches = train_batches(ENCODED, CONFIG)
    for _ in range(40):
        step(next(batches))
    assert sorted(traced) == [(6, 9), (6, 17), (6, 25)]


def test_index_is_the_place_among_all_records_when_some_were_dropped(capsys):
    records = [Record("long", "x" * 30, (Target("a", "a"),)), *RECORDS]
    encoded = encode(records, too_long="drop")
    assert "Left out 1 of 102 records" in capsys.readouterr().out
    batch = next(train_batches(encoded, CONFIG))
    assert all(text_of(batch, row)[0] == records[batch["index"][row]].source + ">" for row in range(6))


def test_bad_configurations():
    with pytest.raises(ValueError, match=r"lengths must be positive and ascending, got \(16, 8\)"):
        BatchConfig(lengths=(16, 8))
    with pytest.raises(ValueError, match="batch_size and window must be at least 1"):
        BatchConfig(batch_size=0)
    with pytest.raises(ValueError, match="a batch needs 102 records, got only 101"):
        train_batches(ENCODED, BatchConfig(batch_size=102))
    with pytest.raises(ValueError, match="predicted positions, but the longest batch has 8"):
        train_batches(ENCODED, BatchConfig(batch_size=6, lengths=(8,)))
    with pytest.raises(ValueError, match="epochs must be at least 1 or None, got 0"):
        train_batches(ENCODED, CONFIG, epochs=0)
