"""The command line as a user meets it: real processes, their output, and their exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import Forks

LOADKIT = str(Path(sys.executable).with_name("loadkit"))
COMMAND = "import sys; sys.argv[0] = 'loadkit'; from loadkit.cli import main; main()"
Run = Callable[..., subprocess.CompletedProcess[str]]


def installed(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the script that pip installed."""
    return subprocess.run(
        [LOADKIT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "COLUMNS": "100", **environ},
        check=False,
    )


@pytest.fixture
def run(forks: Forks) -> Run:
    """Runs what that script runs, in a process of its own that needn't import the libraries."""

    def running(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
        return forks.run(COMMAND, *arguments, environ={"COLUMNS": "100", **environ})

    return running


def test_help_lists_commands_and_exit_codes() -> None:
    done = installed("--help")
    assert done.returncode == 0
    for word in ("demo", "plan", "load", "plugins", "profiles", "Exit codes"):
        assert word in done.stdout


def test_plan_prints_who_decided_what(tiny) -> None:
    done = installed("plan", tiny("mistral"), "--profile", "qlora", "--why")
    assert done.returncode == 0, done.stderr
    for words in (
        "MistralForCausalLM",
        "bitsandbytes 4-bit",
        "quant_type=nf4",
        "use_double_quant",
        "instead of",
    ):
        assert words in done.stdout


def test_plan_as_json_is_a_plan(tiny, tmp_path: Path, run: Run) -> None:
    import loadkit

    done = run("plan", tiny("mistral"), "--json", "--output", tmp_path / "plan.json", "--dtype", "float32")
    plan = loadkit.Plan.from_json(done.stdout)
    assert plan == loadkit.Plan.from_json((tmp_path / "plan.json").read_text())
    assert plan.dtype == "float32"
    kwargs = json.loads(run("plan", tiny("mistral"), "--kwargs", "--dtype", "float32").stdout)
    assert kwargs == plan.kwargs


def test_the_engine_is_named_where_no_launcher_says_it(tiny, run: Run) -> None:
    done = run("load", tiny("mistral"), "--engine", "fsdp2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"]["topology"] == "1 process, fsdp2 (given by hand)"
    refused = run("load", tiny("mistral"), "--engine", "fsdp3")
    assert refused.returncode == 2
    assert "'fsdp3' is not one of 'ddp', 'fsdp', 'fsdp2'" in refused.stderr


def test_flags_become_options(tiny, run: Run) -> None:
    done = run(
        "plan", tiny("mistral"), "--json", "--load-in-4bit", "--no-adapter", "--skip-modules", "q_proj,k_proj",
        "--llm-int8-threshold", "6", "--model-kwargs", '{"attention_dropout": 0.1}',
    )  # fmt: skip
    assert done.returncode == 3
    assert "1 problem\n" in done.stderr
    assert "you asked for llm_int8_threshold=6.0" in done.stderr
    assert "[8bit-setting-with-4bit, from bitsandbytes]" in done.stderr
    done = run(
        "plan", tiny("mistral"), "--json", "--load-in-4bit", "--skip-modules", "q_proj,k_proj",
        "--model-kwargs", '{"attention_dropout": 0.1}',
    )  # fmt: skip
    decisions = {d["stage"]: d["value"] for d in json.loads(done.stdout)["decisions"]}
    assert decisions["quantization"]["skip_modules"] == ["q_proj", "k_proj"]
    assert decisions["kwargs.attention_dropout"] == 0.1


def test_load_reports_saves_and_generates(tiny, tmp_path: Path, run: Run) -> None:
    done = run(
        "load", tiny("mistral"), "-p", "inference", "--save", tmp_path / "saved", "--generate", "The oven",
        "--max-new-tokens", 3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("footprint", "by dtype", "seconds", "peak memory", "The oven", "saved in"):
        assert words in done.stdout
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    assert "loading MistralForCausalLM" in done.stderr  # progress


def test_load_as_json(tiny) -> None:
    content = json.loads(installed("load", tiny("mistral"), "--json").stdout)
    assert content["report"]["measurements"]["model_class"] == "MistralForCausalLM"
    assert content["plan"]["checkpoint"]["model_type"] == "mistral"


def test_plugins_lists_states(run: Run) -> None:
    listed = {p["name"]: p for p in json.loads(run("plugins", "--json", LOADKIT_DISABLE="dtype").stdout)}
    assert listed["dtype"]["state"] == "blocked"
    assert "LOADKIT_DISABLE" in listed["dtype"]["reason"]
    assert listed["attention"]["state"] == "active"
    assert listed["attention"]["distribution"] == "loadkit"
    assert "loadkit_choose_attention" in listed["attention"]["hooks"]
    assert "blocked" in run("plugins", LOADKIT_DISABLE="dtype").stdout
    only = json.loads(run("plugins", "--json", "--hook", "loadkit_attach_adapters").stdout)
    assert [p["name"] for p in only] == ["adapter"]
    wrong = run("plugins", "--hook", "loadkit_attach_adaptor")
    assert wrong.returncode == 4
    assert "loadkit_attach_adapters" in wrong.stderr


def test_profiles_are_listed(run: Run) -> None:
    listed = {p["name"]: p for p in json.loads(run("profiles", "--json").stdout)}
    assert list(listed) == [
        "full",
        "inference",
        "inference-4bit",
        "inference-8bit",
        "lora",
        "qlora",
        "qlora-8bit",
    ]
    assert listed["qlora"]["options"]["bnb_4bit_quant_type"] == "nf4"
    assert listed["qlora"]["options"]["gradient_checkpointing"] is True  # extended
    assert all(p["description"].endswith(".") for p in listed.values())


def test_a_wrong_flag_is_a_wrong_command_line(tiny) -> None:
    done = installed("plan", tiny("mistral"), "--dtpe", "bf16")
    assert done.returncode == 2
    assert "--dtype" in done.stderr


def test_all_problems_come_together(tiny, run: Run) -> None:
    done = run(
        "plan", tiny("mistral"), "--profile", "qloar", "--dtype", "bf17", "--load-in-4bit", "--load-in-8bit",
        "--attn-implementation", "flash_attention_2", "--device-map", "cuda:3", "--skip-modules", "qq_proj",
    )  # fmt: skip
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    for words in (
        "6 problems", "did you mean 'qlora'?", "did you mean 'bf16'?", "choose one of the two", "CUDA", "cuda:3", "'q_proj'",
    ):  # fmt: skip
        assert words in done.stderr


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        (lambda f: (f / "config.json").unlink(), "no-config"),
        (lambda f: (f / "config.json").write_text('{"model_type": "mistral",'), "bad-json"),
        (lambda f: (f / "config.json").write_text("[1]"), "config-not-object"),
        (lambda f: (f / "config.json").write_text('{"model_type": "mistrall"}'), "unknown-model-type"),
        (lambda f: (f / "config.json").write_text('{"hidden_size": 64}'), "no-model-type"),
        (lambda f: (f / "config.json").write_text("{}"), "no-model-type"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "mistral", "x": %s}' % ("9" * 5000)),
            "bad-json",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "no-weights"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
            "truncated-weights",
        ),
    ],
)
def test_a_broken_checkpoint_is_one_clear_error(tiny, tmp_path: Path, break_it, code: str, run: Run) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny("mistral"), tmp_path / "broken"))
    break_it(folder)
    before = sorted(p.name for p in folder.iterdir())
    for command in ("plan", "load"):
        done = run(command, folder)
        assert done.returncode == 3, done.stderr
        assert f"[{code}, from" in done.stderr
        assert "fix:" in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(p.name for p in folder.iterdir()) == before


def test_a_folder_that_isnt_there(tmp_path: Path, run: Run) -> None:
    (tmp_path / "mistral").mkdir()
    done = run("plan", tmp_path / "mistrl")
    assert done.returncode == 3
    assert "[no-such-folder, from" in done.stderr
    assert "mistral" in done.stderr


def test_offline_and_not_cached(tmp_path: Path) -> None:
    done = installed("plan", "someone/something", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 3
    assert "[offline-not-cached, from" in done.stderr


@pytest.mark.parametrize("arch", ["mistral", "gemma3"])
def test_demo_trains(arch: str, run: Run) -> None:
    done = run("demo", "--arch", arch, "--steps", 4)
    assert done.returncode == 0, done.stderr
    assert "The loss went from" in done.stdout
    first, last = (
        float(word.rstrip("."))
        for word in done.stdout.split("The loss went from ")[1].split("\n")[0].split(" to ")
    )
    assert last < first


def test_demo_with_an_inference_profile_trains_nothing(run: Run) -> None:
    done = run("demo", "--profile", "inference")
    assert done.returncode == 0, done.stderr
    assert "nothing is trained" in done.stdout


def test_check_runs_the_conformance_kit(run: Run) -> None:
    done = run("check", "dtype")
    assert done.returncode == 0, done.stderr
    assert "LK301" in done.stdout
    assert "it comes with loadkit itself" in done.stdout
    assert "48 checks: 29 passed, 19 skipped" in done.stdout
    as_json = run("check", "dtype", "--json")
    assert {r["verdict"] for r in json.loads(as_json.stdout)} == {"passed", "skipped"}
    unknown = run("check", "dtpye")
    assert unknown.returncode == 4
    assert "did you mean 'dtype'" in unknown.stderr
