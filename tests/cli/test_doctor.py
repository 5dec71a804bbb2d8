"""What `loadkit doctor` tells, on machines that aren't here and with plugins that are broken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import pytest
from distributions import distribution
from examples import CPU, T4

from loadkit import PluginManager
from loadkit.cli.doctor import lines
from loadkit.cli.doctor_report import LIBRARIES, examine
from loadkit.cli.known_issues import KNOWN_ISSUES, Here, known_issues


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        "LOADKIT_CACHE": str(tmp_path),
        "HF_TOKEN": "hf_verysecret",
        "HF_ENDPOINT": "https://me:word@hub.example/x",
    }


def test_it_tells_what_is_here_and_no_secret(environ: dict[str, str]) -> None:
    (Path(environ["LOADKIT_CACHE"]) / "index").write_bytes(b"x" * 2048)
    found = examine(PluginManager(environ={}), machine=CPU, environ=environ)
    text = "\n".join(lines(found))
    assert "machine: CPU, 2 cores, 24.0 GiB" in text
    assert "bitsandbytes 0.50.2" in text
    assert "HF_TOKEN=(set)" in text
    assert "HF_ENDPOINT=https://hub.example/x" in text
    assert "verysecret" not in text + msgspec.json.encode(found).decode()
    assert "word" not in text.replace("words", "")
    assert "loadkit's index, 2.0 KiB" in text
    assert "profile qlora: dtype bfloat16; attention sdpa; quantization bitsandbytes 4-bit" in text


def test_profiles_are_those_of_the_machine(environ: dict[str, str]) -> None:
    found = examine(PluginManager(environ={}), machine=T4, environ=environ)
    assert {o.profile: o.decisions["dtype"] for o in found.profiles}["qlora"] == "float16"


@pytest.fixture
def required() -> dict[str, str]:
    """The floor of each library, by the metadata of the loadkit that is installed here."""
    return {line.partition(">=")[0]: line.partition(">=")[2] for line in metadata.requires("loadkit") or ()}


def test_old_libraries_are_shown(environ: dict[str, str], required: dict[str, str]) -> None:
    machine = msgspec.structs.replace(CPU, packages={**CPU.packages, "peft": "0.17.0"})
    text = "\n".join(lines(examine(PluginManager(environ={}), machine=machine, environ=environ)))
    assert f"old: peft 0.17.0 is older than {required['peft']}," in text


def test_a_library_is_old_below_what_loadkit_requires(
    environ: dict[str, str], required: dict[str, str]
) -> None:
    ancient = msgspec.structs.replace(CPU, packages=dict.fromkeys(LIBRARIES, "0.0.1"))
    found = examine(PluginManager(environ={}), machine=ancient, environ=environ)
    assert list(found.old) == [
        f"{name} 0.0.1 is older than {required[name]}, the lowest that loadkit was tested with"
        for name in LIBRARIES
        if name not in ("tokenizers", "trl")  # which others bring, and which nobody needs
    ]


KNOWN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # code to facts that it applies to, and to the nearest that it doesn't
    "torch-for-cpu": (
        {"notes": ("1 × NVIDIA A100 found, but torch 2.13.0+cpu is built for the CPU only",)},
        {"notes": ("NVIDIA's driver answered nothing: no accelerator is counted",)},
    ),
    "python-below-transformers": (
        {"python": (3, 10), "packages": {"transformers": "5.21.0"}},
        {"python": (3, 10), "packages": {"transformers": "5.20.0"}},
    ),
    "transformers-4": ({"packages": {"transformers": "4.57.1"}}, {"packages": {"transformers": "5.0.0"}}),
    "torchao-too-old-for-peft": (
        {"packages": {"peft": "0.21.2", "torchao": "0.15.0"}},
        {"packages": {"peft": "0.21.2", "torchao": "0.16.0"}},
    ),
    "torch-too-old-for-torchao": (
        {"packages": {"torch": "2.10.1", "torchao": "0.18.0"}},
        {"packages": {"torch": "2.11.0", "torchao": "0.18.0"}},
    ),
    "kernels-on-cpu": (
        {"packages": {"kernels": "0.18.2", "bitsandbytes": "0.50.2"}},
        {"packages": {"kernels": "0.18.2", "bitsandbytes": "0.50.2"}, "environ": {"HF_HUB_OFFLINE": "1"}},
    ),
}


def applying(facts: dict[str, Any]) -> list[str]:
    machine = msgspec.structs.replace(CPU, packages=facts.get("packages", {}), notes=facts.get("notes", ()))
    here = Here(machine, facts.get("environ", {}), facts.get("python", (3, 11)))
    return [i.code for i in known_issues(here)]


@pytest.mark.parametrize("code", KNOWN)
def test_a_known_issue_applies_where_it_should_and_nowhere_else(code: str) -> None:
    wrong, right = KNOWN[code]
    assert applying(wrong) == [code]
    assert applying(right) == []


def test_every_known_issue_is_tried_and_has_all_that_it_needs() -> None:
    assert {i.code for i in KNOWN_ISSUES} == set(KNOWN)
    assert all(i.reason and i.remedy and i.source for i in KNOWN_ISSUES)


def test_a_known_issue_is_shown_with_its_remedy_and_source(environ: dict[str, str]) -> None:
    machine = msgspec.structs.replace(CPU, packages={**CPU.packages, "torchao": "0.12.0"})
    text = "\n".join(lines(examine(PluginManager(environ={}), machine=machine, environ=environ)))
    assert "PEFT then refuses to attach any adapter" in text
    assert (
        "(is_torchao_available of peft 0.19 to 0.21)  [torchao-too-old-for-peft]\n    fix: pip install 'torchao>=0.18'"
        in text
    )


@pytest.mark.slow
def test_torchao_of_that_age_really_stops_peft_and_no_load(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """The known issue is real: an empty torchao of version 0.12, and an adapter that has nothing to do with
    it. loadkit has PEFT go without."""
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text("")
    info = tmp_path / "torchao-0.12.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 0.12.0\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    code = (
        f"import loadkit; loaded = loadkit.load({str(tiny('mistral'))!r}, 'lora'); print(type(loaded.model).__name__)\n"
        "import peft; peft.get_peft_model(loaded.model.unload(), peft.LoraConfig(target_modules=['q_proj']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.returncode, done.stdout) == (1, "PeftModelForCausalLM\n")
    assert "Found an incompatible version of torchao. Found version 0.12.0" in done.stderr


def test_broken_plugins_are_shown_with_a_remedy(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = distribution(tmp_path, "loadkit-odd", {}, {"odd": "loadkit_odd_nowhere"}, version="3.0")
    monkeypatch.syspath_prepend(str(site))
    text = "\n".join(lines(examine(PluginManager(environ={}), machine=CPU, environ=environ)))
    assert (
        "plugin odd (loadkit-odd 3.0) is broken: ModuleNotFoundError: No module named 'loadkit_odd_nowhere'"
        in text
    )
    assert "or leave it out: LOADKIT_DISABLE=odd" in text
    assert "fix: install what it misses, loadkit_odd_nowhere; update or uninstall loadkit-odd" in text


def test_two_distributions_with_one_name_are_shown_with_a_remedy_that_works(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("loadkit-one", "loadkit-two"):
        monkeypatch.syspath_prepend(str(distribution(tmp_path / name, name, {}, {"odd": "json"})))
    text = "\n".join(lines(examine(PluginManager(environ={}), machine=CPU, environ=environ)))
    assert "loadkit-one and loadkit-two both call a plugin 'odd'" in text
    assert "fix: uninstall one of the two distributions: pip uninstall loadkit-one" in text


def test_no_secret_however_it_got_there(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token in the message of a broken plugin, a login in an address, the home folder in paths."""
    home = tmp_path / "home" / "jane"
    site = home / "site"
    text = "raise RuntimeError(__file__ + ' can not reach https://jane:word@hub.example with hf_abcdefghij and hunter2hunter2')"
    distribution(site, "loadkit-leaky", {"lk_leaky.py": text}, {"leaky": "lk_leaky"})
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("HOME", str(home))
    environ |= {"LOADKIT_CACHE": str(home / "cache"), "MY_PASSWORD": "hunter2hunter2"}
    found = examine(PluginManager(environ={}), machine=CPU, environ=environ)
    for shown in ("\n".join(lines(found)), msgspec.json.encode(found).decode()):
        assert (
            "RuntimeError: ~/site/lk_leaky.py can not reach https://hub.example with (token) and (secret)"
            in shown
        )
        assert "~/cache" in shown
        for secret in (str(home), "jane", "hunter2", "hf_abc", "word@"):
            assert secret not in shown
