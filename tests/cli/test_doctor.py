"""What `loadkit doctor` tells, on machines that aren't here and with plugins that are broken."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from examples import CPU, T4

from loadkit import PluginManager
from loadkit.cli.doctor import lines
from loadkit.doctor import examine


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


def test_old_libraries_and_known_trouble_are_told(environ: dict[str, str]) -> None:
    machine = msgspec.structs.replace(
        CPU, packages={**CPU.packages, "peft": "0.17.0", "kernels": "0.11", "transformers": "4.57.1"},
        notes=("1 × NVIDIA A100 found, but torch 2.13.0+cpu is built for the CPU only",),
    )  # fmt: skip
    text = "\n".join(lines(examine(PluginManager(environ={}), machine=machine, environ=environ)))
    assert "old: peft 0.17.0 is older than 0.21" in text
    assert "old: transformers 4.57.1" in text
    for words in ("kernels is installed", "transformers of version 4", "there are NVIDIA GPUs"):
        assert words in text


def test_broken_plugins_are_told_with_a_remedy(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "site" / "loadkit_odd-3.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loadkit-odd\nVersion: 3.0\n")
    (info / "entry_points.txt").write_text("[loadkit]\nodd = loadkit_odd_nowhere\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    text = "\n".join(lines(examine(PluginManager(environ={}), machine=CPU, environ=environ)))
    assert (
        "plugin odd (loadkit-odd 3.0) is broken: ModuleNotFoundError: No module named 'loadkit_odd_nowhere'"
        in text
    )
    assert "fix: uninstall or update it, or leave it out: LOADKIT_DISABLE=odd" in text
