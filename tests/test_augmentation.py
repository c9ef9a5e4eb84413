"""SpecAugment, flips and crops: what they change, what they leave, and how often, by their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import normal

from mcl_jax import augmentation

B, M, T = 3, 11, 29
REAL = np.array([29, 13, 1])
MASK = np.arange(T)[None] < REAL[:, None]
LOG_MEL = normal((B, M, T), 1) + 3.0
IMAGES = normal((B, 7, 5, 3), 2)
DRAWS = 2000

# Widths up to 4 of 11 bands, and up to 6 frames or half of the clip.
ONE_EACH = {"frequency_masks": 1, "frequency_width": 4, "time_masks": 1, "time_width": 6, "time_share": 0.5}


@functools.cache
def draws(bands=True, stretches=True):
    """[DRAWS, B, M, T]; with only one kind of masks if asked."""
    options = ONE_EACH | ({} if bands else {"frequency_masks": 0}) | ({} if stretches else {"time_masks": 0})
    draw = lambda key: augmentation.independent(augmentation.spec_augment, key, DRAWS, LOG_MEL, MASK, **options)
    return np.asarray(jax.jit(draw)(jax.random.key(1)))


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def runs(changed):
    """Lengths of the changed stretch of each row of [N, size], which must be in one piece."""
    starts = np.diff(np.pad(changed, ((0, 0), (1, 0))).astype(int), axis=1) > 0
    assert starts.sum(1).max() <= 1
    return changed.sum(1)


class TestSpecAugment:
    def test_masked_values_are_the_mean_of_the_real_frames(self):
        out = draws()
        for b in range(B):
            changed = out[:, b] != LOG_MEL[b]
            close(out[:, b][changed], LOG_MEL[b, :, : REAL[b]].mean())
            assert changed.any()
            assert not changed[:, :, REAL[b] :].any()  # padding stays as it is

    def test_bands_are_whole_rows_with_uniform_widths_and_places(self):
        changed = draws(stretches=False)[:, 0] != LOG_MEL[0]
        assert (changed.all(2) == changed.any(2)).all()
        widths = runs(changed[:, :, 0])
        check_uniform(widths, range(5))
        of_three = changed[widths == 3, :, 0]
        check_uniform(of_three.argmax(1), range(M - 3 + 1))

    @pytest.mark.parametrize(("b", "longest"), [(0, 6), (1, 6), (2, 0)])  # half of 29, 13 and 1 frames, at most 6
    def test_stretches_are_whole_columns_inside_the_clip(self, b, longest):
        changed = draws(bands=False)[:, b] != LOG_MEL[b]
        assert (changed.all(1) == changed.any(1)).all()
        widths = runs(changed[:, 0])
        check_uniform(widths, range(longest + 1))
        if longest:
            check_uniform(changed[widths == 5, 0].argmax(1), range(REAL[b] - 5 + 1))

    def test_share_limits_the_stretches_of_short_clips(self):
        draw = lambda key: augmentation.independent(
            augmentation.spec_augment, key, 500, LOG_MEL, MASK, **ONE_EACH | {"frequency_masks": 0, "time_share": 0.25}
        )
        changed = (np.asarray(jax.jit(draw)(jax.random.key(1))) != LOG_MEL)[:, :, 0].sum(2)
        assert changed.max(0).tolist() == [6, 3, 0]

    def test_padding_on_the_left_is_left_alone_too(self):
        """The same draws, moved."""
        draw = jax.jit(lambda x, mask: augmentation.spec_augment(jax.random.key(7), x, mask, **ONE_EACH))
        move = lambda x: np.stack([np.roll(x[b], T - REAL[b], -1) for b in range(B)])
        out = np.asarray(draw(LOG_MEL, MASK))
        close(draw(move(LOG_MEL), move(MASK)), move(out))
        assert (out != LOG_MEL).any((1, 2))[:2].all()

    def test_several_masks_and_the_defaults(self):
        log_mel = normal((1, 128, 600))

        def changed(**options):
            draw = lambda key: augmentation.independent(augmentation.spec_augment, key, 40, log_mel, **options)
            return (np.asarray(jax.jit(draw)(jax.random.key(0))) != log_mel)[:, 0]

        rows, columns = (changed().all(axis) for axis in (2, 1))
        assert 27 < rows.sum(1).max() <= 54
        assert 100 < columns.sum(1).max() <= 200
        assert not changed(frequency_masks=0, time_masks=0).any()

    def test_clip_without_frames(self):
        draw = jax.jit(lambda key: augmentation.spec_augment(key, LOG_MEL, np.zeros((B, T), bool), **ONE_EACH))
        np.testing.assert_array_equal(draw(jax.random.key(0)), LOG_MEL)

    def test_dtype_stays(self):
        out = augmentation.spec_augment(jax.random.key(0), LOG_MEL.astype(jnp.bfloat16), **ONE_EACH)
        assert out.dtype == jnp.bfloat16

    @pytest.mark.parametrize("options", [{"frequency_width": 12}, {"time_width": -1}, {"time_share": 1.5}])
    def test_refused(self, options):
        with pytest.raises(ValueError, match=r"frequency_width in \[0, 11\] mel bands.*got.*(12|-1|1.5)"):
            augmentation.spec_augment(jax.random.key(0), LOG_MEL, **{"frequency_width": 4} | options)


def check_uniform(values, support):
    """Every value of the support, and no other, at a frequency within 4.5 standard errors."""
    assert set(np.unique(values)) <= set(support)
    share = 1 / len(support)
    error = np.sqrt(share * (1 - share) / len(values)) + 1e-9
    frequencies = np.array([(values == value).mean() for value in support])
    assert (np.abs(frequencies - share) < 4.5 * error).all(), frequencies


class TestKeys:
    @pytest.mark.parametrize(
        ("augment", "x"),
        [
            (functools.partial(augmentation.spec_augment, **ONE_EACH), LOG_MEL),
            (augmentation.horizontal_flip, IMAGES),
            (augmentation.random_resized_crop, IMAGES),
        ],
        ids=["spec", "flip", "crop"],
    )
    def test_same_key_same_draw_and_all_else_differs(self, augment, x):
        """Draws, keys and the examples of a batch, which are alike here."""
        alike = np.broadcast_to(x[:1], x.shape)
        call = jax.jit(lambda key: augmentation.independent(augment, key, 16, alike))
        out = np.asarray(call(jax.random.key(3)))
        assert out.shape == (16, *x.shape)
        np.testing.assert_array_equal(call(jax.random.key(3)), out)
        assert (np.asarray(call(jax.random.key(4))) != out).any()
        assert (out[1:] != out[:1]).any()
        assert (out[:, 1:] != out[:, :1]).any()


class TestImages:
    def test_flips_mirror_whole_pictures_with_the_probability(self):
        draw = lambda key: augmentation.independent(augmentation.horizontal_flip, key, DRAWS, IMAGES, probability=0.3)
        out = np.asarray(jax.jit(draw)(jax.random.key(1)))
        flipped, kept = ((out == x).all((2, 3, 4)) for x in (IMAGES[:, :, ::-1], IMAGES))
        assert (flipped ^ kept).all()
        assert np.abs(flipped.mean(0) - 0.3).max() < 4.5 * np.sqrt(0.3 * 0.7 / DRAWS)
        together = (flipped[:, 0] & flipped[:, 1]).mean()  # each picture on its own
        assert abs(together - 0.09) < 4.5 * np.sqrt(0.09 * 0.91 / DRAWS)

    def test_the_whole_picture_is_itself(self):
        options = {"area": (1.0, 1.0), "aspect_ratio": (5 / 7, 5 / 7)}
        crop = jax.jit(lambda key: augmentation.random_resized_crop(key, IMAGES, **options))
        close(crop(jax.random.key(0)), IMAGES)

    def test_a_crop_is_a_rectangle_enlarged(self):
        """Of a picture whose colours are its coordinates, so that a crop says where each pixel came from."""
        H, W = 40, 60
        rows, columns = np.meshgrid(np.arange(H) + 0.5, np.arange(W) + 0.5, indexing="ij")
        picture = np.stack([rows, columns, rows + columns], -1).astype(np.float32)[None]
        draw = lambda key: augmentation.independent(
            augmentation.random_resized_crop, key, 500, picture, area=(0.25, 0.5), aspect_ratio=(0.8, 1.25)
        )
        out = np.asarray(jax.jit(draw)(jax.random.key(1)))[:, 0]
        inner = out[:, 2:-2, 2:-2]  # the outermost may look across the picture's edge
        step = np.stack([np.diff(inner[..., 0], axis=1).mean((1, 2)), np.diff(inner[..., 1], axis=2).mean((1, 2))], -1)
        close(np.diff(inner[..., 0], axis=1), np.broadcast_to(step[:, :1, None], (500, H - 5, W - 4)), 1e-3)
        close(np.diff(inner[..., 1], axis=2), np.broadcast_to(step[:, 1:, None], (500, H - 4, W - 5)), 1e-3)
        close(inner[..., 2], inner[..., 0] + inner[..., 1], 1e-3)
        crop = step * [H, W]
        share, ratio = crop.prod(1) / (H * W), crop[:, 1] / crop[:, 0]
        corner = inner[:, 0, 0, :2] - 2.5 * step
        assert (corner > -0.01).all() and (corner + crop < [H + 0.01, W + 0.01]).all()
        spread_over(share, 0.25, 0.5)
        spread_over(np.log(ratio), np.log(0.8), np.log(1.25))
        for axis, size in enumerate((H, W)):
            spread_over(corner[:, axis] / (size - crop[:, axis]), 0.0, 1.0)

    def test_a_side_longer_than_the_picture_is_cut(self):
        options = {"area": (1.0, 1.0), "aspect_ratio": (3.0, 3.0)}
        out = jax.jit(lambda key: augmentation.random_resized_crop(key, IMAGES, **options))(jax.random.key(0))
        assert out.shape == IMAGES.shape
        assert np.isfinite(out).all()
        assert (np.ptp(np.asarray(out), axis=1) < np.ptp(IMAGES, axis=1) + 1e-5).all()

    @pytest.mark.parametrize(
        "options", [{"area": (0.0, 1.0)}, {"area": (0.5, 1.1)}, {"area": (0.6, 0.5)}, {"aspect_ratio": (2.0, 1.0)}]
    )
    def test_refused(self, options):
        with pytest.raises(ValueError, match=r"needs 0 < area\[0\].*got"):
            augmentation.random_resized_crop(jax.random.key(0), IMAGES, **options)


class TestKindsOfInputs:
    @pytest.mark.parametrize(
        ("log_mel", "mask", "message"),
        [
            (LOG_MEL[0], None, r"log_mel \[B, M, T\] of floats, got float32\[11, 29\]"),
            (LOG_MEL[None], None, r"of floats, got float32\[1, 3, 11, 29\]"),
            (LOG_MEL.astype(np.int16), None, r"of floats, got int16\[3, 11, 29\]"),
            (LOG_MEL, MASK[:1], r"a mask \[3, 29\], got \[1, 29\]"),
            (LOG_MEL, REAL, r"a mask \[3, 29\], got \[3\]"),
        ],
    )
    def test_spectrograms(self, log_mel, mask, message):
        with pytest.raises(ValueError, match=message):
            augmentation.spec_augment(jax.random.key(0), log_mel, mask, **ONE_EACH)

    @pytest.mark.parametrize("augment", [augmentation.horizontal_flip, augmentation.random_resized_crop])
    @pytest.mark.parametrize("shape", [(7, 5, 3), (2, 3, 7, 5), (2, 1, 7, 5), (2, 4, 7, 5), (2, 2, 7, 5, 3)])
    def test_pictures(self, augment, shape):
        name = augment.__name__
        with pytest.raises(ValueError, match=rf"{name} needs images \[B, H, W, C\], channels last, got \[{shape[0]}, "):
            augment(jax.random.key(0), np.zeros(shape, np.float32))

    def test_crops_need_floats_and_flips_do_not(self):
        whole = np.arange(2 * 7 * 5 * 3, dtype=np.uint8).reshape(2, 7, 5, 3)
        flipped = augmentation.horizontal_flip(jax.random.key(0), whole, probability=1.0)
        np.testing.assert_array_equal(flipped, whole[:, :, ::-1])
        with pytest.raises(ValueError, match=r"images \[B, H, W, C\] of floats, got uint8\[2, 7, 5, 3\]"):
            augmentation.random_resized_crop(jax.random.key(0), whole)


def spread_over(values, low, high):
    """Uniform over [low, high]: inside, and quartiles within 4.5 standard errors."""
    assert low - 0.01 < values.min() and values.max() < high + 0.01
    quartiles = (np.quantile(values, [0.25, 0.5, 0.75]) - low) / (high - low)
    assert np.abs(quartiles - [0.25, 0.5, 0.75]).max() < 4.5 * 0.5 / np.sqrt(len(values))
