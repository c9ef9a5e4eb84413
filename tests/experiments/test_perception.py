"""What a frozen tower makes of pictures and clips: once a record, whatever comes with it, on any number of devices."""

import functools

import jax
import numpy as np
import pytest
from tiny_captions import LLAVA, QWEN, clips_in, pictures_in

import mcl_jax as mcl
from experiments.audio_captioning.audio import Clips
from experiments.common.devices import Axes, mesh_of
from experiments.common.perception import MediaPrompt, Perception
from experiments.image_captioning.images import Pictures
from mcl_jax import data

MODALITIES = {"pictures": (Pictures(), LLAVA, pictures_in), "clips": (Clips(1.0), QWEN, clips_in)}
FEATURES = {"pictures": {"00": 30, "01": 25}, "clips": {"00": 7, "01": 12, "02": 15}}  # of some records


@pytest.fixture(scope="module", params=list(MODALITIES))
def case(request, tmp_path_factory):
    """(make, records, name): make(**options) is a Perception; all share one module, so that it compiles seldom."""
    modality, base, write = MODALITIES[request.param]
    module, params, processor = mcl.models.from_pretrained(base)

    def make(cache=False, mesh=None):
        return Perception(
            module,
            params,
            processor,
            modality.read,
            functools.partial(modality.inputs, processor),
            functools.partial(modality.augment, processor),
            cache,
            mesh,
        )

    return make, data.read_captions(write(tmp_path_factory.mktemp("data") / "mine")).records, request.param


def test_features_are_cached_whatever_they_come_with(case, encoded):
    make, records, _ = case
    plain = make()
    first = np.asarray(plain.features(records[:4]))
    assert encoded == {record.id: 1 for record in records[:4]}
    others = np.asarray(plain.features([records[7], records[2], None, records[6]]))
    np.testing.assert_allclose(others[1], first[2], atol=1e-5)  # not a matter of the rest of the batch
    assert np.abs(first - others).max((1, 2)).min() > 1e-3
    assert encoded[records[2].id] == 2  # without a cache it is run again

    encoded.clear()
    cached = make(cache=True)
    cached._tower = plain._tower
    for chosen in ([0, 1, 2, 3], [7, 2, None, 6], [2, 2, 7, None], [3, 4, 0, 1]):
        found = cached.features([None if i is None else records[i] for i in chosen])
        assert found.shape == first.shape
        for row, i in zip(found, chosen, strict=True):
            if i is None:
                assert not row.any()
            elif i < 4:
                np.testing.assert_allclose(row, first[i], atol=1e-5)
            elif i > 5:
                np.testing.assert_allclose(row, others[{7: 0, 6: 3}[i]], atol=1e-5)
    assert encoded == {records[i].id: 1 for i in (0, 1, 2, 3, 4, 6, 7)}


@pytest.mark.parametrize(
    ("size", "axes"),
    [
        (8, "data=8"),
        (3, "data=4,model=2"),
        pytest.param(3, "data=8", marks=pytest.mark.slow),
        pytest.param(4, "model=8", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_give_the_features_of_one(case, size, axes):
    make, records, _ = case
    assert len(jax.local_devices()) == 8
    rows = (*records[: size - 1], None)
    found = make(mesh=mesh_of(Axes.parse(axes))).features(rows)
    assert found.shape[0] == size
    assert size % 8 or len(found.sharding.device_set) == 8
    expected = np.asarray(make().features(rows))
    # Sums over other blocks round differently, in proportion to their largest terms and not to what is left of them.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_augmentation_changes_the_features_by_its_key(case):
    make, records, _ = case
    perception = make()
    plain, keys = np.asarray(perception.features(records[:2])), jax.random.split(jax.random.key(3), 2)
    found = np.asarray(perception.augmented(records[:2], keys))
    assert found.shape == plain.shape and np.abs(found - plain).max((1, 2)).min() > 1e-3
    np.testing.assert_array_equal(found, perception.augmented(records[:2], keys))
    assert np.abs(found[0] - np.asarray(perception.augmented(records[:2], keys[::-1]))[0]).max() > 1e-3


def test_the_prompt_has_a_placeholder_for_each_feature(case):
    make, records, name = case
    perception = make()
    counts = perception.counts(records)
    assert {file.partition(".")[0]: counts[file] for file in list(counts)[: len(FEATURES[name])]} == FEATURES[name]
    processor = perception.processor
    token, text = processor.placeholder
    rows = perception.inputs([records[0].media.read(), records[1].media.read()])
    given = (rows["index"] >= -1).sum(1) if name == "pictures" else [counts[record.id] for record in records[:2]]
    prompt = MediaPrompt(f"a{text}e:", processor, counts)
    before, after = (processor.tokenizer(part)["input_ids"] for part in ("a", "e:"))
    for record, number in zip(records[:2], given, strict=True):
        assert prompt.encode_record(processor.tokenizer, record).tolist() == [*before, *[token] * number, *after]


def test_a_window_holds_what_a_clip_is_cut_to(tmp_path):
    *_, processor = mcl.models.from_pretrained(QWEN)
    record = data.read_captions(clips_in(tmp_path / "mine")).records[1]
    for seconds, samples, frames, window in ((0.4, 6400, 40, 42), (0.394, 6304, 40, 42), (1.0, 7520, 47, 100)):
        clip = Clips(seconds).read(record)
        inputs = Clips(seconds).inputs(processor, [clip, None])
        assert len(clip) == samples and inputs["mel"].shape == (2, 7, window)
        assert inputs["frames"].tolist() == [frames, 0]
