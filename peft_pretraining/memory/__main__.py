"""Predicts the memory of a training run, and the smallest common GPU that holds it, before any is needed.

    python -m peft_pretraining.memory --model_config configs/llama_7b.json --optimizer NAME [flags of the run]

takes the flags of torchrun_main.py and prints what weights, gradients, optimizer state, activations and working tensors
hold. `--optimizer all` prints one line for every method; flags that a method does not have are left out for it.
The numbers are those of live tensors in eager execution by one process, in GiB, as GPUs are labelled.
Exit status: 0, or 2 for a mistake in the command line.
"""

import sys
from collections.abc import Sequence

from loguru import logger

from peft_pretraining.cli.parse import parse_config
from peft_pretraining.console import reader_may_leave
from peft_pretraining.errors import UsageError
from peft_pretraining.flags.catalogue import Entry, catalogue
from peft_pretraining.memory.ledger import Account
from peft_pretraining.memory.prediction import STATE, predict
from peft_pretraining.training.run_config import RunConfig
from peft_pretraining.units import GIB

RESERVE = 1.0
"""GiB of a GPU kept for the CUDA context, kernels' workspaces and what the allocator cannot use."""
CARDS = {
    8: "RTX 4060",
    12: "RTX 4070",
    16: "RTX 4080, T4",
    24: "RTX 4090, L4",
    32: "RTX 5090",
    40: "A100 40 GB",
    48: "L40S, A6000",
    80: "A100, H100",
    96: "RTX PRO 6000",
    141: "H200",
    192: "MI300X",
}
"""Memory in GiB -> common GPUs that have it."""
ALL = "all"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    logger.remove()
    logger.add(sys.stderr, level="WARNING", format="{message}")
    if {"-h", "--help"} & set(words):
        with reader_may_leave():
            print(f"{__doc__}\nFlags of the run:\n")
    try:
        if _value(words, "--optimizer") == ALL:
            with reader_may_leave():
                _print_table(words)
        else:
            config = parse_config(words)
            print(describe(config, predict(config)))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def describe(config: RunConfig, account: Account) -> str:
    """The account of one run in words, by kind of tensor."""
    training = config.training
    notes = [f"{config.model.shape_file}, {config.optimizer.optimizer}, {config.model.dtype}"]
    notes += [f"{training.batch_size} rows of {config.data.max_length} tokens at once"]
    notes += [f"{training.gradient_accumulation} micro-batches"] if (training.gradient_accumulation or 1) > 1 else []
    notes += ["activation checkpointing"] if config.model.activation_checkpointing else []
    lines = [", ".join(notes), f"{'GiB':<24}{'largest':>9}{'at the peak':>13}"]
    for kind, size in sorted(account.largest.items(), key=lambda item: -item[1]):
        lines.append(f"{kind:<24}{size / GIB:>9.3f}{account.at_peak.get(kind, 0) / GIB:>13.3f}")
    lines.append(f"{'peak':<24}{'':>9}{account.peak / GIB:>13.3f}   in {account.moment}")
    lines.append(f"smallest common GPU: {card(account.peak)}, {RESERVE:g} GiB kept for CUDA itself")
    if config.model.compile_model or config.optimizer.arguments().get("execution") == "compiled":
        lines.append("counted as eager execution: compiled code needs no more than that")
    return "\n".join(lines)


def card(peak: int) -> str:
    """The smallest common GPU that holds this many bytes of tensors, or the words that none does."""
    size = next((size for size in CARDS if peak / GIB + RESERVE <= size), None)
    return "none alone" if size is None else f"{size} GiB ({CARDS[size]})"


def row(name: str, account: Account) -> str:
    """One line of the table of all methods."""
    state = sum(size for kind, size in account.largest.items() if kind.startswith(STATE))
    columns = [account.largest.get(kind, 0) for kind in ("weights", "gradients")]
    columns += [state, account.largest.get("activations", 0), account.at_peak.get("transient", 0), account.peak]
    return f"{name:<28}" + "".join(f"{size / GIB:>12.2f}" for size in columns) + f"   {card(account.peak)}"


def words_for(method: Entry, words: Sequence[str]) -> list[str]:
    """The command line for one method: without the flags, and their values, that only other methods have."""
    foreign = {name for other in catalogue() for name in other.flags} - method.flags
    kept, skipping = [], False
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            skipping = name in foreign or name.removeprefix("no_") in foreign
        if not skipping:
            kept.append(word)
    at = kept.index("--optimizer") + 1 if "--optimizer" in kept else kept.index(f"--optimizer={ALL}")
    kept[at] = method.name if kept[at] == ALL else f"--optimizer={method.name}"
    return kept


def _print_table(words: Sequence[str]) -> None:
    titles = ("weights", "gradients", "state", "activations", "transient", "peak")
    print(f"{'GiB':<28}" + "".join(f"{title:>12}" for title in titles) + "   smallest common GPU")
    for method in catalogue():
        try:
            print(row(method.name, predict(parse_config(words_for(method, words)))), flush=True)
        except UsageError as error:
            print(f"{method.name:<28} refused: {error}", flush=True)


def _value(words: Sequence[str], flag: str) -> str | None:
    """The value of a flag, written beside it or after '='."""
    for word, following in zip(words, [*words[1:], ""], strict=False):  # no words: nothing to pair
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


if __name__ == "__main__":
    sys.exit(main())
