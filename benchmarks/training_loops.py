"""The training loops that `benchmarks.training` compares: the harness's, a plain one, and transformers'
Trainer.

All see the same batches. Each loop is a function that trains on a list of batches and returns the seconds
it took.
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from peft_pretraining.cli.parse import parse_config
from peft_pretraining.data.rows import Batch as DataBatch
from peft_pretraining.data.stream import Update
from peft_pretraining.distributed.world import session
from peft_pretraining.model.llama import ModelConfig, build_model
from peft_pretraining.training.preemption import StopSignals
from peft_pretraining.training.run import restore_or_start, run_folder
from peft_pretraining.training.step import train_step

ROWS, LENGTH = 16, 256
Batch = tuple[Tensor, Tensor]
Clock = Callable[[], float]
Loop = Callable[[list[Batch]], float]


def c4_batches(count: int, vocab_size: int, seed: int = 0, packed: bool = False) -> list[Batch]:
    """Random token ids (16, 256) and lengths (16,), padded as documents of C4 cut at 256 tokens.

    C4's English part has 156 billion tokens in 365 million documents, 427 on average. Lengths are drawn
    from the log-normal distribution of that mean with a sigma of 1 (median 259), at least 8: half of the
    rows are full. `packed` rows are all full.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        lengths = (259 * torch.randn(ROWS, generator=generator).exp()).long().clamp(8, LENGTH)
        if packed:
            lengths.fill_(LENGTH)
        ids = torch.randint(2, vocab_size, (ROWS, LENGTH), generator=generator)
        batches.append((ids.masked_fill(torch.arange(LENGTH) >= lengths[:, None], 0), lengths))
    return batches


def run_loop(config: Path, clock: Clock) -> Loop:
    """What torchrun_main.py does at each update, but for the data: the global norm, the schedule, AdamW on the engine
    with bfloat16 state, as the peers keep it, and stochastic rounding, model and updates compiled."""
    folder = Path(tempfile.mkdtemp(prefix="thrift-benchmark-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    words = f"--single_gpu --dataset builtin --device cpu --wandb_mode disabled --workers 0 --batch_size {ROWS}"
    words += f" --max_length {LENGTH} --optimizer adamw --lr 1e-4 --num_training_steps 100000 --compile_model"
    words += (
        f" --execution compiled --state_dtype bfloat16 --eval_tokens 2K --model_config {config} --save_dir {folder}/run"
    )
    settings, stack = parse_config(words.split()), ExitStack()
    atexit.register(stack.close)
    stop = stack.enter_context(StopSignals())
    world = stack.enter_context(session(settings.parallel))
    run = restore_or_start(settings, world, stop, stack.enter_context(run_folder(settings, world)))

    def train(batches: list[Batch]) -> float:
        data = [Update(n, [DataBatch(ids, lengths, lengths)]) for n, (ids, lengths) in enumerate(batches)]
        run.data = iter(data)  # type: ignore[assignment]
        started = clock()
        for _ in batches:
            train_step(run)
        return clock() - started

    return train


def harness_loop(config: Path, clock: Clock, compiled: bool = True) -> Loop:
    """This project's model with torch's fused AdamW, and nothing around it."""
    model = build_model(ModelConfig(str(config), compile_model=compiled), "cpu", seed=0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def train(batches: list[Batch]) -> float:
        started = clock()
        for ids, lengths in batches:
            (model(ids, lengths) / (lengths - 1).sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
        return clock() - started

    return train


def evaluation_loop(config: Path, clock: Clock) -> Loop:
    """The loss alone, as evaluation computes it."""
    model = build_model(ModelConfig(str(config), compile_model=True), "cpu", seed=0).eval()

    @torch.no_grad()
    def evaluate(batches: list[Batch]) -> float:
        started = clock()
        for ids, lengths in batches:
            model(ids, lengths)
        return clock() - started

    return evaluate


def plain_loop(config: Path, clock: Clock) -> Loop:
    """What a script of a few lines does: LlamaForCausalLM with mask and labels, foreach AdamW."""
    model = _plain_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)

    def train(batches: list[Batch]) -> float:
        started = clock()
        for batch in batches:
            model(**_labelled(*batch)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return clock() - started

    return train


def trainer_loop(config: Path, clock: Clock) -> Loop:
    """transformers' Trainer with its default optimizer; the first update of each call is not timed, as it allocates."""
    model = _plain_model(config)

    def train(batches: list[Batch]) -> float:
        rows = [
            {key: tensor[i] for key, tensor in _labelled(*b).items()}
            for b in [batches[0], *batches]
            for i in range(ROWS)
        ]
        updates = _UpdateTimes(clock)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                per_device_train_batch_size=ROWS,
                max_steps=len(batches) + 1,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                use_cpu=True,
            )
            Trainer(model, arguments, train_dataset=rows, callbacks=[updates]).train()  # type: ignore[arg-type]
        return updates.ended[-1] - updates.ended[0]

    return train


class _UpdateTimes(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.ended: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended.append(self._clock())


def _plain_model(config: Path) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig.from_json_file(config))
    torch.nn.Module.to(model, torch.bfloat16)
    return model.train()


def _labelled(ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}


LOOPS: dict[str, Callable[[Path, Clock], Loop]] = {
    "plain": plain_loop,
    "trainer": trainer_loop,
    "harness": harness_loop,
    "run": run_loop,
    "harness_eager": lambda config, clock: harness_loop(config, clock, compiled=False),
    "evaluation": evaluation_loop,
}
