"""What a result was measured with: commit, versions, device."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "transformer-engine", "safetensors", "tensorboardX")


def describe_environment() -> dict[str, Any]:
    """Commit, versions and GPU of this process."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False,
                         cwd=Path(__file__).parent)  # fmt: skip
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"commit": git.stdout.strip() or None, "python": platform.python_version(), "versions": versions,
            "gpu": gpu, "gpus": torch.cuda.device_count(), "machine": platform.platform()}  # fmt: skip
