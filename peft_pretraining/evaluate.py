"""Measures a trained checkpoint on text: `python -m peft_pretraining.evaluate runs/demo --dataset other/text`."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from peft_pretraining.console import reader_may_leave
from peft_pretraining.data.config import DataConfig
from peft_pretraining.data.evaluation_set import EvaluationSet
from peft_pretraining.data.faults import DataError
from peft_pretraining.data.sources import find_corpus
from peft_pretraining.data.tokenization import Encoder
from peft_pretraining.distributed.world import World
from peft_pretraining.errors import UsageError
from peft_pretraining.flags.fields import TokenCount
from peft_pretraining.model.llama import PretrainingLlama
from peft_pretraining.model.loading import load_checkpoint
from peft_pretraining.run_folder.layout import STATE_FOLDER, TRAINER, newest_checkpoint
from peft_pretraining.training.evaluation import Evaluation, evaluate_batches


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    config: DataConfig,
    *,
    batch_size: int = 16,
    all_documents: bool = True,
    published: bool = False,
) -> Evaluation:
    """The loss of the first `config.eval_tokens` tokens of a data set, as `torchrun_main.py` evaluates.

    all_documents: of data without validation files, every document instead of the one in 25 that training holds out.
    published: the biased mean of the published harness. Raises UsageError and DataError.
    """
    corpus = find_corpus(config)
    if all_documents and corpus.hold_out:
        corpus = dataclasses.replace(corpus, validation=corpus.train)
    described: dict[str, Any] = {"files": corpus.fingerprint, "tokenizer": tokenizer.backend_tokenizer.to_str()}
    described |= {"text_column": config.text_column, "packing": config.packing}
    order = {**described, "data_seed": None, "shuffle_block": None}
    chosen = EvaluationSet(config, corpus, Encoder(tokenizer, model.config.vocab_size), order)
    batches = chosen.batches(batch_size, rank=0, world_size=1)
    result = evaluate_batches(PretrainingLlama(model, plain=True), batches, World(model.device), published=published)
    assert result is not None  # nothing asks it to stop
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, 1 for data that cannot be read, 2 for a mistake."""
    arguments = _parser().parse_args(argv)
    try:
        folder = newest_checkpoint(Path(arguments.checkpoint))
        model, tokenizer = load_checkpoint(folder, arguments.device)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise UsageError(f"{folder}: its tokenizer is not one of the tokenizers library")
        config = DataConfig(
            dataset=arguments.dataset,
            text_column=arguments.text_column,
            max_length=arguments.max_length or _trained_length(folder),
            packing=arguments.packing,
            eval_tokens=arguments.eval_tokens,
        )
        result = measure(
            nn.Module.to(model, torch.float32 if model.device.type == "cpu" else model.dtype),
            tokenizer,
            config,
            batch_size=arguments.batch_size,
            all_documents=arguments.documents == "all",
            published=arguments.evaluation == "published",
        )
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except DataError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    with reader_may_leave():
        figures = {"checkpoint": str(folder), "dataset": arguments.dataset, "loss": result.loss}
        figures |= {"perplexity": result.perplexity, "bits_per_byte": result.bits_per_byte, "tokens": result.tokens}
        print(json.dumps(figures, indent=2))
    return 0


def _trained_length(checkpoint: Path) -> int:
    """The row length that the checkpoint was trained with; 256 where it does not say."""
    try:
        trainer = json.loads((checkpoint / STATE_FOLDER / TRAINER).read_text(encoding="utf-8"))
        return int(trainer["config"]["data"]["max_length"])
    except (OSError, ValueError, KeyError, TypeError):
        return DataConfig.max_length


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m peft_pretraining.evaluate", description=__doc__)
    parser.add_argument(
        "checkpoint", help="a model_N folder, a run folder (its newest checkpoint is taken), or any LLaMA"
    )
    parser.add_argument(
        "--dataset", required=True, help="as for training: c4, builtin, or a path or glob of text files"
    )
    parser.add_argument(
        "--documents",
        choices=("all", "held_out"),
        default="all",
        help="of data without validation files: all documents, or the one in 25 that training holds out (default: all)",
    )
    parser.add_argument(
        "--eval_tokens", type=TokenCount, default=TokenCount("10M"), help="tokens at most (default: 10M)"
    )
    parser.add_argument("--max_length", type=int, help="tokens in a row (default: as the checkpoint was trained)")
    parser.add_argument("--packing", action="store_true", help="fill rows with documents joined by EOS")
    parser.add_argument("--text_column", default="text", help="field that holds a document (default: text)")
    parser.add_argument("--batch_size", type=int, default=16, help="rows at once (default: 16)")
    parser.add_argument(
        "--evaluation", choices=("exact", "published"), default="exact", help="published: the biased mean of the papers"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    return parser


if __name__ == "__main__":
    sys.exit(main())
