"""The machine that a benchmark ran on."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch


def describe_machine(device: torch.device) -> dict[str, str]:
    """What a reader must know to judge a time: processor, threads, versions, GPU, and how busy the machine is."""
    facts: dict[str, str] = {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "cpu": f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used",
        "load": _load_average(),
        "torch": f"{torch.__version__}, timm {version('timm')}, dropkey {version('dropkey')}",
    }
    if device.type == "cuda":
        facts["gpu"] = f"{torch.cuda.get_device_name(device)}, driver {_driver()}"
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        facts["cuda"] = f"{torch.version.cuda}, cuDNN {cudnn}"
    return facts


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _load_average() -> str:
    if not hasattr(os, "getloadavg"):  # Windows
        return "not known"
    return "{:.2f} over 1 minute, {:.2f} over 5".format(*os.getloadavg())


def _driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    asked = subprocess.run([tool, "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True)
    return asked.stdout.split("\n")[0].strip() or "unknown"
