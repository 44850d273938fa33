"""Weights to start from: a Hugging Face folder of a LLaMA, read tensor by tensor."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from peft_pretraining.errors import UsageError

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FILES = ("*.json", "*.safetensors", "tokenizer.model")


def pretrained_folder(name: str) -> Path:
    """The folder itself, or the files of a model on the hub, fetched once. Raises UsageError."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:  # the hub's client raises many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"--init_from {name}: no such folder, nor a model of this name on the hub ({reason})"
        ) from error


class PretrainedWeights:
    """The tensors of a folder with model.safetensors, or with several files and their index. Raises UsageError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._where = self._files()

    def _files(self) -> dict[str, Path]:
        """Name of a tensor -> the file that holds it."""
        single, index = self.folder / _SINGLE, self.folder / _INDEX
        try:
            if single.exists():
                with safe_open(single, "pt") as file:
                    return dict.fromkeys(file.keys(), single)
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: self.folder / file for name, file in files.items()}
        except OSError as error:
            raise UsageError(f"--init_from {self.folder}: has neither {_SINGLE} nor {_INDEX}") from error
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"--init_from {self.folder}: the weights cannot be read ({error})") from error

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor by name. Raises UsageError where it is missing or of another shape."""
        if name not in self._where:
            raise UsageError(f"--init_from {self.folder}: holds no {name}; its model is of another kind or shape")
        try:
            with safe_open(self._where[name], "pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UsageError(f"--init_from {self._where[name]}: {name} cannot be read ({error})") from error
        if tuple(tensor.shape) != shape:
            raise UsageError(
                f"--init_from {self.folder}: {name} is {tuple(tensor.shape)}, this model's is {shape}; leave "
                "--model_config out to take the folder's shape"
            )
        return tensor
