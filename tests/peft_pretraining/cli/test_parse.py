"""The command line: what is accepted, what follows from it, and how mistakes are answered."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from optimizers.engine import registry
from peft_pretraining.cli.parse import parse_config
from peft_pretraining.errors import UsageError
from peft_pretraining.flags.catalogue import catalogue
from peft_pretraining.flags.optimizer import flags_of

# Other tests of the same process may have brought methods of their own.
METHODS = [method for method in registry.methods() if method.name in {entry.name for entry in catalogue()}]


def complaint(words: list[str], world_size: int = 1) -> str:
    with pytest.raises(UsageError) as caught:
        parse_config(words, world_size=world_size)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.fixture
def saved(tmp_path: Path, minimal: list[str]):
    """Saves the configuration of a command line and gives the flags that reload it."""

    def save(*words: str, world_size: int = 1) -> list[str]:
        config = parse_config([*minimal, *words], world_size=world_size)
        (tmp_path / "run.json").write_text(json.dumps(config.to_dict()))
        return ["--config", str(tmp_path / "run.json")]

    return save


MISTAKES = {
    "misspelt": (["--optimzer", "adamw_sn"], ["unknown flag --optimzer", "--optimizer"]),
    "misspelt with hyphens": (["--batch-sise", "3"], ["unknown flag --batch_sise", "did you mean --batch_size"]),
    "single dash": (["-seed", "3"], ["unknown flag -seed"]),
    "abbreviated": (["--grad_clip", "1"], ["unknown flag --grad_clip", "--grad_clipping"]),
    "stray word": (["1.0"], ["'1.0' belongs to no flag"]),
    "without value": (["--lr"], ["--lr"]),
    "not a number": (["--lr", "fast"], ["--lr fast", "a number"]),
    "not whole": (["--batch_size", "2.5"], ["--batch_size 2.5", "a whole number"]),
    "not positive": (["--lr", "-1"], ["--lr -1", "positive"]),
    "no clipping": (["--grad_clipping", "nan"], ["--grad_clipping nan", "0 or more"]),
    "window without effect": (["--spike_window", "5"], ["--spike_window 5", "at least 20"]),
    "no learning rate": (["--lr", "nan"], ["--lr nan", "positive"]),
    "no token count": (["--max_train_tokens", "1e9"], ["--max_train_tokens", "100M"]),
    "near choice": (["--scheduler", "cosin"], ["--scheduler cosin", "did you mean cosine"]),
    "half precision": (["--dtype", "fp16"], ["--dtype fp16", "bfloat16"]),
    "unused hyperparameter": (["--rank", "8"], ["--rank 8", "adamw_sn", "choose", "galore_"]),
    "unused subset": (["--subset_size", "8"], ["--subset_size 8", "adamw_sng"]),
    "unused cycle": (["--cycle_length", "8"], ["--cycle_length", "cosine_restarts"]),
    "cycle missing": (["--scheduler", "cosine_restarts"], ["--cycle_length"]),
    "tag too long": (["--tags", "a" * 70], ["--tags aaa", "64"]),
    "two lengths": (
        ["--max_train_tokens", "1M", "--num_training_steps", "10"],
        ["--max_train_tokens 1000000", "--num_training_steps 10"],
    ),
    "less than an update": (["--max_train_tokens", "100"], ["--max_train_tokens 100", "4096"]),
    "indivisible": (
        ["--batch_size", "16", "--total_batch_size", "500"],
        ["--total_batch_size 500", "--batch_size 16", "496 or 512"],
    ),
    "inconsistent": (
        ["--batch_size", "16", "--gradient_accumulation", "2", "--total_batch_size", "64"],
        ["--total_batch_size 64", "--gradient_accumulation 2", "= 32"],
    ),
    "warmup too long": (["--warmup_steps", "20", "--num_training_steps", "20"], ["--warmup_steps 20"]),
    "stops after its end": (["--stop_at", "20", "--num_training_steps", "10"], ["--stop_at 20", "10 updates"]),
    "gpu on cpu": (["--single_gpu", "--gpu", "0", "--device", "cpu"], ["--gpu 0", "--device cpu"]),
    "missing configuration": (["--config", "absent.json"], ["--config absent.json", "No such file"]),
    "missing method file": (
        ["--optimizer_file", "absent.py"],
        ["--optimizer_file absent.py", "no such file"],
    ),
}


@pytest.mark.parametrize(("words", "parts"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_in_one_line(minimal: list[str], words: list[str], parts: list[str]) -> None:
    message = complaint([*minimal, *words])
    assert [part for part in parts if part not in message] == [], message


def test_an_unknown_optimizer_is_answered_with_near_names(root: Path) -> None:
    message = complaint(["--model_config", str(root / "configs/llama_9m.json"), "--optimizer", "adamw_snn"])
    assert "adamw_snn" in message and "adamw_sn" in message


def test_what_has_no_default_is_asked_for(root: Path) -> None:
    assert "--optimizer is required" in complaint(["--model_config", str(root / "configs/llama_9m.json")])
    assert "--model_config is required" in complaint(["--optimizer", "adamw_sn"])


def test_single_gpu_under_several_processes_is_refused(minimal: list[str]) -> None:
    assert "--single_gpu" in complaint([*minimal, "--single_gpu"], world_size=2)


@pytest.mark.parametrize(
    ("words", "processes", "expected"),
    [
        ([], 1, (16, 1, 16)),
        ([], 2, (16, 1, 32)),
        (["--batch_size", "8", "--gradient_accumulation", "4"], 2, (8, 4, 64)),
        (["--batch_size", "8", "--total_batch_size", "64"], 2, (8, 4, 64)),
        (["--gradient_accumulation", "4", "--total_batch_size", "64"], 2, (8, 4, 64)),
        (["--batch_size", "8", "--gradient_accumulation", "4", "--total_batch_size", "64"], 2, (8, 4, 64)),
    ],
)
def test_batches_add_up(minimal: list[str], words: list[str], processes: int, expected: tuple[int, int, int]) -> None:
    training = parse_config([*minimal, *words], world_size=processes).training
    assert (training.batch_size, training.gradient_accumulation, training.total_batch_size) == expected


def test_tokens_become_updates(minimal: list[str]) -> None:
    config = parse_config([*minimal, "--max_train_tokens", "100M", "--total_batch_size", "512"], world_size=1)
    assert config.training.num_training_steps == 100_000_000 // (512 * 256)


def test_the_number_of_processes_comes_from_torchrun(minimal: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert parse_config(minimal).training.total_batch_size == 64


def test_names_may_be_hyphenated_aliased_and_negated(root: Path) -> None:
    config = parse_config(
        ["--model-config", str(root / "configs/llama_9m.json"), "--optimizer=LDAdamW", "--adam-beta1=0.9"]
        + ["--no_error_feedback", "--no-packing"],
        world_size=1,
    )
    hyperparameters = config.optimizer.arguments()
    assert config.optimizer.optimizer == "ldadamw"
    assert hyperparameters["beta1"] == 0.9 and hyperparameters["error_feedback"] is False
    assert config.data.packing is False


def test_one_methods_name_for_a_flag_serves_another(root: Path) -> None:
    words = ["--model_config", str(root / "configs/llama_9m.json"), "--optimizer", "sgd_boost", "--lr", "0.1"]
    assert parse_config([*words, "--beta1", "0.8"]).optimizer.arguments()["momentum"] == 0.8
    assert "set the same value" in complaint([*words, "--beta1", "0.8", "--momentum", "0.9"])


@pytest.mark.parametrize("name", registry.available())
def test_every_method_gets_its_own_defaults(root: Path, tmp_path: Path, name: str) -> None:
    config = parse_config(["--model_config", str(root / "configs/llama_9m.json"), "--optimizer", name])
    method = registry.get(name)
    assert dataclasses.asdict(config.optimizer.settings) == dataclasses.asdict(method.settings())
    assert list(config.optimizer.arguments()) == flags_of(method)
    (tmp_path / "run.json").write_text(json.dumps(config.to_dict()))
    assert parse_config(["--config", str(tmp_path / "run.json")]) == config


def test_what_a_name_implies_cannot_be_contradicted(root: Path) -> None:
    words = ["--model_config", str(root / "configs/llama_9m.json"), "--optimizer", "galore_adamw8bit"]
    assert "whose name implies int8" in complaint([*words, "--state_dtype", "float32"])


# -- saved configurations


def test_a_saved_configuration_is_run_again(saved, minimal: list[str]) -> None:
    words = ["--lr", "0.05", "--scheduler", "cosine_restarts", "--cycle_length", "2000", "--beta1", "0"]
    reload = saved(*words)
    assert parse_config(reload) == parse_config([*minimal, *words])


def test_typed_flags_override_saved_ones(saved) -> None:
    reload = saved("--lr", "0.05", "--grad_clipping", "1.0", "--packing")
    config = parse_config([*reload, "--lr", "0.01", "--no_packing"])
    assert (config.optimizer.lr, config.training.grad_clipping, config.data.packing) == (0.01, 1.0, False)


def test_a_saved_run_keeps_its_total_batch_on_other_processes(saved) -> None:
    reload = saved("--batch_size", "4", "--total_batch_size", "32", world_size=4)
    assert parse_config(reload, world_size=1).training.gradient_accumulation == 8
    assert parse_config([*reload, "--batch_size", "8"], world_size=2).training.gradient_accumulation == 2
    typed = parse_config([*reload, "--gradient_accumulation", "3"], world_size=1).training
    assert (typed.batch_size, typed.total_batch_size) == (4, 12)


def test_the_length_of_a_saved_run_can_be_given_either_way(saved) -> None:
    reload = saved("--max_train_tokens", "1M")
    assert parse_config([*reload, "--max_train_tokens", "2M"]).training.num_training_steps == 2_000_000 // 4096
    steps = parse_config([*reload, "--num_training_steps", "50"]).training
    assert (steps.num_training_steps, steps.max_train_tokens) == (50, None)


def test_another_method_takes_its_own_defaults(saved) -> None:
    reload = saved("--beta1", "0.5", "--weight_decay", "0.1")
    config = parse_config([*reload, "--optimizer", "ldadamw"])
    assert config.optimizer.settings == registry.get("ldadamw").settings()


def test_another_schedule_drops_what_belonged_to_the_old_one(saved) -> None:
    reload = saved("--scheduler", "cosine_restarts", "--cycle_length", "2000")
    config = parse_config([*reload, "--scheduler", "cosine"])
    assert config.schedule.cycle_length is None


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "not valid JSON"),
        ("[1, 2]", "object of sections"),
        ("[" * 100_000, "not valid JSON"),
        ('{"optimizer": {"optimiser": "adamw_sn"}}', "did you mean optimizer"),
        ('{"training": {"batch_size": -3}}', "--batch_size -3"),
        ('{"optimizer": {"optimizer_file": "/tmp/code.py"}}', "--optimizer_file /tmp/code.py"),
    ],
)
def test_a_bad_file_is_named(minimal: list[str], tmp_path: Path, content: str, part: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    message = complaint([*minimal, "--config", str(path)])
    assert part in message


def test_a_saved_method_file_is_not_run_unasked(tmp_path: Path, minimal: list[str]) -> None:
    code, ran = tmp_path / "method.py", tmp_path / "ran"
    code.write_text(f"open({str(ran)!r}, 'w')")
    (tmp_path / "run.json").write_text(json.dumps({"optimizer": {"optimizer_file": str(code)}}))
    complaint([*minimal, "--config", str(tmp_path / "run.json")])
    assert not ran.exists()


# -- a method of one's own

TOY = """
from dataclasses import dataclass
import torch
from optimizers import Method, Settings, hyper, register

@dataclass(frozen=True)
class Wobbling(Settings):
    wobble: float = hyper(0.25, "how much the toy wobbles")

def build(model, lr, h, options):
    return torch.optim.SGD(model.parameters(), lr=lr)

register(Method("toy", "a toy", settings=Wobbling, build=build, engine=False))
"""


def in_process(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


PARSE = """
import sys
from peft_pretraining.cli.parse import parse_config
from peft_pretraining.errors import UsageError
try:
    print(parse_config(sys.argv[1:]).optimizer.arguments())
except UsageError as error:
    sys.exit(str(error))
"""


def test_a_name_with_settings_of_its_own_has_its_own_flags(root: Path) -> None:
    words = ["--model_config", str(root / "configs/llama_9m.json"), "--optimizer", "apollo_mini"]
    assert "--rank 8 is not used by --optimizer apollo_mini" in complaint([*words, "--rank", "8"])


def test_a_method_file_brings_its_flags(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    words = ["--model_config", str(root / "configs/llama_9m.json"), "--optimizer_file", str(path)]
    done = in_process(PARSE, *words, "--optimizer", "toy", "--wobble", "0.5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith("{'wobble': 0.5, ")
    assert "--wobble X" in in_process(PARSE, *words, "--help").stdout
    refused = in_process(PARSE, *words, "--optimizer", "toy", "--state_dtype", "int8")
    assert "--state_dtype int8 is not used by --optimizer toy" in refused.stderr


def test_a_broken_method_file_is_named(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("1 / 0")
    done = in_process(PARSE, "--optimizer_file", str(path))
    assert done.returncode == 1
    assert "broken.py" in done.stderr and "division by zero" in done.stderr and "Traceback" not in done.stderr


def help_of(*words: str, columns: int = 80) -> str:
    done = in_process(PARSE, *words, "--help", COLUMNS=str(columns))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_lists_the_methods_and_what_every_run_has() -> None:
    text = help_of()
    for method in METHODS:
        assert f"  {method.name}: {method.description[:20]}" in text
    for heading in ("model:", "training:", "checkpoints:"):
        assert heading in text
    assert "--rank" not in text and "--beta1" not in text and "--state_dtype" not in text


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_help_beside_a_method_shows_its_flags_only(method: registry.Method) -> None:
    from peft_pretraining.cli.parse import shared_parser
    from peft_pretraining.flags.optimizer import sections_of

    shown = set(shared_parser(sections_of(method)).fields) - set(shared_parser().fields)
    assert shown == set(flags_of(method))


def test_help_beside_a_method_is_that_of_its_declarations() -> None:
    text = " ".join(help_of("--optimizer", "adamw_sn").split())
    assert "hyperparameters of adamw_sn:" in text
    assert "--beta1, --adam_beta1 X decay of the momentum; 0 is RMSProp-SN, which keeps none (default 0.9)" in text
    assert "--rank" not in text and "--galore_scale" not in text


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_fits_the_terminal(columns: int) -> None:
    for words in ((), ("--optimizer", "galore_adamw")):
        lines = help_of(*words, columns=columns).splitlines()
        assert max(map(len, lines)) <= max(columns, 80), max(lines, key=len)


NO_TORCH = """
import sys
from peft_pretraining.cli.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as done:
    status = done.code
heavy = {"torch", "transformers", "datasets"} & set(sys.modules)
assert not heavy, heavy
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--rnak", "8"], 2),
        (["--optimizer", "adamw_sn", "--rank", "8"], 2),
        (["--optimizer", "adamw_snn"], 2),
        (["--lr", "fast"], 2),
        (["--batch_size", "0", "--optimizer", "adamw", "--model_config", "x"], 2),
        (["--config", "absent.json"], 2),
        (["--help"], 0),
        (["--version"], 0),
    ],
)
def test_a_mistake_is_answered_before_what_takes_seconds_is_imported(words: list[str], status: int) -> None:
    done = in_process(NO_TORCH, *words)
    assert done.returncode == status, done.stderr


def test_the_catalogue_says_what_the_registry_says() -> None:
    """Names, descriptions and flags that are read from the files are those of the imported methods."""
    from peft_pretraining.flags.optimizer import sections_of
    from peft_pretraining.flags.parser import FlagParser

    for entry, method in zip(catalogue(), METHODS, strict=True):
        parser = FlagParser()
        for title, section in sections_of(method).items():
            parser.add_section(section, title)
        flags = {flag.lstrip("-") for flag in parser.flags} - {"help"}
        assert (entry.name, entry.description, entry.aliases) == (method.name, method.description, method.aliases)
        assert entry.flags == {flag for flag in flags if not flag.startswith("no_")}


def test_an_unknown_flag_is_met_with_the_methods_that_have_it(minimal: list[str]) -> None:
    message = complaint(["--rank", "8"])
    assert message.startswith("--rank is a flag of ") and "choose one with --optimizer" in message
    assert "unknown flag --rnak; did you mean --rank?" in complaint([*minimal, "--rnak", "8"])
    assert "--no_error_feedback is not used by --optimizer adamw_sn: leave it out, or choose ldadamw" in complaint(
        [*minimal, "--no_error_feedback"]
    )


def test_a_value_out_of_range_names_its_flag(root: Path) -> None:
    words = ["--model_config", str(root / "configs/llama_9m.json"), "--optimizer", "galore_adamw"]
    assert "--rank 0: it must be at least 1" in complaint([*words, "--rank", "0"])
    assert "--beta2 1.0: it must be at least 0 and below 1" in complaint([*words, "--beta2", "1"])
    assert "--proj_type sideways: choose one of std" in complaint([*words, "--proj_type", "sideways"])


def test_what_a_flag_switches_off_takes_its_companions_along(minimal: list[str]) -> None:
    config = parse_config([*minimal, "--wandb_project", "X", "--wandb_run_name", "Y", "--wandb_mode", "disabled"])
    assert config.logging.wandb_mode == "disabled"
    assert parse_config([*minimal, "--details_every", "5", "--no_log_details"]).logging.log_details is False


def test_a_home_folder_is_expanded_in_every_path(minimal: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = parse_config([*minimal, "--save_dir=~/runs/x", "--dataset", "~/texts", "--tokenizer=~/tokenizer"])
    assert config.checkpoint.save_dir == "/home/somebody/runs/x"
    assert (config.data.dataset, config.data.tokenizer) == ("/home/somebody/texts", "/home/somebody/tokenizer")
    assert "/home/somebody/absent.json" in complaint(["--config=~/absent.json"])


def test_a_run_says_nothing_of_other_methods(minimal: list[str]) -> None:
    own = parse_config(minimal).to_dict()["optimizer"]
    assert own.keys() == {"optimizer", "lr", "optimizer_file", *flags_of(registry.get("adamw_sn"))}


def test_a_configuration_of_an_earlier_version_is_read(minimal: list[str], tmp_path: Path) -> None:
    """It held null for every flag of the other methods."""
    config = parse_config([*minimal, "--beta1", "0.5", "--scheduler", "wsd"])
    saved = config.to_dict()
    saved["optimizer"] |= dict.fromkeys(["rank", "proj_type", "rho", "subset_size", "momentum", "error_feedback"])
    path = tmp_path / "run.json"
    path.write_text(json.dumps(saved))
    assert parse_config(["--config", str(path)]) == config
