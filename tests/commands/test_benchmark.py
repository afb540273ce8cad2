import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dropkey_cli.benchmark import timing
from dropkey_cli.benchmark.attention import CPU_SHAPES, GPU_SHAPES, Shape
from dropkey_cli.benchmark.settings import BenchmarkSettings
from dropkey_cli.cli import main
from dropkey_cli.commands import benchmark as command
from dropkey_cli.commands.benchmark import benchmark
from dropkey_cli.errors import InputError

SMALL = ("--shapes", "[[2, 2, 33, 16]]", "--rounds=2", "--compile=false", "--device=cpu")
TINY = ("--model=vit_tiny_patch16_224", "--image_size=32", "--batch_size=2", "--rounds=2", "--device=cpu",
        "--model_args={patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}")  # fmt: skip


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are not looked at."""
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 1e-3)


def numbers(value: Any) -> list[float]:  # noqa: ANN401 - whatever JSON holds
    """All numbers in nested lists and objects."""
    if isinstance(value, dict | list):
        return [number for item in (value.values() if isinstance(value, dict) else value) for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def test_attention_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "benchmark.json"
    assert main(["benchmark", *SMALL, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    (table,) = (report := json.loads(file.read_text(encoding="utf-8")))["tables"]
    assert [row["name"] for row in table["rows"]] == ["SDPA", "SDPA flash", "SDPA math", "dropkey sdpa", "paper"]
    assert all(0 <= number < 1e12 for number in numbers(report))
    assert {row["name"]: row["drop_ratio"] for row in table["rows"]}["dropkey sdpa"] == pytest.approx(0.1, abs=0.02)
    assert report["machine"]["torch"].startswith(torch.__version__)
    assert report["machine"]["cpu"] in out
    assert "process CPU time, 2 interleaved rounds" in out
    assert "not run: dropkey triton, ratio 0, dropkey triton (backend 'triton' cannot take this call: " in out


def test_the_table_is_markdown_and_fits_in_120_columns(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark([*SMALL])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 120
    assert re.fullmatch(r"(\|-+)+\|", lines[1])
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| SDPA ")


def test_step_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "benchmark.json"
    benchmark([*TINY, "--ratio=0.2", "--json", str(file)])
    (table,) = json.loads(file.read_text(encoding="utf-8"))["tables"]
    names = ["without DropKey", "dropkey element", "dropkey key", "dropkey block", "dropkey cross", "paper"]
    assert [row["name"] for row in table["rows"]] == names
    assert table["rows"][1]["drop_ratio"] == pytest.approx(0.2, abs=0.05)
    out = capsys.readouterr().out
    assert "vit_tiny_patch16_224, 32 pixels, batch size 2" in out
    step_ms, images_per_second = re.findall(r"\| without DropKey +\| +(\S+) \| +(\S+) ", out)[0]
    assert float(images_per_second) == pytest.approx(2 / float(step_ms) * 1000, rel=0.02)


def test_batch_size_replaces_that_of_the_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark([*SMALL, "--batch_size", "3"])
    assert "B=3 H=2 N=33 D=16, SDPA" in capsys.readouterr().out


@pytest.mark.parametrize(("device", "shapes"), [("cpu", CPU_SHAPES), ("cuda", GPU_SHAPES)])
def test_built_in_shapes_by_default(device: str, shapes: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[Shape, BenchmarkSettings]] = []

    def measure(shape: Shape, settings: BenchmarkSettings) -> tuple[list[Any], list[Any]]:
        measured.append((shape, settings))
        return [], []

    monkeypatch.setattr(command, "measure_attention", measure)
    monkeypatch.setattr(command, "print_table", lambda *_, **__: None)
    monkeypatch.setattr(command, "notes", lambda rows: [])
    monkeypatch.setattr(command, "describe_machine", lambda device: {})
    monkeypatch.setattr(command, "find_device", torch.device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    benchmark(["--device", device])
    assert [shape for shape, _ in measured] == shapes
    settings = measured[0][1]
    assert (settings.precision, settings.compiled) == ("bf16-mixed" if device == "cuda" else "32-true", True)
    assert settings.num_threads == 1 or device == "cuda"


def test_fit_goes_to_the_benchmark_of_a_training_run(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    module = ModuleType("benchmark_fit")
    monkeypatch.setattr(module, "benchmark_fit", given.append, raising=False)
    monkeypatch.setitem(sys.modules, "dropkey_cli.commands.benchmark_fit", module)
    assert main(["benchmark", "--fit", "--data.root", "photos"]) == 0
    assert given == [["--data.root", "photos"]]


def test_lack_of_memory_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(shape: Shape, settings: BenchmarkSettings) -> tuple[list[Any], list[Any]]:
        raise RuntimeError(f"[enforce fail] DefaultCPUAllocator: can't allocate memory: batch size {shape.batch_size}")

    monkeypatch.setattr(command, "measure_attention", measure)
    with pytest.raises(InputError, match=r"batch size 1000 does not fit into memory: give --batch_size 500"):
        benchmark([*SMALL, "--batch_size", "1000"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "vit_tny_patch16_224"], "'vit_tny_patch16_224' is not a model .*did you mean 'vit_tiny_patch16_224'"),
        (["--model", "resnet18", "--image_size", "32"], "^ResNet has no attention layer that DropKey can act on"),
        (["--model", "test_vit", "--shapes", "[[1, 1, 4, 4]]"], "^--shapes are for the table of attention alone: leave out"),
        (["--image_size", "32"], "^--image_size and --model_args are for a model's training step: give --model NAME"),
        (["--model_args", "{depth: 2}"], "give --model NAME"),
        (["--precision", "16-mixed", "--device", "cpu"], "^precision '16-mixed' is for GPUs"),
        (["--precision", "fp32"], "precision 'fp32' is not valid: expected 32-true, bf16-mixed, 16-mixed or null"),
        (["--device", "tpu"], "^device 'tpu' cannot be benchmarked"),
        (["--ratio", "1"], "^ratio 1.0 is not a drop ratio"),
        (["--ratio", "0"], "^ratio 0.0 drops nothing"),
        (["--shapes", "[[8, 3, 197]]"], "shapes .*expected"),
        (["--rounds", "0"], "rounds '0' is not valid: expected a whole number from 1"),
        (["--json", "nowhere/benchmark.json"], "^--json 'nowhere/benchmark.json' cannot be written"),
        (["--json", "."], "^--json '.' cannot be written"),
        (["--batchsize", "8"], "unknown option --batchsize; did you mean '--batch_size'"),
        (["vit_tiny_patch16_224"], "unexpected 'vit_tiny_patch16_224'"),
    ],
)
def test_wrong_options_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        benchmark(words)
    assert re.search(message, str(error.value))


@pytest.mark.gpu
def test_table_of_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "benchmark.json"
    benchmark(["--shapes", "[[4, 3, 197, 64]]", "--rounds", "2", "--device", "cuda", "--json", str(file)])
    (table,) = json.loads(file.read_text(encoding="utf-8"))["tables"]
    rows = {row["name"]: row for row in table["rows"]}
    assert {"dropkey triton", "dropkey triton, ratio 0", "dropkey sdpa", "dropkey sdpa, compiled", "paper"} <= rows.keys()
    for name in ("dropkey triton", "dropkey sdpa"):
        assert rows[name]["drop_ratio"] == pytest.approx(0.1, abs=0.005)
        assert rows[name]["max_error"] < 2 * rows["SDPA"]["max_error"] + 1e-3
        assert rows[name]["peak_bytes"] > 0
