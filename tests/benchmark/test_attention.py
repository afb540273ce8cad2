import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dropkey_cli.benchmark import attention
from dropkey_cli.benchmark.attention import (
    CPU_SHAPES,
    GPU_SHAPES,
    AttentionRow,
    Shape,
    Skipped,
    drop_ratio,
    make_inputs,
    max_error,
    measure_attention,
    reference_attention,
)
from dropkey_cli.benchmark.settings import BenchmarkSettings
from dropkey_cli.benchmark.timing import Call
from dropkey_cli.benchmark.variants import Variant, variants
from dropkey_cli.errors import InputError
from dropkey_cli.method.mask import dropkey_mask

SETTINGS = BenchmarkSettings(torch.device("cpu"), "32-true", 0.1, rounds=2, num_threads=1, compiled=False)
SMALL = Shape(3, 2, 33, 16)


def ours(ratio: float = 0.1) -> Variant:
    return next(row for row in variants("sdpa", replace(SETTINGS, ratio=ratio)) if row.name == "dropkey sdpa")


def named(rows: list[AttentionRow]) -> dict[str, AttentionRow]:
    return {row.name: row for row in rows}


def test_built_in_shapes_are_those_of_the_issue() -> None:
    assert [str(shape) for shape in GPU_SHAPES] == [
        "B=256 H=12 N=197 D=64, SDPA",
        "B=64 H=12 N=577 D=64, SDPA",
        "B=64 H=12 N=1025 D=64, SDPA",
        "B=8192 H=3 N=49 D=32, SDPA",
        "B=8192 H=3 N=49 D=32, explicit softmax",
    ]
    assert all(small.head_dim == large.head_dim for small, large in zip(CPU_SHAPES, GPU_SHAPES, strict=True))


def test_rows_of_a_shape() -> None:
    rows, skipped = measure_attention(SMALL, SETTINGS)
    assert list(named(rows)) == ["SDPA", "SDPA flash", "SDPA math", "dropkey sdpa", "paper"]
    assert [row.name for row in skipped] == ["SDPA efficient", "SDPA cudnn", "dropkey triton, ratio 0", "dropkey triton"]
    assert rows[0].ratio == (1, 1, 1)
    for row in rows:
        assert len(row.seconds) == len(row.forward_seconds) == 2
        assert all(0 < seconds < math.inf for seconds in (*row.seconds, *row.forward_seconds))
        assert row.drop_ratio == (0 if row.name.startswith("SDPA") else pytest.approx(0.1, abs=0.02))
        assert row.peak_bytes is None
        assert (row.max_error is None) == (row.name == "paper")
        assert row.max_error is None or row.max_error < 1e-5


def test_rows_of_modules_with_a_softmax_of_their_own() -> None:
    rows, skipped = measure_attention(replace(SMALL, function="softmax"), SETTINGS)
    assert list(named(rows)) == ["softmax", "dropkey_softmax", "paper"]
    assert skipped == []
    # Weights and copies of queries, keys and values: DropKey keeps nothing that a plain softmax does not
    assert named(rows)["dropkey_softmax"].saved_bytes == named(rows)["softmax"].saved_bytes


def test_saved_memory_by_hand() -> None:
    """In units of one (B, H, N, D) tensor; B·H rows of N·N numbers are N/D of them."""
    rows, _ = measure_attention(Shape(2, 2, 197, 64), SETTINGS)
    saved = {row.name: row.saved_units for row in rows}
    assert saved["SDPA"] == 3 + 1 + 1 / 64  # q, k, v; the output; one number per query
    assert saved["paper"] == 3 + 197 / 64  # copies of q, k, v; the weights
    assert named(rows)["SDPA"].saved_bytes == saved["SDPA"] * 4 * 2 * 2 * 197 * 64


def test_mixed_precision_computes_in_bfloat16() -> None:
    rows, _ = measure_attention(SMALL, replace(SETTINGS, precision="bf16-mixed"))
    for row in rows:
        assert row.max_error is None or 1e-4 < row.max_error < 0.1  # bfloat16 has 8 bits
    assert named(rows)["SDPA flash"].saved_bytes < measure_attention(SMALL, SETTINGS)[0][1].saved_bytes


def test_inputs_are_strided_as_timm_has_them_and_differ_between_copies() -> None:
    copies = make_inputs(SMALL, SETTINGS)
    qkv = F.linear(torch.randn(3, 33, 32), torch.randn(96, 32)).reshape(3, 33, 3, 2, 16).permute(2, 0, 3, 1, 4)
    assert [part.stride() for part in qkv.unbind(0)] == [part.stride() for part in (copies[0].q, copies[0].k, copies[0].v)]
    assert len(copies) > 1
    assert not torch.equal(copies[0].q, copies[1].q)
    assert copies[0].grad.shape == (3, 33, 32)


def test_inputs_are_four_times_a_gpus_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Generator", lambda device: torch.default_generator)
    monkeypatch.setattr(attention, "_draw_inputs", lambda size, settings, generator: math.prod(size) * 2)  # bytes
    settings = replace(SETTINGS, device=torch.device("cuda"), precision="bf16-mixed")
    for cache, count in ((24_000, 10), (24_001, 11), (10, 3)):  # of 9,600 bytes
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device, cache=cache: SimpleNamespace(L2_cache_size=cache)
        )
        drawn: list[object] = [*make_inputs(Shape(1, 1, 100, 16), settings)]
        assert drawn == [9600] * count


class Recorded:
    """A variant that keeps what it is given."""

    def __init__(self) -> None:
        self.queries: list[int] = []
        self.seeds: list[int] = []
        self.autocasts: list[torch.dtype | None] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor, seed: Tensor) -> Tensor:
        self.queries.append(q.data_ptr())
        self.seeds.append(int(seed))
        self.autocasts.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return F.scaled_dot_product_attention(q, k, v)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """The only variant."""
    recorded = Recorded()
    counts = torch.tensor([1, 10])
    monkeypatch.setattr(attention, "variants", lambda *_: [Variant("recorded", recorded.attend, "ours", counts)])
    return recorded


def test_every_call_has_the_next_copy_of_the_inputs_and_a_seed_of_its_own(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, tuple[set[int], set[int]]] = {}

    def interleave(calls: Mapping[str, Call], *_: object, **__: object) -> dict[str, list[float]]:
        for name, call in calls.items():
            start = len(recorded.queries)
            for number in range(3):
                call(number)
            seen[name] = set(recorded.queries[start:]), set(recorded.seeds[start:])
        return {name: [1.0] for name in calls}

    monkeypatch.setattr(attention, "interleave", interleave)
    measure_attention(SMALL, SETTINGS)
    assert [(name, len(queries), len(seeds)) for name, (queries, seeds) in seen.items()] == [
        ("recorded", 3, 3),
        ("recorded, backward", 3, 3),
    ]


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", None), ("bf16-mixed", torch.bfloat16)])
def test_variants_run_under_the_autocast_of_the_precision(
    precision: Any,  # noqa: ANN401 - one of three names
    dtype: torch.dtype | None,
    recorded: Recorded,
) -> None:
    measure_attention(SMALL, replace(SETTINGS, precision=precision))
    assert set(recorded.autocasts) == {dtype}


def test_columns_hold_what_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"SDPA": [1.0, 2.0], "SDPA, backward": [4.0, 8.0], "paper": [16.0, 32.0], "paper, backward": [64.0, 256.0]}
    monkeypatch.setattr(attention, "interleave", lambda calls, clock, rounds: {name: seconds[name] for name in calls})
    chosen = [variant for variant in variants("sdpa", SETTINGS) if variant.name in seconds]
    monkeypatch.setattr(attention, "variants", lambda *_: chosen)
    rows = named(measure_attention(SMALL, SETTINGS)[0])
    assert {name: row.forward_seconds for name, row in rows.items()} == {"SDPA": [1, 2], "paper": [16, 32]}
    assert {name: row.seconds for name, row in rows.items()} == {"SDPA": [4, 8], "paper": [64, 256]}
    assert (rows["SDPA"].ratio.median, rows["paper"].ratio.median) == (1, 24)  # 64 / 4 and 256 / 8


@pytest.mark.parametrize("compiled", [True, False])
def test_compiled_code_of_one_shape_is_not_kept_for_the_next(
    compiled: bool, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    resets: list[int] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(len(recorded.queries)))
    measure_attention(SMALL, replace(SETTINGS, compiled=compiled))
    assert resets == [len(recorded.queries)] * compiled  # after all calls


def oracle(q: Tensor, k: Tensor, v: Tensor, dropped: Tensor) -> Tensor:
    """Query by query, over the keys that are left."""
    out = torch.zeros_like(q)
    for row in torch.cartesian_prod(*map(torch.arange, q.shape[:3])):
        b, h, n = row.tolist()
        kept = ~dropped[b, h, n]
        weights = torch.exp(k[b, h, kept] @ q[b, h, n] / math.sqrt(q.shape[-1]))
        out[b, h, n] = (weights / weights.sum()) @ v[b, h, kept] if kept.any() else 0
    return out


def test_reference_is_the_definition_with_a_fully_dropped_row() -> None:
    q, k, v = torch.randn(3, 2, 2, 5, 4, dtype=torch.float64)
    dropped = torch.rand(2, 2, 5, 5) < 0.4
    dropped[1, 0, 2] = True
    assert torch.allclose(reference_attention(q, k, v, dropped), oracle(q, k, v, dropped), atol=1e-14)


def test_error_sees_another_mask_than_the_seeds() -> None:
    inputs = make_inputs(SMALL, SETTINGS)[0]
    other = replace(ours(), attend=lambda q, k, v, seed: ours().attend(q, k, v, seed + 1))
    right, wrong = max_error(ours(), inputs, SETTINGS), max_error(other, inputs, SETTINGS)
    assert right is not None and right < 1e-5
    assert wrong is not None and wrong > 0.1


def test_error_sees_wrong_gradients() -> None:
    inputs = make_inputs(SMALL, SETTINGS)[0]
    detached = replace(ours(), attend=lambda q, k, v, seed: ours().attend(q, k.detach() + 0 * k, v, seed))
    error = max_error(detached, inputs, SETTINGS)
    assert error is not None and error > 0.1


def test_drop_ratio_is_what_was_counted() -> None:
    variant = ours(ratio=0.5)
    inputs = make_inputs(SMALL, SETTINGS)[0]
    for seed in (1, 2):
        variant.attend(inputs.q, inputs.k, inputs.v, torch.tensor(seed))
    dropped = sum(int(dropkey_mask(seed, (3, 2, 33, 33), 0.5).sum()) for seed in (1, 2))
    assert drop_ratio(variant, SMALL, SETTINGS) == dropped / (2 * 3 * 2 * 33 * 33)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("No available kernel. Aborting execution.\nmore"), "No available kernel"),
        (InputError("no Triton here; give another"), "no Triton here"),
        (ImportError("No module named 'triton'"), "No module named 'triton'"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_a_variant_that_cannot_run_is_left_out_with_its_reason(
    error: Exception, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(q: Tensor, k: Tensor, v: Tensor, seed: Tensor) -> Tensor:
        raise error

    broken = Variant("broken", fail, "none", everywhere=False)
    monkeypatch.setattr(attention, "variants", lambda function, settings: [ours(), broken])
    rows, skipped = measure_attention(SMALL, SETTINGS)
    assert list(named(rows)) == ["dropkey sdpa"]
    assert skipped == [Skipped("broken", why)]


@pytest.mark.parametrize(("everywhere", "error"), [(True, RuntimeError("ours")), (False, torch.OutOfMemoryError("ours"))])
def test_errors_of_what_runs_everywhere_and_a_lack_of_memory_are_not_hidden(
    everywhere: bool, error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(q: Tensor, k: Tensor, v: Tensor, seed: Tensor) -> Tensor:
        raise error

    monkeypatch.setattr(attention, "variants", lambda function, settings: [Variant("broken", fail, "none", None, everywhere)])
    with pytest.raises(type(error), match="ours"):
        measure_attention(SMALL, SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("function", ["sdpa", "softmax"])
def test_compiled_rows_have_our_mask_too(function: str) -> None:
    shape = Shape(3, 2, 33, 16, "sdpa" if function == "sdpa" else "softmax")
    rows, skipped = measure_attention(shape, replace(SETTINGS, compiled=True))
    compiled = {name: row for name, row in named(rows).items() if name.endswith("compiled")}
    assert len(compiled) == 3, skipped
    for name, row in compiled.items():
        assert row.max_error is None if "paper" in name else row.max_error is not None and row.max_error < 1e-5
        assert row.saved_bytes > 0
        assert row.drop_ratio == (0 if name.startswith(("softmax", "SDPA")) else pytest.approx(0.1, abs=0.02))
