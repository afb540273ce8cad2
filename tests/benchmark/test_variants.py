import pytest
import torch

from dropkey_cli.benchmark.attention import reference_attention
from dropkey_cli.benchmark.settings import BenchmarkSettings
from dropkey_cli.benchmark.variants import Function, Variant, variants
from dropkey_cli.errors import InputError
from dropkey_cli.method.mask import dropkey_mask

SETTINGS = BenchmarkSettings(torch.device("cpu"), "32-true", 0.3, rounds=2, num_threads=1, compiled=False)
SEED = torch.tensor(11)


def attended(variant: Variant) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    q, k, v = torch.randn(3, 2, 3, 33, 16, generator=torch.Generator().manual_seed(0)).unbind(0)
    return variant.attend(q, k, v, SEED), (q, k, v)


def by_name(function: Function) -> dict[str, Variant]:
    return {variant.name: variant for variant in variants(function, SETTINGS)}


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (
            "sdpa",
            ["SDPA", "SDPA flash", "SDPA efficient", "SDPA cudnn", "SDPA math", "dropkey triton, ratio 0", "dropkey triton",
             "dropkey sdpa", "paper"],
        ),
        ("softmax", ["softmax", "dropkey_softmax", "paper"]),
    ],
)  # fmt: skip
def test_rows_of_the_table(function: Function, names: list[str]) -> None:
    assert list(by_name(function)) == names


@pytest.mark.parametrize(("function", "name"), [("sdpa", "SDPA"), ("sdpa", "SDPA math"), ("softmax", "softmax")])
def test_rows_without_dropkey_drop_nothing(function: Function, name: str) -> None:
    output, (q, k, v) = attended(by_name(function)[name])
    assert (output - reference_attention(q.double(), k.double(), v.double(), None)).abs().max() < 1e-6


@pytest.mark.parametrize(("function", "name"), [("sdpa", "dropkey sdpa"), ("softmax", "dropkey_softmax")])
def test_our_rows_drop_exactly_the_mask_of_the_seed_and_count_it(function: Function, name: str) -> None:
    variant = by_name(function)[name]
    output, (q, k, v) = attended(variant)
    dropped = dropkey_mask(SEED, (2, 3, 33, 33), 0.3)
    assert (output - reference_attention(q.double(), k.double(), v.double(), dropped)).abs().max() < 1e-6
    assert variant.counts is not None
    assert variant.counts.tolist() == [int(dropped.sum()), dropped.numel()]


def test_a_named_backend_is_the_one_that_runs() -> None:
    q, k, v = torch.randn(3, 2, 3, 33, 16, requires_grad=True)
    for name, operator in {"flash": "Flash", "math": "UnsafeView"}.items():
        output = by_name("sdpa")[f"SDPA {name}"].attend(q, k, v, SEED)
        assert operator in type(output.grad_fn).__name__


@pytest.mark.parametrize("name", ["dropkey triton", "dropkey triton, ratio 0"])
def test_tritons_rows_say_why_a_cpu_has_none(name: str) -> None:
    variant = by_name("sdpa")[name]
    assert not variant.everywhere
    with pytest.raises(InputError, match="backend 'triton' cannot take this call: queries are on cpu, not on an NVIDIA GPU"):
        attended(variant)


def test_compiled_rows_follow_their_eager_form_and_count_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda attend, **_: attend)
    rows = variants("softmax", BenchmarkSettings(torch.device("cpu"), "32-true", 0.3, rounds=2, num_threads=1, compiled=True))
    assert [row.name for row in rows] == ["softmax", "softmax, compiled", "dropkey_softmax", "dropkey_softmax, compiled",
                                          "paper", "paper, compiled"]  # fmt: skip
    eager, compiled = rows[2:4]
    attended(compiled)
    assert eager.counts is not None and compiled.counts is not None
    assert (int(eager.counts[1]), int(compiled.counts[1])) == (0, 2 * 3 * 33 * 33)
