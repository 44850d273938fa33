"""Real runs small enough for tests: a two-layer model on documentation of the standard library."""

import atexit
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("argparse", "collections", "logging", "pathlib", "random", "statistics", "textwrap", "unittest.mock")
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TIMINGS = ("seconds", "tokens_per_second", "peak_memory_mib")


@cache
def inputs() -> Path:
    """A folder with model.json, a tokenizer and text, made once a process."""
    folder = Path(tempfile.mkdtemp(prefix="tiny_runs"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "model.json").write_text(json.dumps(MODEL))
    documents = _documents()
    (folder / "text").mkdir()
    for part in range(4):
        lines = [json.dumps({"text": text}) + "\n" for text in documents[part::4]]
        (folder / "text" / f"part{part}.jsonl").write_text("".join(lines))
    _train_tokenizer(documents, folder / "tokenizer")
    return folder


def flags(save_dir: Path | str, *more: str, updates: int = 12) -> list[str]:
    """A command line of 8 sequences an update; `more` comes last and so wins."""
    made = inputs()
    text = (
        f"--model_config {made}/model.json --dataset {made}/text --tokenizer {made}/tokenizer --dtype fp32 "
        f"--workers 0 --eval_tokens 1000 --max_length 32 --batch_size 4 --total_batch_size 8 --optimizer adamw "
        f"--lr 1e-2 --num_training_steps {updates} --eval_every 4 --save_every 4 --save_dir {save_dir} "
        "--device cpu --wandb_mode disabled"
    ).split()
    return _override(text, list(more))


def _override(base: list[str], more: list[str]) -> list[str]:
    """Drops flags of `base` that `more` gives anew."""
    kept: list[str] = []
    for name, value in zip(base[::2], base[1::2], strict=True):
        if name not in more:
            kept += [name, value]
    return kept + more


def command(save_dir: Path | str, *more: str, processes: int | None = None, updates: int = 12) -> list[str]:
    """The words to start a run with: plain python, or torchrun with that many processes."""
    script = str(ROOT / "torchrun_main.py")
    if processes is None:
        return [sys.executable, script, "--single_gpu", *flags(save_dir, *more, updates=updates)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *launcher, script, *flags(save_dir, *more, updates=updates)]


def train(
    save_dir: Path | str, *more: str, processes: int | None = None, updates: int = 12, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Runs it to the end in processes of its own."""
    words = command(save_dir, *more, processes=processes, updates=updates)
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=environment())


def environment() -> dict[str, str]:
    """One thread a process, and no wandb account of whoever runs the tests."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_API_KEY": "", "PYTHONPATH": str(ROOT)}


def train_here(save_dir: Path | str, *more: str, updates: int = 12) -> int:
    """Runs it in this process, which saves the seconds of starting one; returns the exit status."""
    from torchrun_main import main

    return main(["--single_gpu", *flags(save_dir, *more, updates=updates)])


def records(save_dir: Path | str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (Path(save_dir) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(TIMINGS)} for line in lines]


def losses(save_dir: Path | str) -> list[float]:
    """Training losses, by update."""
    return [line["loss"] for line in records(save_dir) if "loss" in line]


def _documents() -> list[str]:
    texts: list[str] = []
    for name in MODULES:
        members = list(vars(importlib.import_module(name)).values())
        members += [value for member in members if inspect.isclass(member) for value in vars(member).values()]
        texts += [doc for member in members if isinstance(doc := getattr(member, "__doc__", None), str)]
    return [text for text in dict.fromkeys(texts) if len(text) > 120]


def _train_tokenizer(documents: list[str], folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MODEL["vocab_size"],
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(documents, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
