"""allenai/c4 on the Hugging Face hub: one list of its files, at one commit."""

from collections.abc import Callable
from typing import Any

from peft_pretraining.data.faults import REMEDIES, DataError
from peft_pretraining.data.files import with_retries
from peft_pretraining.data.shards import Corpus, Shard
from peft_pretraining.errors import UsageError

REPOSITORY = "allenai/c4"
_FOLDER = "en"
# A hub that cannot be reached at all is reported soon; one that answers "not now" is waited for.
_UNREACHABLE_AFTER = 8.0


def hub_corpus(revision: str, timeout: float) -> Corpus:
    """The English part of C4. The file system in it has learnt all that opening the files asks for.

    Raises UsageError with the remedies where the hub does not answer.
    """
    from huggingface_hub import HfApi, HfFileSystem

    filesystem = HfFileSystem()
    what = f"the file list of {REPOSITORY}"
    try:
        commit = ask_hub(lambda: HfApi().dataset_info(REPOSITORY, revision=revision).sha, what, timeout)
        folder = f"datasets/{REPOSITORY}@{commit}/{_FOLDER}"
        entries = ask_hub(lambda: filesystem.ls(folder, detail=True), what, timeout)
    except Exception as error:
        raise UsageError(
            f"--dataset c4: {what} ({revision}) cannot be read from the hub: {reason_of(error)}; {REMEDIES}"
        ) from error
    return Corpus(_shards(entries, "c4-train."), _shards(entries, "c4-validation."), filesystem, revision=str(commit))


def ask_hub(question: Callable[[], Any], what: str, timeout: float) -> Any:
    """The hub's answer. An error status that may pass is waited out for `timeout` seconds, silence not as long."""
    from huggingface_hub.errors import HfHubHTTPError

    answers: list[Exception] = []

    def answered() -> Any:
        try:
            return question()
        except HfHubHTTPError as error:
            answers.append(error)
            raise

    try:
        return with_retries(answered, what, min(timeout, _UNREACHABLE_AFTER))
    except DataError:
        if not answers:
            raise
        return with_retries(answered, what, timeout)


def reason_of(error: BaseException) -> str:
    """The first line that says why; that of the cause where retries gave up."""
    if isinstance(error, DataError) and error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _shards(entries: list[dict[str, Any]], prefix: str) -> tuple[Shard, ...]:
    shards = []
    for entry in sorted(entries, key=lambda entry: entry["name"]):
        name = entry["name"].rsplit("/", 1)[-1]
        if name.startswith(prefix):
            shards.append(Shard(f"hf://{entry['name']}", f"{_FOLDER}/{name}", int(entry["size"])))
    if not shards:
        raise UsageError(f"--dataset c4: {REPOSITORY} holds no file {_FOLDER}/{prefix}*")
    return tuple(shards)
