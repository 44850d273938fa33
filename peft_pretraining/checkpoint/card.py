"""The README.md of a checkpoint: what the model is, how it was trained, how to load it."""

from collections.abc import Mapping
from typing import Any

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [llama, pretraining, {optimizer}]
---

# LLaMA with {parameters} parameters, after {update:,} of {updates:,} updates

Pretrained from random weights on `{dataset}`. It has seen {tokens:,} tokens. It is a base model: it continues text, and
was not tuned to follow instructions.

| | |
|---|---|
| optimizer | `{optimizer}`, learning rate {lr:g}, {scheduler} schedule |
| update | {rows} rows of {length} tokens{packing} |
| weights | {dtype} |
| seed | {seed} |
| validation | {validation} |

The complete configuration is in `training_state/trainer.json`, and in `run.json` of the run.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_OF_THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")
inputs = tokenizer("The", add_special_tokens=False, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```
"""


def model_card(config: Mapping[str, Mapping[str, Any]], progress: Mapping[str, Any], parameters: int) -> str:
    """Markdown with the hub's header. config: of the run, as `RunConfig.to_dict`. progress: as `Progress.to_json`."""
    training, data, evaluation = config["training"], config["data"], progress["evaluation"]
    validation = "not yet"
    if evaluation:
        validation = (
            f"perplexity {evaluation['eval_perplexity']:.2f} on {evaluation['eval_tokens']:,} tokens "
            f"after update {evaluation['update_step']:,}"
        )
    return _CARD.format(
        optimizer=config["optimizer"]["optimizer"],
        lr=config["optimizer"]["lr"],
        scheduler=config["schedule"]["scheduler"],
        parameters=_count(parameters),
        update=progress["update"],
        updates=training["num_training_steps"],
        tokens=progress["tokens_seen"],
        dataset=data["dataset"],
        rows=training["total_batch_size"],
        length=data["max_length"],
        packing=", packed" if data["packing"] else "",
        dtype=config["model"]["dtype"],
        seed=training["seed"],
        validation=validation,
    )


def _count(number: int) -> str:
    """9.1M, 1.34B."""
    return f"{number / 1e9:.3g}B" if number >= 1e9 else f"{number / 1e6:.3g}M"
