import pytest
import torch

from dropkey_cli.benchmark.settings import BenchmarkSettings, Precision, find_device, find_precision, memory_hint
from dropkey_cli.errors import InputError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=[True, False])
def bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A GPU with or without bfloat16."""
    has: bool = request.param
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    return has


@pytest.mark.parametrize("gpus", [0, 1])
def test_auto_is_the_gpu_where_there_is_one(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    assert find_device("auto").type == ("cuda" if gpus else "cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:2", "device 'cuda:2' is not here: PyTorch sees 2 GPUs; give --device cpu"),
        ("mps", "device 'mps' cannot be benchmarked: give auto, cpu, cuda"),
        ("cuda:one", "'cuda:one' cannot be"),
        ("cpu:1", "'cpu:1' cannot be"),
    ],
)
def test_devices_that_are_not_there(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=message):
        find_device(name)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert find_device("cpu") == CPU


def test_default_precision_of_a_gpu(bf16: bool) -> None:
    assert find_precision(None, CUDA) == ("bf16-mixed" if bf16 else "32-true")
    assert find_precision("16-mixed", CUDA) == "16-mixed"


def test_bfloat16_where_the_gpu_has_none_is_refused(bf16: bool) -> None:
    if bf16:
        assert find_precision("bf16-mixed", CUDA) == "bf16-mixed"
        return
    with pytest.raises(InputError, match="Tesla V100 does not compute in bfloat16: give --precision 16-mixed"):
        find_precision("bf16-mixed", CUDA)


def test_precisions_of_a_cpu() -> None:
    assert find_precision(None, CPU) == "32-true"
    assert find_precision("bf16-mixed", CPU) == "bf16-mixed"
    with pytest.raises(InputError, match=r"'16-mixed' is for GPUs: .* --precision 32-true or bf16-mixed"):
        find_precision("16-mixed", CPU)


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_autocast_only_in_mixed_precision(precision: Precision, dtype: torch.dtype) -> None:
    settings = BenchmarkSettings(CPU, precision, 0.1, rounds=2, num_threads=1, compiled=False)
    assert settings.dtype == dtype
    with settings.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(("batch_size", "hint"), [(9, "give --batch_size 4"), (1, "give a smaller model, image or shape")])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate")])
def test_out_of_memory_says_what_to_give(batch_size: int, hint: str, error: RuntimeError) -> None:
    with pytest.raises(InputError, match=f"batch size {batch_size} does not fit into memory: {hint}"), memory_hint(batch_size):
        raise error


def test_a_real_lack_of_memory_is_recognised() -> None:
    with pytest.raises(InputError, match="batch size 2 does not fit"), memory_hint(2):
        torch.empty(2**50)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="ours"), memory_hint(2):
        raise RuntimeError("ours")
