"""Writing and reading checkpoints: model_{update}/ is a Hugging Face folder with the training state inside.

    model_100/  config.json, model.safetensors, tokenizer files     opens with transformers
        training_state/  trainer.json, *.safetensors                 what resuming needs beside the weights
        manifest.json                                                SHA-256 of every file

Nothing is pickled. Several processes write their shards of the optimizer state into the same folder, so a run
on several machines needs a file system that they share.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial as partial_function
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from safetensors import SafetensorError
from torch import Tensor, nn

from peft_pretraining.checkpoint import optimizer_state
from peft_pretraining.checkpoint.background import BackgroundSave
from peft_pretraining.checkpoint.card import model_card
from peft_pretraining.checkpoint.config import CheckpointConfig
from peft_pretraining.checkpoint.progress import Progress
from peft_pretraining.checkpoint.rng import random_state, restore_random_state
from peft_pretraining.checkpoint.state import TrainingState
from peft_pretraining.checkpoint.tensors import read_tensors, unshared, unusable, write_tensors
from peft_pretraining.data import merge_states
from peft_pretraining.distributed.world import World
from peft_pretraining.errors import UsageError
from peft_pretraining.model.export import save_model
from peft_pretraining.run_folder.layout import CARD, STATE_FOLDER, TRAINER, RunFolder
from peft_pretraining.run_folder.modes import follow_umask

FORMAT_VERSION = 1


class Checkpoints:
    """The checkpoints of one run, written into its folder. Every method is a collective.

    config: the run's, as JSON holds it; saved beside the state, and compared with when a run goes on.
    last_saved: the update of the newest checkpoint in the folder, or under way to it.
    """

    def __init__(
        self, folder: RunFolder, world: World, settings: CheckpointConfig, config: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._folder, self._world, self._settings, self._config = folder, world, settings, config
        self._saving: BackgroundSave | None = None
        self.last_saved: int | None = None

    def save(self, state: TrainingState, last: bool) -> Path:
        """Writes model_{update} of the current update.

        With --async_save it returns when the state is copied; the next save, and the last one, wait for the disk.
        Raises UsageError if it, or the one before it, cannot be written; the checkpoints before are untouched.
        """
        update, world, folder = state.progress.update, self._world, self._folder
        self.wait()
        if self.last_saved == update:
            return folder.checkpoint(update)
        later = self._settings.async_save and not last
        if world.is_main:
            folder.sync_metrics()
        with self._failure_named(update):
            with world.together(), _disk_errors():
                partial = folder.begin(update) if world.is_main else None
            path = world.from_main(partial)
            assert path is not None
            with world.together(), _disk_errors():
                (path / STATE_FOLDER).mkdir(exist_ok=True)
            trainer, weights = self._describe(state), _whole_weights(state.model, world, copy=later)
            publish = partial_function(self._publish, state, path, trainer, weights)
            tensors = unshared(optimizer_state.state_tensors(state.optimizer, state.names))
            if later:
                publish_here = publish if world.is_main else None
                self._saving = BackgroundSave(update, tensors, path / STATE_FOLDER, publish_here, world)
            else:
                write_tensors(tensors, path / STATE_FOLDER, world)
                with world.together(), _disk_errors():
                    if world.is_main:
                        with world.working("writes a checkpoint"):
                            publish()
        self.last_saved = update
        return folder.checkpoint(update)

    def wait(self) -> None:
        """Until a checkpoint under way in the background is on the disk. Raises UsageError if it could not be."""
        if (saving := self._saving) is None:
            return
        self._saving = None
        with self._failure_named(saving.update), self._world.together(), _disk_errors():
            saving.wait()

    def load(self, state: TrainingState, path: Path) -> dict[str, Any]:
        """Brings a newly built state to the one saved in `path`, which has been verified.

        Returns the configuration that it was saved with.

        Raises UsageError for a checkpoint of another model, optimizer or format version, and for one whose files,
        although they are those of its manifest, mean nothing.
        """
        existing = optimizer_state.state_tensors(state.optimizer, state.names)
        elsewhere = set().union(*self._world.gather_objects(set(existing)))
        with self._world.together(), _legible(path):
            trainer = read_trainer(path)
            weights = _plan_weights(state.model, path)
            saved, folder = trainer["optimizer"], path / STATE_FOLDER
            tensors = optimizer_state.plan_restore(state.optimizer, state.names, saved, folder, elsewhere)
            progress = Progress.from_json(trainer["progress"])
            state.data.load_state_dict(trainer["data"])
        read_tensors(weights, path, self._world)
        read_tensors(tensors, path / STATE_FOLDER, self._world)
        with self._world.together(), _legible(path):
            optimizer_state.finish_restore(state.optimizer, state.names, saved, tensors)
            state.progress = progress
            if self._world.rank < len(trainer["random"]):
                restore_random_state(trainer["random"][self._world.rank], self._world.device)
            _log_changes(trainer["config"], self._config)
        if path.parent.resolve() == self._folder.path.resolve():
            self.last_saved = progress.update
        return dict(trainer["config"])

    def _describe(self, state: TrainingState) -> dict[str, Any]:
        world = self._world
        states = world.gather_objects((state.data.state_dict(), random_state(world.device)))
        return {
            "format_version": FORMAT_VERSION,
            "progress": state.progress.to_json(),
            "optimizer": optimizer_state.describe(state.optimizer, state.names, state.constructed_groups),
            "data": merge_states([data for data, _ in states]),
            "random": [random for _, random in states],
            "config": self._config,
            "world": {"processes": world.world_size, "parallel": self._config["parallel"]["parallel"]},
            "versions": {"torch": torch.__version__},
        }

    def _publish(
        self,
        state: TrainingState,
        path: Path,
        trainer: dict[str, Any],
        weights: dict[str, Tensor],
    ) -> None:
        """What the main process writes once all shards of the optimizer state are there."""
        update = trainer["progress"]["update"]
        save_model(state.model, path, state.data.tokenizer, state_dict=weights)
        (path / STATE_FOLDER / TRAINER).write_text(json.dumps(trainer), encoding="utf-8")
        parameters = sum(tensor.numel() for tensor in weights.values())
        (path / CARD).write_text(model_card(self._config, trainer["progress"], parameters), encoding="utf-8")
        follow_umask(path)
        self._folder.publish(update, self._settings.keep_checkpoints)
        logger.info("checkpoint {}", self._folder.checkpoint(update))

    @contextmanager
    def _failure_named(self, update: int) -> Iterator[None]:
        """Says which checkpoint failed, why, and what is left; leaves nothing half-written behind."""
        try:
            yield
        except UsageError as error:
            folder = self._folder
            if self._world.is_main:
                folder.discard(update)
            raise type(error)(
                f"--save_dir {folder.path}: the checkpoint of update {update} could not be written ({error}). "
                f"{folder.last_good()}. Make room or choose another folder, then go on with --continue_from"
            ) from error


def read_trainer(path: Path) -> dict[str, Any]:
    """The parsed trainer.json of a checkpoint. Raises UsageError for another format or unusable content."""
    file = path / STATE_FOLDER / TRAINER
    try:
        trainer = json.loads(file.read_text(encoding="utf-8"))
        version = trainer["format_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"--continue_from {path}: {file.name} is unusable ({type(error).__name__})") from error
    if version != FORMAT_VERSION:
        raise UsageError(
            f"--continue_from {path}: its format version is {version}, this release reads {FORMAT_VERSION}; "
            "continue it with the release that wrote it"
        )
    kinds = {"progress": dict, "optimizer": dict, "data": dict, "random": list, "config": dict}
    for key, kind in kinds.items():
        if not isinstance(trainer.get(key), kind):
            raise UsageError(f"--continue_from {path}: {file.name} has no usable {key!r}")
    return trainer


def _whole_weights(model: nn.Module, world: World, copy: bool) -> dict[str, Tensor]:
    """The unsharded weights, on the CPU of the main process only; copy: in memory that no update changes."""
    from torch.distributed.tensor import DTensor

    weights = {}
    for name, parameter in model.named_parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if world.is_main:
            weights[name] = whole.detach().to("cpu", copy=copy)
    return weights


def _plan_weights(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """The model's own tensors by name, after a check that `path` holds the same ones."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    stored = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    targets = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name in sorted(stored.keys() ^ targets.keys()):
        where = "the checkpoint" if name in stored else "this run's model"
        raise UsageError(f"--model_config: {path} is a checkpoint of another model: only {where} has {name}")
    for name, target in targets.items():
        entry: Any = stored[name]
        if tuple(entry.size) != tuple(target.shape):
            raise UsageError(
                f"--model_config: {path} is a checkpoint of another model: {name} is {tuple(entry.size)}, "
                f"not {tuple(target.shape)}"
            )
        if entry.properties.dtype != target.dtype:
            raise UsageError(f"--dtype: {path} holds {name} in {entry.properties.dtype}, not {target.dtype}")
    return targets


def _log_changes(before: dict[str, Any], after: Mapping[str, Any]) -> None:
    for section, values in json.loads(json.dumps(after)).items():
        for name, value in values.items():
            old = before.get(section, {}).get(name)
            if old != value and section not in ("checkpoint", "logging"):
                logger.info("--{} was {} in the run that is continued and is {} from here", name, old, value)


@contextmanager
def _legible(path: Path) -> Iterator[None]:
    """A body without collectives that interprets files: whatever nonsense in them brings about is a UsageError."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(unusable(path, error)) from error


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UsageError(str(error)) from error
