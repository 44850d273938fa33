"""What a run reports as it goes on: a bar and log lines for people, metrics.jsonl for programs, and wandb."""

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from loguru import logger

from optimizers.engine.placement import local
from peft_pretraining.atomic_write import write_atomically
from peft_pretraining.errors import UsageError
from peft_pretraining.run_folder.layout import LOSS_CURVE, METRICS, SUMMARY, folder_of
from peft_pretraining.tracking.loss_curve import draw_loss_curve
from peft_pretraining.tracking.metrics import MetricsFile, Record, peak_memory_mib, read_metrics
from peft_pretraining.tracking.progress import ProgressDisplay
from peft_pretraining.tracking.tensorboard_run import TensorBoard, start_tensorboard
from peft_pretraining.tracking.utilisation import flops_per_token, peak_flops
from peft_pretraining.tracking.wandb_run import Tracker, start_tracker
from peft_pretraining.training.evaluation import Evaluation
from peft_pretraining.training.step import StepResult
from peft_pretraining.units import MIB

if TYPE_CHECKING:
    from peft_pretraining.training.run import Run


class Logbook:
    """Open while the run trains; does something on the main process only."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._tracker = Tracker()
        self._board = TensorBoard()
        self._warned: set[str] = set()
        self._metrics = MetricsFile(run.folder.path / METRICS)
        self._display = ProgressDisplay(run.updates, run.progress.update, run.config.logging.log_every)
        self._flops = flops_per_token(run.model, run.config.data.max_length)
        self._peak = peak_flops(run.world.device, next(run.model.parameters()).dtype)

    def __enter__(self) -> Self:
        with self._run.world.together():
            if self._run.world.is_main:
                self._open()
        return self

    def _open(self) -> None:
        run = self._run
        source = run.config.checkpoint.continue_from
        history = None if source in (None, "auto") else folder_of(Path(source)) / METRICS
        try:
            # Saved before an evaluation, a checkpoint leads to that evaluation once more.
            evaluated = run.progress.evaluated_at == run.progress.update
            self._metrics.continue_after(run.progress.update, history, evaluated)
        except OSError as error:
            raise UsageError(f"--save_dir {run.folder.path}: metrics cannot be written ({error})") from error
        self._tracker = start_tracker(run.config.logging, run.config.to_dict(), run.folder.path)
        self._board = start_tensorboard(run.config.logging.tensorboard, run.folder.path, run.progress.update)
        if (table := run.session.routing_table()) is not None:
            logger.info("which parameter is updated how:\n{}", table)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._display.close()
        self._metrics.close()
        self._board.close()
        self._tracker.finish(exit_status=0 if error is None else 1)

    def update(self, result: StepResult) -> None:
        """Reports an update."""
        self._pass_on_warnings()  # of every process: each refreshes bases of its own
        if not self._run.world.is_main:
            return
        speed = result.tokens / result.seconds
        each = speed / self._run.world.world_size
        record: Record = {
            "update_step": result.update,
            "loss": result.loss,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "tokens_seen": result.tokens_seen,
            "tokens_per_second": round(speed, 1),
            "device_tokens_per_second": round(each, 1),
            "step_seconds": round(result.seconds, 6),
            **{f"{phase}_seconds": round(seconds, 6) for phase, seconds in result.phases.items()},
            "peak_memory_mib": round(peak_memory_mib(self._run.world.device), 1),
        }
        if result.bytes_sent:
            record["sent_mib"] = round(result.bytes_sent / MIB, 6)
        if result.skipped:
            record["skipped"] = True
        more = f" ({each:,.0f} per process)" if self._run.world.world_size > 1 else ""
        if self._peak is not None:
            record["mfu"] = round(each * self._flops / self._peak, 4)
            more += f", MFU {record['mfu']:.1%}"
        self._write(record | result.details)
        self._display.update(result.update, result.loss, result.lr, speed, more)

    def _pass_on_warnings(self) -> None:
        """Says once each what the optimizer has tolerated."""
        for warning in self._run.session.warnings.keys() - self._warned:
            self._warned.add(warning)
            logger.warning("optimizer: {}", warning)

    def evaluation(self, result: Evaluation | None) -> None:
        """Reports an evaluation; None is one that was given up because the run is asked to stop."""
        if result is None:
            return
        if self._run.world.is_main:
            update = self._run.progress.update
            self._write({"update_step": update, **result.columns()})
            logger.info(
                "update {}: evaluation loss {:.4f}, perplexity {:.2f}, {:.4f} bits per byte, {:,} tokens{}",
                update,
                result.loss,
                result.perplexity,
                result.bits_per_byte,
                result.tokens,
                " (loss biased as published)" if result.published else "",
            )

    def summarize(self, checkpoint: "Path") -> None:
        """Leaves summary.json and loss.png in the run folder and says what came out. A collective."""
        run, folder = self._run, self._run.folder.path
        passed_over = sum((Counter(counts) for counts in run.world.gather_objects(run.data.counters)), Counter())
        # Copies of the state count once, shards add up: the figure is that of the method, not of the layout.
        states = run.world.gather_objects(_state_bytes(run.optimizer))
        if not run.world.is_main:
            return
        summary = {
            **run.progress.evaluation,
            "updates": run.progress.update,
            "skipped_updates": run.progress.skipped,
            "tokens_seen": run.progress.tokens_seen,
            "training_seconds": round(run.progress.seconds, 3),
            "peak_memory_mib": round(peak_memory_mib(run.world.device), 1),
            "optimizer_state_bytes": states[0] if run.session.replicated else sum(states),
            "checkpoint": str(checkpoint),
            "loss_curve": str(folder / LOSS_CURVE),
            "data_faults": dict(passed_over),
        }
        self._display.close()
        self._leave(summary)
        logger.info("validation perplexity {:.2f}", run.progress.evaluation["eval_perplexity"])
        logger.info("checkpoint {}", checkpoint)

    def _leave(self, summary: Record) -> None:
        """Writes summary.json and loss.png; a picture that cannot be drawn costs the run nothing."""
        folder = self._run.folder.path
        try:
            write_atomically(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
        except OSError as error:
            raise UsageError(f"--save_dir {folder}: {SUMMARY} cannot be written ({error})") from error
        try:
            draw_loss_curve(read_metrics(folder / METRICS), folder / LOSS_CURVE)
        except (OSError, ValueError, ImportError) as error:
            logger.warning("{} is not drawn ({})", folder / LOSS_CURVE, error)
        else:
            logger.info("loss curve {}", folder / LOSS_CURVE)

    def stopped(self, command: str) -> None:
        """Says where the run was stopped, and the command that goes on."""
        if self._run.world.is_main:
            self._display.close()
            logger.info("stopped at update {}. To go on: {}", self._run.progress.update, command)

    def _write(self, record: Record) -> None:
        try:
            self._metrics.write(record)
        except OSError as error:
            folder = self._run.folder
            raise UsageError(
                f"--save_dir {folder.path}: metrics cannot be written ({error}). {folder.last_good()}"
            ) from error
        self._board.log(record)
        try:
            self._tracker.log(record)
        except Exception as error:
            logger.warning("the run goes on without wandb, which failed ({}: {})", type(error).__name__, error)
            self._tracker = Tracker()


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the state tensors on this process; tables that several share count once."""
    tensors = [local(t) for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())
