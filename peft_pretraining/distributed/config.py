"""Flags of devices and processes."""

from dataclasses import dataclass
from typing import ClassVar

from peft_pretraining.errors import UsageError
from peft_pretraining.flags.fields import flag


@dataclass(frozen=True)
class ParallelConfig:
    """Which devices a run uses and how they share the work."""

    _argument_group_name: ClassVar[str] = "devices and processes"

    parallel: str = flag(
        "ddp",
        choices=("ddp", "fsdp"),
        help="several processes hold copies of the model (ddp) or shards of it (fsdp: FSDP2 fully_shard)",
    )
    device: str | None = flag(None, help="device type, cpu or cuda (default: cuda where there is one)")
    single_gpu: bool = flag(False, help="one process without a process group; start it with plain python")
    gpu: int | None = flag(None, help="index of the CUDA device of a --single_gpu run (default: 0)")
    dist_timeout: float = flag(
        600.0, help="seconds without progress of any process before the job ends, naming the missing one"
    )

    def __post_init__(self) -> None:
        if self.device is not None and self.device not in ("cpu", "cuda"):
            raise UsageError(f"--device {self.device}: give cpu or cuda (--gpu chooses one of several GPUs)")
        if self.dist_timeout <= 0:
            raise UsageError(f"--dist_timeout {self.dist_timeout}: give a number of seconds above 0")
        if self.single_gpu and self.parallel == "fsdp":
            raise UsageError("--parallel fsdp shards over several processes: leave out --single_gpu, or fsdp")
        if self.gpu is not None and not self.single_gpu:
            raise UsageError(f"--gpu {self.gpu} chooses the device of a --single_gpu run: add --single_gpu")
        if self.gpu is not None and self.gpu < 0:
            raise UsageError(f"--gpu {self.gpu}: give a device index from 0")
        if self.gpu is not None and self.device == "cpu":
            raise UsageError(f"--gpu {self.gpu} contradicts --device cpu: leave one of them out")
