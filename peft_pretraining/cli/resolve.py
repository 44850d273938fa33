"""What flags mean together: batch arithmetic, the length of a run, how typed flags displace saved ones."""

import dataclasses
from collections.abc import Collection
from typing import Any

from loguru import logger

from peft_pretraining.errors import UsageError
from peft_pretraining.flags.unknown import listed
from peft_pretraining.training.config import TrainingConfig
from peft_pretraining.training.run_config import RunConfig
from peft_pretraining.training.schedule import build_schedule

Flags = dict[str, Any]

_PAPERS_EVAL_EVERY = 1_000  # of the published runs of this field
_EVALUATIONS = 20

# Saved values that only make sense beside the saved value of another flag: typing another value for that one
# drops them.
_BELONGS_TO = {
    "cycle_length": "scheduler",
    "restart_warmup_steps": "scheduler",
    "decay_steps": "scheduler",
    "min_lr_ratio": "scheduler",
    "gpu": "device",
    "wandb_project": "wandb_mode",
    "wandb_run_name": "wandb_mode",
    "wandb_job_type": "wandb_mode",
    "details_every": "log_details",
}


def give_way(saved: Flags, typed: Flags) -> Flags:
    """The saved flags that still count once `typed` flags are put over them; what is dropped is logged.

    A saved run keeps its sequences per update; the micro-batches that make them up follow from the processes
    at hand.
    """
    kept = {name: value for name, value in saved.items() if name not in typed}
    for name in _derived(kept, typed):
        kept.pop(name, None)
    displaced = [name for name, master in _BELONGS_TO.items() if master in typed and typed[master] != saved.get(master)]
    for name in displaced:
        if name in kept:
            logger.info("saved --{} {} is overridden by what was typed", name, kept.pop(name))
    return kept


def _derived(kept: Flags, typed: Flags) -> list[str]:
    """Saved flags that were worked out from others, and are worked out anew."""
    names = []
    if "gradient_accumulation" in typed:
        names.append("total_batch_size")
    elif "total_batch_size" in kept or "total_batch_size" in typed:
        names.append("gradient_accumulation")
    if "num_training_steps" in typed:
        names.append("max_train_tokens")
    elif "max_train_tokens" in kept or "max_train_tokens" in typed:
        names.append("num_training_steps")
    return names


def resolve(config: RunConfig, given: Collection[str], world_size: int) -> RunConfig:
    """Check `config` as a whole and write out what follows from it.

    given: the flags that were stated, typed or saved. Raises UsageError for flags that contradict one another
    or that nothing would read.
    """
    _check_processes(config, world_size)
    _check_folder(config)
    _check_unused(config, given)
    training = _resolve_length(_resolve_batch(config.training, given, world_size), given, config.data.max_length)
    build_schedule(config.schedule, training.num_training_steps)
    if training.stop_at is not None and training.stop_at > training.num_training_steps:
        raise UsageError(
            f"--stop_at {training.stop_at} comes after the last of {training.num_training_steps} updates: lower it"
        )
    return dataclasses.replace(config, training=training)


def _check_processes(config: RunConfig, world_size: int) -> None:
    if config.parallel.single_gpu and world_size > 1:
        raise UsageError(
            f"--single_gpu runs one process, but torchrun started {world_size}: leave it out, or use --nproc_per_node 1"
        )
    if config.parallel.parallel == "fsdp" and world_size > 1 and config.logging.log_details:
        raise UsageError(
            "--log_details looks at whole layers, and --parallel fsdp leaves each process a shard of them: "
            "use --parallel ddp for such a run, or leave --log_details out"
        )


def _check_folder(config: RunConfig) -> None:
    unnamed = config.checkpoint.save_dir is None and config.logging.name is None
    if config.checkpoint.continue_from == "auto" and unnamed:
        raise UsageError(
            "--continue_from auto looks for checkpoints in --save_dir or runs/NAME: give --save_dir or --name"
        )


def _check_unused(config: RunConfig, given: Collection[str]) -> None:
    """What a flag switches off takes its companions with it in silence: a published line with one flag more runs."""
    if "details_every" in given and "log_details" not in given:
        raise UsageError(f"--details_every {config.logging.details_every} is not used without --log_details")


def _resolve_batch(training: TrainingConfig, given: Collection[str], world_size: int) -> TrainingConfig:
    """Fill in whichever of batch size, accumulation and total follows from the others and the processes."""
    batch, accumulation, total = (
        training.batch_size,
        training.gradient_accumulation,
        training.total_batch_size,
    )
    processes = f" x {world_size} processes" if world_size > 1 else ""
    if total is None:
        accumulation = accumulation or 1
        total = batch * accumulation * world_size
    elif accumulation is None:
        accumulation = total // (batch * world_size)
        if accumulation * batch * world_size != total:
            near = [n * batch * world_size for n in (accumulation, accumulation + 1) if n]
            raise UsageError(
                f"--total_batch_size {total} is no multiple of --batch_size {batch}{processes}: "
                f"take {listed(near)}, or another --batch_size"
            )
    elif "batch_size" not in given and total % (accumulation * world_size) == 0:
        batch = total // (accumulation * world_size)
    elif batch * accumulation * world_size != total:
        raise UsageError(
            f"--total_batch_size {total} is not --batch_size {batch} x --gradient_accumulation {accumulation}"
            f"{processes} = {batch * accumulation * world_size}: leave out one of the three"
        )
    return dataclasses.replace(training, batch_size=batch, gradient_accumulation=accumulation, total_batch_size=total)


def _resolve_length(training: TrainingConfig, given: Collection[str], max_length: int) -> TrainingConfig:
    tokens = training.max_train_tokens
    if tokens is None:
        return _resolve_evaluation(training)
    if "num_training_steps" in given:
        raise UsageError(
            f"--max_train_tokens {tokens} and --num_training_steps {training.num_training_steps} both set "
            "the length of the run: leave one of them out"
        )
    assert training.total_batch_size is not None
    per_update = training.total_batch_size * max_length
    if tokens < per_update:
        raise UsageError(
            f"--max_train_tokens {tokens} is less than one update of {per_update} tokens "
            f"({training.total_batch_size} sequences of {max_length}): raise it or lower --total_batch_size"
        )
    return _resolve_evaluation(dataclasses.replace(training, num_training_steps=tokens // per_update))


def _resolve_evaluation(training: TrainingConfig) -> TrainingConfig:
    if training.eval_every is not None:
        return training
    every = min(_PAPERS_EVAL_EVERY, max(1, training.num_training_steps // _EVALUATIONS))
    return dataclasses.replace(training, eval_every=every)
