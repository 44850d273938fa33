"""allenai/c4 on the Hugging Face hub: one list of its files, at one commit."""

from typing import Any

from peft_pretraining.data.faults import REMEDIES, DataError
from peft_pretraining.data.files import with_retries
from peft_pretraining.data.shards import Corpus, Shard
from peft_pretraining.errors import UsageError

REPOSITORY = "allenai/c4"
_FOLDER = "en"
# A hub that cannot be reached at all is reported soon; one that answers "not now" is waited for.
_UNREACHABLE_AFTER = 15.0


def hub_corpus(revision: str, timeout: float) -> Corpus:
    """The English part of C4. The file system in it has learnt all that opening the files asks for.

    Raises UsageError with the remedies where the hub does not answer.
    """
    from huggingface_hub import HfApi, HfFileSystem

    filesystem = HfFileSystem()
    try:
        commit = _ask(lambda: HfApi().dataset_info(REPOSITORY, revision=revision).sha, timeout)
        folder = f"datasets/{REPOSITORY}@{commit}/{_FOLDER}"
        entries = _ask(lambda: filesystem.ls(folder, detail=True), timeout)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"--dataset c4: the hub's list of {REPOSITORY} ({revision}) cannot be read: {reason}; {REMEDIES}"
        ) from error
    return Corpus(_shards(entries, "c4-train."), _shards(entries, "c4-validation."), filesystem, revision=str(commit))


def _ask(question: Any, timeout: float) -> Any:
    from huggingface_hub.errors import HfHubHTTPError

    def answered() -> Any:
        try:
            return question()
        except HfHubHTTPError as error:
            if error.response is not None:
                refused.append(error)
            raise

    refused: list[Exception] = []
    what = f"the file list of {REPOSITORY}"
    try:
        return with_retries(answered, what, min(timeout, _UNREACHABLE_AFTER))
    except DataError:
        if not refused:
            raise
        return with_retries(answered, what, timeout)


def _shards(entries: list[dict[str, Any]], prefix: str) -> tuple[Shard, ...]:
    shards = []
    for entry in sorted(entries, key=lambda entry: entry["name"]):
        name = entry["name"].rsplit("/", 1)[-1]
        if name.startswith(prefix):
            shards.append(Shard(f"hf://{entry['name']}", f"{_FOLDER}/{name}", int(entry["size"])))
    if not shards:
        raise UsageError(f"--dataset c4: {REPOSITORY} holds no file {_FOLDER}/{prefix}*")
    return tuple(shards)
