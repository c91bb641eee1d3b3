# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The sums against loops over voxels in exact arithmetic, their addition, their limits."""

from __future__ import annotations

import io
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy import ndimage

from dacal_med.core import statistics as module
from dacal_med.core.ranking import RANK_BINS, rank_bin
from dacal_med.core.statistics import FINE_BINS, REGIONS, SegmentationStatistics

SIZES = {2: (7, 6), 3: (4, 5, 3)}
IGNORED = 255
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COUNTS = [
    *("confusion", "confidence_count", "confidence_correct", "class_count", "class_positive", "voxel_count"),
    *("rank_count", "rank_positive"),
]
LATER = {"rank_count", "rank_positive"}
SUMS = ["confidence_sum", "class_sum", "nll_sum", "brier_sum"]


def problem(
    seed: int, dims: int, classes: int = 3, dtype=torch.float32, batch: int = 2, ignored: float = 0.2, size=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and labels in patches, so that voxels inside, near and at boundaries exist."""
    g = torch.Generator().manual_seed(seed)
    size = SIZES[dims] if size is None else size
    probabilities = (3 * torch.randn(batch, classes, *size, generator=g, dtype=torch.float64)).softmax(1).to(dtype)
    coarse = torch.randint(0, classes, (batch, 1, *[math.ceil(n / 3) for n in size]), generator=g)
    for axis, n in enumerate(size, start=2):
        coarse = coarse.repeat_interleave(3, dim=axis).narrow(axis, 0, n)
    return probabilities, coarse.masked_fill(torch.rand(coarse.shape, generator=g) < ignored, IGNORED)


def statistics_of(*batches, **options) -> SegmentationStatistics:
    result = SegmentationStatistics(batches[0][0].shape[1], **options)
    for probabilities, labels in batches:
        result.update(probabilities, labels)
    return result


def assert_same(found: SegmentationStatistics, wanted: SegmentationStatistics, rtol: float = 1e-12) -> None:
    """Counts equal, sums equal up to the order of addition."""
    for name in COUNTS:
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    for name in SUMS:
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=rtol, atol=1e-12)


def exact_bin(p: float) -> int:
    """The bin ``(k/30, (k+1)/30]``, 0 in the first, in rational arithmetic."""
    return min(max(math.ceil(Fraction(p) * FINE_BINS) - 1, 0), FINE_BINS - 1)


def naive_band(truth: np.ndarray, width: int, ignore_index: int | None) -> np.ndarray:
    """Whether two different labels lie within ``width`` voxels along every axis, by a loop."""
    band = np.zeros(truth.shape, dtype=bool)
    for index in itertools.product(*map(range, truth.shape)):
        window = truth[tuple(slice(max(0, i - width), i + width + 1) for i in index)]
        band[index] = len(set(window.ravel().tolist()) - {ignore_index}) > 1
    return band


def naive(probabilities, labels, ignore_index=IGNORED, background=0, boundary_width=2) -> dict[str, np.ndarray]:
    """Every sum by a loop over voxels."""
    classes = probabilities.shape[1]
    tiny = torch.finfo(probabilities.dtype).tiny
    p, y = probabilities.double().numpy(), labels[:, 0].numpy()
    sums = {
        "confusion": np.zeros((classes, classes), dtype=np.int64),
        **{f"confidence_{kind}": np.zeros((3, FINE_BINS)) for kind in ("count", "correct", "sum")},
        **{f"class_{kind}": np.zeros((classes, FINE_BINS)) for kind in ("count", "positive", "sum")},
        **{f"rank_{kind}": np.zeros((classes, RANK_BINS)) for kind in ("count", "positive")},
        **{name: np.zeros((3, classes)) for name in ("nll_sum", "brier_sum", "voxel_count")},
    }
    for image, truth in zip(p, y, strict=True):
        band = naive_band(truth, boundary_width, ignore_index)
        for index in np.ndindex(truth.shape):
            t, q = int(truth[index]), image[(slice(None), *index)].tolist()
            if t == ignore_index:
                continue
            guess = q.index(max(q))
            regions = [True, background is None or t != background or guess != background, band[index]]
            sums["confusion"][t, guess] += 1
            for k, value in enumerate(q):
                sums["class_count"][k, exact_bin(value)] += 1
                sums["class_positive"][k, exact_bin(value)] += t == k
                sums["class_sum"][k, exact_bin(value)] += value
                rank = int(rank_bin(torch.tensor(value, dtype=torch.float64)))
                sums["rank_count"][k, rank] += 1
                sums["rank_positive"][k, rank] += t == k
            for row, inside in enumerate(regions):
                if inside:
                    sums["confidence_count"][row, exact_bin(q[guess])] += 1
                    sums["confidence_correct"][row, exact_bin(q[guess])] += guess == t
                    sums["confidence_sum"][row, exact_bin(q[guess])] += q[guess]
                    sums["nll_sum"][row, t] -= math.log(max(q[t], tiny))
                    sums["brier_sum"][row, t] += sum((value - (k == t)) ** 2 for k, value in enumerate(q))
                    sums["voxel_count"][row, t] += 1
    return sums


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    size=st.lists(st.integers(1, 6), min_size=1, max_size=3).filter(lambda s: math.prod(s) <= 80),
    classes=st.integers(2, 4),
    background=st.sampled_from([0, 1, None]),
    width=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
)
def test_sums_equal_a_loop_over_voxels(seed, size, classes, background, width, dtype):
    probabilities, labels = problem(seed, len(size), classes, dtype, size=size)
    options = {"background": background, "boundary_width": width}
    found = statistics_of((probabilities, labels), **options)
    for name, wanted in naive(probabilities, labels, **options).items():
        value = getattr(found, name)
        assert value.dtype == (torch.float64 if name in SUMS else torch.int64), name
        if name in SUMS:
            assert np.allclose(value.numpy(), wanted, rtol=1e-11, atol=1e-12), name
        else:
            assert np.array_equal(value.numpy(), wanted), name


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_an_example_of_both_dimensions(dims, dtype):
    """The same without chance, with all regions filled."""
    probabilities, labels = problem(1, dims, 3, dtype, size=(7, 6, 7)[:dims])
    found = statistics_of((probabilities, labels), boundary_width=1)
    assert (found.voxel_count > 0).all()
    assert (found.voxel_count[0] > found.voxel_count[2]).all()
    for name, wanted in naive(probabilities, labels, boundary_width=1).items():
        assert np.allclose(getattr(found, name).numpy(), wanted, rtol=1e-11, atol=1e-12), name


def test_one_voxel_by_hand():
    found = statistics_of((torch.tensor([[[[0.75]], [[0.25]]]]), torch.tensor([[[[1]]]])), boundary_width=2)
    assert found.confusion.tolist() == [[0, 0], [1, 0]]
    wanted = torch.zeros(3, FINE_BINS, dtype=torch.float64)
    wanted[:2, 22] = 1  # 22.5 / 30, in all and foreground; one voxel has no boundary
    assert torch.equal(found.confidence_count.double(), wanted)
    assert not found.confidence_correct.any()
    assert torch.equal(found.confidence_sum, 0.75 * wanted)
    assert found.class_count.nonzero().tolist() == [[0, 22], [1, 7]]
    assert found.class_positive.nonzero().tolist() == [[1, 7]]
    assert found.class_sum[[0, 1], [22, 7]].tolist() == [0.75, 0.25]
    assert found.voxel_count.tolist() == [[0, 1], [0, 1], [0, 0]]
    assert found.nll_sum[:, 1].tolist() == [math.log(4), math.log(4), 0]
    assert found.brier_sum[:, 1].tolist() == [1.125, 1.125, 0]


@pytest.mark.parametrize("dims", [2, 3])
def test_certainty_and_impossibility(dims):
    """Probability 0 and 1: the outermost bins, a finite log-likelihood."""
    probabilities = torch.zeros(1, 2, *SIZES[dims])
    probabilities[:, 0] = 1.0
    labels = torch.ones(1, 1, *SIZES[dims], dtype=torch.long)
    found, voxels = statistics_of((probabilities, labels)), math.prod(SIZES[dims])
    assert found.confidence_count[0, -1] == found.class_count[0, -1] == found.class_count[1, 0] == voxels
    assert found.nll_sum[0, 1].item() == pytest.approx(-voxels * math.log(torch.finfo(torch.float32).tiny))
    assert found.brier_sum[0, 1].item() == 2 * voxels


@pytest.mark.parametrize("k", range(1, FINE_BINS + 1))
def test_edges_belong_to_the_bin_below(k):
    """``k / 30`` in float64 falls into ``((k - 1) / 30, k / 30]``, its neighbours to either side of the edge."""
    edge = k / FINE_BINS
    values = [math.nextafter(edge, 0), edge, *([math.nextafter(edge, 1)] if k < FINE_BINS else [])]
    first = torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)
    found = statistics_of((torch.cat([first, 1 - first], 1), torch.zeros(1, 1, 1, len(values))))
    wanted = torch.zeros(FINE_BINS, dtype=torch.int64)
    wanted[k - 1] = 2
    if k < FINE_BINS:
        wanted[k] = 1
    assert torch.equal(found.class_count[0], wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_edges_that_every_dtype_holds(dtype):
    probabilities = torch.tensor([[[[0.0, 0.5, 1.0]], [[1.0, 0.5, 0.0]]]], dtype=dtype)
    found = statistics_of((probabilities, torch.zeros(1, 1, 1, 3)))
    for row in found.class_count:
        assert row.nonzero().flatten().tolist() == [0, 14, 29]
        assert int(row.sum()) == 3


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), dtype=st.sampled_from(DTYPES))
def test_bins_are_exact_for_any_number(values, dtype):
    first = torch.tensor(values, dtype=torch.float64).to(dtype).view(1, 1, 1, -1)
    probabilities = torch.cat([first, (1 - first.double()).to(dtype)], 1)
    found = statistics_of((probabilities, torch.zeros(1, 1, 1, len(values))))
    for row, p in zip(found.class_count, probabilities[0].flatten(1), strict=True):
        wanted = np.bincount([exact_bin(v) for v in p.tolist()], minlength=FINE_BINS)
        assert row.tolist() == wanted.tolist()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), classes=st.integers(2, 5))
def test_the_sums_agree_with_each_other(seed, dims, classes):
    probabilities, labels = problem(seed, dims, classes)
    found = statistics_of((probabilities, labels))
    voxels = int((labels != IGNORED).sum())
    assert int(found.confusion.sum()) == voxels
    assert torch.equal(found.confusion.sum(1), found.voxel_count[0])
    assert torch.equal(found.class_count.sum(1), torch.full((classes,), voxels))
    assert torch.equal(found.class_positive.sum(1), found.voxel_count[0])
    assert torch.equal(found.confidence_count.sum(1), found.voxel_count.sum(1))
    assert int(found.confidence_correct[0].sum()) == int(found.confusion.diagonal().sum())
    # Sums over classes of probabilities count voxels, and background lies outside the foreground.
    assert found.class_sum.sum().item() == pytest.approx(voxels, rel=1e-5)
    assert int(found.voxel_count[1].sum()) == voxels - int(found.confusion[0, 0])
    edges = torch.arange(FINE_BINS + 1, dtype=torch.float64) / FINE_BINS
    for sums, counts in ((found.confidence_sum, found.confidence_count), (found.class_sum, found.class_count)):
        assert (sums <= counts * edges[1:] + 1e-9).all()
        assert (sums >= counts * edges[:-1] - 1e-9).all()


# Regions


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_boundary_band_equals_scipy(width, dims):
    """Labels are near a change where the highest within the window is above the lowest."""
    probabilities, labels = problem(2, dims, 4, ignored=0.0, batch=3, size=(16, 12, 9)[:dims])
    array = labels[:, 0].numpy()
    size = (1, *[2 * width + 1] * dims)
    high = ndimage.maximum_filter(array, size=size, mode="nearest")
    band = high > ndimage.minimum_filter(array, size=size, mode="nearest")
    found = statistics_of((probabilities, labels), boundary_width=width)
    wanted = [int((band & (array == k)).sum()) for k in range(4)]
    assert found.voxel_count[2].tolist() == wanted
    assert width > 1 or 0 < sum(wanted) < array.size


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("width", [0, 1, 2])
def test_the_band_reaches_the_width_to_either_side(width, dims):
    labels = torch.zeros(1, 1, *(10, 4, 3)[:dims], dtype=torch.long)
    labels[:, :, 5:] = 1
    probabilities = torch.full((1, 2, *labels.shape[2:]), 0.5)
    found = statistics_of((probabilities, labels), boundary_width=width)
    slab = math.prod(labels.shape[3:])
    assert found.voxel_count[2].tolist() == [width * slab, width * slab]


@pytest.mark.parametrize("dims", [2, 3])
def test_a_change_to_ignored_is_no_boundary(dims):
    labels = torch.ones(1, 1, *(10, 4, 3)[:dims], dtype=torch.long)
    labels[:, :, 4:6] = IGNORED
    probabilities = torch.full((1, 3, *labels.shape[2:]), 1 / 3)
    assert not statistics_of((probabilities, labels), boundary_width=3).voxel_count[2].any()
    # Between two labels, a gap of two ignored voxels is part of the distance.
    labels[:, :, 6:] = 2
    found = [statistics_of((probabilities, labels), boundary_width=w).voxel_count[2] for w in (2, 3)]
    slab = math.prod(labels.shape[3:])
    assert found[0].tolist() == [0, 0, 0]
    assert found[1].tolist() == [0, slab, slab]


@pytest.mark.parametrize("dims", [2, 3])
def test_boundaries_do_not_reach_into_other_images(dims):
    labels = torch.arange(2).view(2, 1, *[1] * dims).expand(2, 1, *SIZES[dims])
    found = statistics_of((torch.full((2, 2, *SIZES[dims]), 0.5), labels))
    assert found.voxel_count[0].tolist() == [math.prod(SIZES[dims])] * 2
    assert not found.voxel_count[2].any()


def test_foreground_is_truth_or_prediction():
    probabilities = torch.tensor([[[[0.9, 0.2, 0.9, 0.2]], [[0.1, 0.8, 0.1, 0.8]]]])
    labels = torch.tensor([[[[0, 0, 1, 1]]]])
    for background, wanted in ((0, [1, 2]), (1, [2, 1]), (None, [2, 2])):
        assert statistics_of((probabilities, labels), background=background).voxel_count[1].tolist() == wanted
    assert REGIONS == ("all", "foreground", "boundary")


# Ignored labels


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]))
def test_ignored_voxels_have_no_say(seed, dims):
    probabilities, labels = problem(seed, dims)
    other, _ = problem(seed + 1, dims)
    changed = torch.where(labels == IGNORED, other, probabilities)
    assert_same(statistics_of((changed, labels)), statistics_of((probabilities, labels)), rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_any_label_may_be_ignored(dims):
    probabilities, labels = problem(3, dims)
    wanted = statistics_of((probabilities, labels))
    assert_same(statistics_of((probabilities, torch.where(labels == IGNORED, -1, labels)), ignore_index=-1), wanted)
    # A class of the network may be the one: what it is in truth is left out, not what is predicted.
    without = statistics_of((probabilities, labels.masked_fill(labels == IGNORED, 2)), ignore_index=2)
    assert without.voxel_count[0].tolist() == [*wanted.voxel_count[0, :2].tolist(), 0]
    assert torch.equal(without.confusion[:2], wanted.confusion[:2])
    assert int(without.confusion[:2, 2].sum()) > 0
    assert not without.confusion[2].any()


@pytest.mark.parametrize("dims", [2, 3])
def test_an_image_of_ignored_voxels_adds_nothing(dims):
    probabilities, labels = problem(4, dims)
    found = statistics_of((probabilities, torch.full_like(labels, IGNORED)))
    assert not any(tensor.any() for tensor in found.tensors())


# Sums add up


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4)
)
def test_sums_of_parts_are_those_of_the_whole(seed, dims, sizes):
    probabilities, labels = problem(seed, dims, batch=sum(sizes))
    parts = list(zip(probabilities.split(sizes), labels.split(sizes), strict=True))
    whole = statistics_of((probabilities, labels))
    assert_same(statistics_of(*parts), whole)
    total = SegmentationStatistics(3)
    for part in parts:
        before, one = total.copy(), statistics_of(part)
        both = total + one
        assert_same(total, before, rtol=0)
        assert_same(one + total, both)
        total += one
        assert_same(total, both, rtol=0)
    assert_same(total, whole)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), chunk=st.integers(1, 50))
def test_chunks_change_nothing(seed, dims, chunk):
    probabilities, labels = problem(seed, dims)
    wanted = statistics_of((probabilities, labels))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        found = statistics_of((probabilities, labels))
    assert_same(found, wanted)


def test_an_image_above_the_chunk_is_cut(monkeypatch):
    seen = []
    sums_of = SegmentationStatistics._sums_of

    def spy(self, p, truth, near):
        seen.append((p.shape[1], len(truth), len(near)))
        return sums_of(self, p, truth, near)

    monkeypatch.setattr(SegmentationStatistics, "_sums_of", spy)
    monkeypatch.setattr(module, "_CHUNK", 16)
    statistics_of(problem(0, 2))
    assert sorted(seen) == sorted([(n, n, n) for n in (16, 16, 10)] * 2)  # threads take them in any order


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_threads_changes_no_bit(monkeypatch, dtype):
    probabilities, labels = problem(0, 3)
    monkeypatch.setattr(module, "_CHUNK", 16)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(statistics_of((probabilities.to(dtype).softmax(1), labels)))
    assert_same(found[1], found[0], rtol=0)
    assert_same(found[2], found[0], rtol=0)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_bad_last_part_adds_nothing(monkeypatch, threads):
    probabilities, labels = problem(0, 2)
    statistics = statistics_of((probabilities, labels))
    before = statistics.copy()
    probabilities = probabilities.clone()
    probabilities.view(-1)[-1] = math.nan
    monkeypatch.setattr(module, "_CHUNK", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with pytest.raises(ValueError, match="found values from nan"):
        statistics.update(probabilities, labels)
    assert_same(statistics, before, rtol=0)


def test_probabilities_of_ignored_voxels_are_checked():
    probabilities, labels = problem(0, 2, ignored=0.0)
    labels = labels.clone()
    labels.view(-1)[-1] = IGNORED
    probabilities = probabilities.clone()
    probabilities.view(-1)[-1] = 2.0
    with pytest.raises(ValueError, match=r"to 2.0, wanted 0 to 1"):
        SegmentationStatistics(3).update(probabilities, labels)


def test_statistics_with_other_settings_do_not_add():
    mine = statistics_of(problem(0, 2))
    before = mine.copy()
    for options in ({"ignore_index": None}, {"background": None}, {"background": 1}, {"boundary_width": 1}):
        other = SegmentationStatistics(3, **options)
        assert other.settings() != mine.settings()
        with pytest.raises(ValueError, match="cannot add statistics with other settings"):
            mine += other
        with pytest.raises(ValueError, match="cannot add statistics with other settings"):
            _ = mine + other
    with pytest.raises(ValueError, match="cannot add statistics with other settings"):
        mine += SegmentationStatistics(4)
    assert_same(mine, before, rtol=0)


@pytest.mark.parametrize("options", [{}, {"ignore_index": None, "background": None, "boundary_width": 0}])
def test_a_copy_is_independent(options):
    batch = problem(0, 2, ignored=0.0)
    mine = statistics_of(batch, **options)
    other = mine.copy()
    assert other.settings() == mine.settings()
    assert_same(other, mine, rtol=0)
    other.update(*batch)
    assert_same(other, mine + mine, rtol=0)
    assert int(other.voxel_count[0].sum()) == 2 * int(mine.voxel_count[0].sum()) > 0


def test_tensors_can_be_added_in_place():
    mine = statistics_of(problem(0, 2))
    wanted = mine + mine
    for tensor in mine.tensors():
        tensor *= 2  # as a sum over ranks does
    assert_same(mine, wanted, rtol=0)
    assert len(mine.tensors()) == len(COUNTS) + len(SUMS)


# States


@pytest.mark.parametrize("dims", [2, 3])
def test_a_state_goes_through_a_file(dims):
    batch, more = problem(0, dims), problem(1, dims)
    mine = statistics_of(batch)
    file = io.BytesIO()
    torch.save(mine.state_dict(), file)
    file.seek(0)
    other = SegmentationStatistics(3)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same(other, mine, rtol=0)
    other.update(*more)
    assert_same(other, statistics_of(batch, more), rtol=0)


def test_a_state_shares_no_memory():
    mine = statistics_of(problem(0, 2))
    before = mine.copy()
    state = mine.state_dict()
    other = SegmentationStatistics(3)
    other.load_state_dict(state)
    for value in state.values():
        value.fill_(7)
    assert_same(mine, before, rtol=0)
    assert_same(other, before, rtol=0)
    other.update(*problem(1, 2))
    assert (state["confusion"] == 7).all()


def test_states_of_earlier_versions_load_without_ranks():
    mine = statistics_of(problem(0, 2))
    old = {name: value for name, value in mine.state_dict().items() if name not in LATER}
    other = statistics_of(problem(1, 2))
    other.load_state_dict(old)
    for name in COUNTS + SUMS:
        wanted = torch.zeros_like(getattr(mine, name)) if name in LATER else getattr(mine, name)
        assert torch.equal(getattr(other, name), wanted), name
    other.update(*problem(1, 2))
    assert int(other.rank_count.sum()) < int(other.class_count.sum())


@pytest.mark.parametrize("name", COUNTS + SUMS)
def test_states_that_do_not_fit_are_refused_whole(name):
    mine = statistics_of(problem(0, 2))
    before = mine.copy()
    state = {key: value + 1 for key, value in mine.state_dict().items()}
    with pytest.raises(ValueError, match=rf"{name}: found \(2, 2\), wanted"):
        mine.load_state_dict({**state, name: torch.zeros(2, 2)})
    del state[name]
    with pytest.raises(ValueError, match=f"{name}: found nothing, wanted"):
        mine.load_state_dict(state)
    assert_same(mine, before, rtol=0)


# Wrong input


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, y: (p.log(), y), r"wanted 0 to 1 \(softmax first\)"),
        (lambda p, y: (-p, y), r"wanted 0 to 1 \(softmax first\)"),
        (lambda p, y: (p.index_fill(1, torch.tensor([0]), math.nan), y), r"wanted 0 to 1 \(softmax first\)"),
        (lambda p, y: (p.index_fill(1, torch.tensor([0]), math.inf), y), r"wanted 0 to 1 \(softmax first\)"),
        (lambda p, y: (p.index_fill(1, torch.tensor([0]), 1.01), y), r"wanted 0 to 1 \(softmax first\)"),
        (lambda p, y: (p * 0.99, y), "off by 0.01, wanted 1"),
        (lambda p, y: (p.sigmoid(), y), "found sums over classes off by"),
        (lambda p, y: (p.round().long(), y), "found dtype torch.int64, wanted floating point"),
        (lambda p, y: (p[:, :2], y), "wanted .B, 3, .spatial. and"),
        (lambda p, y: (p, y[:, 0]), "wanted .B, 3, .spatial. and"),
        (lambda p, y: (p, y.expand(-1, 3, *y.shape[2:])), "wanted .B, 3, .spatial. and"),
        (lambda p, y: (p, y[:1]), "wanted .B, 3, .spatial. and"),
        (lambda p, y: (p, y[..., :-1]), "wanted .B, 3, .spatial. and"),
        (lambda p, y: (p.flatten(2)[..., 0], y.flatten(2)[..., 0]), "wanted .B, 3, .spatial. and"),
        (lambda p, y: (p, torch.where(y == 1, 3, y)), r"labels: found \[3\], wanted 0 to 2 or 255"),
        (lambda p, y: (p, torch.where(y == 1, -1, y)), r"labels: found \[-1\], wanted 0 to 2 or 255"),
    ],
)
def test_wrong_input_adds_nothing(wrong, message, dims):
    probabilities, labels = problem(6, dims)
    found = statistics_of((probabilities, labels))
    before = found.copy()
    with pytest.raises(ValueError, match=message):
        found.update(*wrong(probabilities, labels))
    assert_same(found, before, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_one_wrong_voxel_in_the_last_image_adds_nothing(dims):
    """What is wrong is found before the images before it are added."""
    probabilities, labels = problem(7, dims)
    found = SegmentationStatistics(3)
    for value in (math.nan, 2.0, -0.5):
        wrong = probabilities.clone()
        wrong[-1, 0].view(-1)[-1] = value
        with pytest.raises(ValueError, match="wanted 0 to 1"):
            found.update(wrong, labels)
    wrong = labels.clone()
    wrong[-1].view(-1)[-1] = 3
    with pytest.raises(ValueError, match="labels: found"):
        found.update(probabilities, wrong)
    assert not any(tensor.any() for tensor in found.tensors())


def test_without_ignore_index_every_label_must_be_a_class():
    probabilities, labels = problem(0, 2)
    with pytest.raises(ValueError, match=r"labels: found \[255\], wanted 0 to 2$"):
        statistics_of((probabilities, labels), ignore_index=None)
    kept = labels.masked_fill(labels == IGNORED, 1)
    assert_same(statistics_of((probabilities, kept), ignore_index=None), statistics_of((probabilities, kept)), rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("empty", ["batch", "space"])
def test_no_voxels_add_nothing(empty, dims):
    probabilities, labels = problem(0, dims)
    found = statistics_of((probabilities, labels))
    before = found.copy()
    cut = (lambda x: x[:0]) if empty == "batch" else (lambda x: x[..., :0])
    found.update(cut(probabilities), cut(labels))
    assert_same(found, before, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_of_low_precision_is_tolerated(dtype):
    """Sums of rounded probabilities differ from 1 by more than float32's would."""
    probabilities, labels = problem(0, 3, 12, dtype, batch=8)
    error = (probabilities.float().sum(1) - 1).abs().max()
    assert error > 1e-4
    assert int(statistics_of((probabilities, labels)).voxel_count[0].sum()) == int((labels != IGNORED).sum())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_labels_of_any_dtype(dtype):
    probabilities, labels = problem(0, 2)
    found = statistics_of((probabilities, labels.to(dtype)))
    assert_same(found, statistics_of((probabilities, labels)), rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_metatensors_become_plain(dims):
    probabilities, labels = problem(0, dims)
    found = statistics_of((MetaTensor(probabilities), MetaTensor(labels)))
    assert_same(found, statistics_of((probabilities, labels)), rtol=0)
    assert all(type(tensor) is torch.Tensor for tensor in found.tensors())


def test_inputs_and_graphs_are_left_alone():
    probabilities, labels = problem(0, 2)
    kept = probabilities.clone(), labels.clone()
    found = statistics_of((probabilities.requires_grad_(True), labels))
    assert torch.equal(probabilities, kept[0])
    assert torch.equal(labels, kept[1])
    assert not any(tensor.requires_grad for tensor in found.tensors())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "found num_classes=1"),
        ({"boundary_width": -1}, "boundary_width=-1"),
        ({"background": 3}, "background: found 3, wanted a class below 3 or None"),
        ({"background": -1}, "background: found -1"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationStatistics(**{"num_classes": 3, **options})


# More voxels than float32 can count


def test_one_voxel_counts_after_2_to_the_24():
    """Float32 counters stop at 2^24; these do not."""
    many = 2**24
    assert torch.tensor(float(many)) + 1 == many
    full = SegmentationStatistics(2)
    full.load_state_dict({name: torch.full_like(value, many) for name, value in full.state_dict().items()})
    one = (torch.tensor([[[[0.25]], [[0.75]]]]), torch.tensor([[[[1]]]]))
    alone = statistics_of(one)
    wanted = {name: many + value for name, value in alone.state_dict().items()}
    added = full + alone
    full.update(*one)
    for found in (full, added):
        for name, value in wanted.items():
            assert torch.equal(getattr(found, name), value), name
    assert full.confusion.tolist() == [[many, many], [many, many + 1]]
    assert full.confidence_count[0, 22] == full.confidence_correct[0, 22] == many + 1
    assert full.confidence_sum[0, 22].item() == many + 0.75
    assert full.class_sum[:, [7, 22]].tolist() == [[many + 0.25, many], [many, many + 0.75]]
    assert full.brier_sum[0].tolist() == [many, many + 0.125]


def test_counts_pass_2_to_the_31_and_53():
    """Counts are 64-bit integers: neither 32 bits nor a float64's mantissa limits them."""
    one = (torch.tensor([[[[0.25]], [[0.75]]]]), torch.tensor([[[[1]]]]))
    for many in (2**31 - 1, 2**53):
        full = SegmentationStatistics(2)
        for name in COUNTS:
            getattr(full, name).fill_(many)
        full.update(*one)
        assert int(full.confusion[1, 1]) == int(full.voxel_count[0, 1]) == int(full.class_count[1, 22]) == many + 1
        assert int(full.confidence_count[0, 22]) == int(full.confidence_correct[0, 22]) == many + 1


def test_more_than_2_to_the_24_voxels_in_one_bin():
    """A stream of 33 images of 2^19 + 1 voxels of one confidence, one in four of them wrong."""
    voxels, images = 2**19 + 1, 33
    total = voxels * images
    assert total > 2**24
    probabilities = torch.empty(1, 2, voxels)
    probabilities[:, 0], probabilities[:, 1] = 0.75, 0.25
    labels = (torch.arange(voxels) % 4 == 0).long().view(1, 1, -1)
    wrong = images * int(labels.sum())
    right = total - wrong
    found = SegmentationStatistics(2, boundary_width=1)
    for _ in range(images):
        found.update(probabilities, labels)
    assert found.confusion.tolist() == [[right, 0], [wrong, 0]]
    assert found.confidence_count.sum(1).tolist()[:2] == [total, wrong]
    assert int(found.confidence_count[0, 22]) == total
    assert int(found.confidence_correct[0, 22]) == right
    # Multiples of 0.75, 0.25 and 0.125 far below 2^53 add without rounding.
    assert found.confidence_sum[0, 22].item() == 0.75 * total
    assert found.class_count[[0, 1], [22, 7]].tolist() == [total, total]
    assert found.class_positive[[0, 1], [22, 7]].tolist() == [right, wrong]
    assert found.class_sum[[0, 1], [22, 7]].tolist() == [0.75 * total, 0.25 * total]
    assert found.voxel_count[0].tolist() == [right, wrong]
    assert found.brier_sum[0].tolist() == [0.125 * right, 1.125 * wrong]
    assert found.nll_sum[0].tolist() == pytest.approx([right * math.log(4 / 3), wrong * math.log(4)], rel=1e-10)
    # The first voxel is of class 1, as is every fourth: two of three of the others touch one.
    near = images * int((torch.arange(voxels) % 4 != 2).sum())
    assert int(found.voxel_count[2].sum()) == near
