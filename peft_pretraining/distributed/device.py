"""The device of a process: what is settled before its first use, and what a log says of it."""

import os
from pathlib import Path

import torch
from loguru import logger

from peft_pretraining.units import GIB

DRIVER = Path("/proc/driver/nvidia")
"""What Linux shows where NVIDIA's driver is loaded."""


def settle_precision() -> None:
    """Has float32 products use float32, whatever the environment says.

    NVIDIA's containers set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, and TF32 keeps 10 bits: bases, projections and --dtype
    fp32 would depend on where a run is started. Products of bfloat16 are not concerned.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def announce_device(device: torch.device, wanted: str | None) -> None:
    """Logs device, memory, torch and CUDA; warns where a GPU stands idle. wanted: --device, None where not given."""
    logger.info("{}", description(device))
    if device.type == "cpu" and wanted is None and DRIVER.exists():
        logger.warning("{}", _why_idle())


def description(device: torch.device) -> str:
    """Device, memory, torch and CUDA in one line."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        name, memory = f"{device}: {found.name}", found.total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        name = f"{device}: {torch.get_num_threads()} threads"
    return f"{name}, {memory / GIB:.1f} GiB of memory; torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}"


def _why_idle() -> str:
    """Says that NVIDIA's driver is here and torch cannot use it, and what to do."""
    if torch.version.cuda is None:
        remedy = f"Torch {torch.__version__} is built without CUDA: install a build with it"
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        remedy = f"CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r}: name a GPU, or unset it"
    else:
        remedy = f"The driver may be too old for CUDA {torch.version.cuda}: compare with nvidia-smi"
    return (
        f"there is an NVIDIA driver, but torch sees no GPU: this run uses the CPU. {remedy}. --device cpu: no warning"
    )
