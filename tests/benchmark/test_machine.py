import os
import shutil
import subprocess

import pytest
import timm
import torch

from dropkey_cli.benchmark.machine import describe_machine


def test_versions_cores_and_threads_are_named() -> None:
    facts = describe_machine(torch.device("cpu"))
    assert f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used" in facts["cpu"]
    assert torch.__version__ in facts["torch"]
    assert timm.__version__ in facts["torch"]
    assert "gpu" not in facts


def test_gpu_and_driver_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    answer = subprocess.CompletedProcess([], 0, stdout="570.1\n570.1\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: answer)
    assert describe_machine(torch.device("cuda"))["gpu"] == "NVIDIA H200, driver 570.1"


def test_a_machine_that_hides_its_driver_and_load_is_described_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    monkeypatch.delattr(os, "getloadavg")
    facts = describe_machine(torch.device("cuda"))
    assert facts["gpu"] == "NVIDIA H200, driver unknown"
    assert facts["load"] == "not known"
