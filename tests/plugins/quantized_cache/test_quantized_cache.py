"""What is loaded from the cache is what would have been quantized: the same bits, configs, losses and saved
files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer

import loadkit
from loadkit import Loaded
from loadkit.plugins import Entries
from loadkit_plugins.quantized_cache.writer import finish_writing

Tiny = Callable[..., Path]
PROFILES = ("qlora", "qlora-8bit", "inference-4bit")


def load(folder: Path | str, profile: str = "qlora", **options: Any) -> Loaded:
    loaded = loadkit.load(folder, profile, **options)
    finish_writing()
    return loaded


def told(loaded: Loaded) -> str:
    return "; ".join(line for line in loaded.report.shortcuts if line.endswith("(quantized-cache)"))


def served(loaded: Loaded) -> bool:
    return "from the cache" in told(loaded)


def bits(model: Any) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Everything that the model holds, quantization constants and buffers included; fresh adapters aside."""
    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    return {
        name: (
            t.dtype,
            tuple(t.shape),
            t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name, t in tensors.items()
        if "lora_" not in name
    }


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("arch", ["mistral", "qwen2", "gemma3", "mixtral"])
def test_the_second_load_is_the_first_to_the_bit(tiny: Tiny, arch: str, profile: str) -> None:
    plain = load(tiny(arch), profile, quantized_cache=False)
    first = load(tiny(arch), profile)
    again = load(tiny(arch), profile)
    assert not told(plain)
    assert "kept for the next load" in told(first)
    assert served(again)
    expected = bits(plain.model)
    assert bits(first.model) == expected
    assert bits(again.model) == expected
    assert again.report.loading == plain.report.loading
    assert again.report.measurements == plain.report.measurements
    assert again.report.findings == plain.report.findings
    assert again.plan.digest == first.plan.digest


@pytest.mark.parametrize("arch", ["mistral", "gemma3", "mixtral"])
def test_saved_again_it_is_the_same_checkpoint(tiny: Tiny, tmp_path: Path, arch: str) -> None:
    load(tiny(arch), "inference-4bit")
    plain = load(tiny(arch), "inference-4bit", quantized_cache=False)
    again = load(tiny(arch), "inference-4bit")
    assert served(again)
    for name, loaded in (("plain", plain), ("again", again)):
        loaded.model.save_pretrained(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == files
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes(), file
    assert again.model.config.name_or_path == plain.model.config.name_or_path == str(tiny(arch))


def test_training_from_it_gives_the_same_losses(tiny: Tiny) -> None:
    from loadkit.cli.demo_run import train_a_few_steps

    losses = []
    for options in ({"quantized_cache": False}, {}, {}):
        torch.manual_seed(0)
        losses.append(train_a_few_steps(*load(tiny("mistral"), "qlora", **options), steps=4))
    assert losses[0] == losses[1] == losses[2]
    assert len(set(losses[0])) > 1


def test_transformers_alone_can_load_an_entry(tiny: Tiny, entries: Entries) -> None:
    import transformers

    plain = load(tiny("mistral"), "inference-4bit", quantized_cache=False)
    load(tiny("mistral"), "inference-4bit")
    (entry,) = entries
    alone = transformers.AutoModelForCausalLM.from_pretrained(entry.folder)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(alone(ids).logits, plain.model(ids).logits)


def test_the_plan_says_what_the_cache_will_do(tiny: Tiny, entries: Entries) -> None:
    (before,) = [s for s in loadkit.plan(tiny("mistral"), "qlora").shortcuts if s.plugin == "quantized-cache"]
    assert not before.serves
    assert "keeps it for the next load" in before.line
    load(tiny("mistral"))
    plan = loadkit.plan(tiny("mistral"), "qlora")
    (after,) = [s for s in plan.shortcuts if s.plugin == "quantized-cache"]
    (entry,) = entries
    assert after.serves
    assert entry.record.key[:12] in after.line
    assert loadkit.plugins.size(entry.bytes) in after.line
    assert "less than a minute ago" in after.line
    assert after.line in " ".join(str(plan).split())


def test_unquantized_and_stored_quantized_bases_have_nothing_to_keep(tiny: Tiny, tmp_path: Path) -> None:
    assert not load(tiny("mistral"), "lora").report.shortcuts
    load(tiny("mistral"), "inference-4bit", quantized_cache=False).save_pretrained(tmp_path / "stored")
    assert not told(load(tmp_path / "stored", "qlora"))
    assert list(Entries()) == []


def test_it_can_be_turned_off(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = loadkit.plan(tiny("mistral"), "qlora", quantized_cache=False)
    assert "not cached: you said quantized_cache=False" in str(plan)
    load(tiny("mistral"), quantized_cache=False)
    monkeypatch.setenv("LOADKIT_QUANTIZED_CACHE", "0")
    assert "not cached: LOADKIT_QUANTIZED_CACHE=0" in str(loadkit.plan(tiny("mistral"), "qlora"))
    load(tiny("mistral"))
    assert list(Entries()) == []


OTHER = {
    "dtype": {"dtype": "float32"},
    "bits": {"load_in_8bit": True, "load_in_4bit": False},
    "quantization": {"bnb_4bit_quant_type": "fp4"},
    "nesting": {"bnb_4bit_use_double_quant": False},
    "skip list": {"skip_modules": ["o_proj"]},
    "class": {"task": "sequence-classification", "allow_weights": ["score"]},
}


@pytest.mark.parametrize("what", OTHER)
def test_another_request_is_another_entry(tiny: Tiny, what: str) -> None:
    load(tiny("mistral"), "inference-4bit")
    assert not served(load(tiny("mistral"), "inference-4bit", **OTHER[what]))


@pytest.mark.parametrize(
    "harmless", [{"attn_implementation": "eager"}, {"use_cache": False}, {"profile": "qlora"}]
)
def test_what_changes_no_bit_changes_no_key(tiny: Tiny, harmless: dict[str, Any]) -> None:
    load(tiny("mistral"), "inference-4bit", bnb_4bit_use_double_quant=True)
    options = {"profile": "inference-4bit", "bnb_4bit_use_double_quant": True, **harmless}
    again = loadkit.load(tiny("mistral"), options.pop("profile"), **options)
    assert served(again)
    if "attn_implementation" in harmless:
        assert again.model.config._attn_implementation == "eager"


def test_another_version_is_another_entry(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    from loadkit.planning import pipeline

    load(tiny("mistral"))
    assert served(load(tiny("mistral")))
    machine = pipeline.this_machine()
    newer = msgspec.structs.replace(machine, packages={**machine.packages, "bitsandbytes": "99.0"})
    monkeypatch.setattr(pipeline, "this_machine", lambda: newer)
    assert not served(load(tiny("mistral")))
    assert len(list(Entries())) == 2


@pytest.mark.parametrize("what", ["weights", "one value in place, times kept", "config"])
def test_a_changed_checkpoint_is_quantized_again(tiny: Tiny, tmp_path: Path, what: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "copy"
    shutil.copytree(tiny("mistral"), folder)
    load(folder)
    weights = folder / "model.safetensors"
    if what == "config":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    else:
        times = weights.stat()
        tensors = load_file(weights)
        name = "model.layers.1.mlp.down_proj.weight"
        tensors[name] = tensors[name].clone()
        tensors[name][0, 0] += 1.0
        save_file(tensors, weights, metadata={"format": "pt"})
        if what != "weights":
            os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = load(folder)
    assert not served(again)
    assert bits(again.model) == bits(load(folder, quantized_cache=False).model)


def test_a_new_head_isnt_kept(tiny: Tiny) -> None:
    loaded = load(tiny("mistral"), "inference-4bit", task="sequence-classification")
    assert "don't come from the checkpoint" in told(loaded)
    assert list(Entries()) == []


def test_a_hub_base_needs_its_weights_once(hub: HubServer, tiny: Tiny, cache: Path) -> None:
    hub.add("owner/name", tiny("mistral"))
    plain = load("owner/name", quantized_cache=False)
    load("owner/name")
    for blob in cache.rglob("model.safetensors"):
        blob.resolve().unlink()
        blob.unlink()
    sent = hub.bytes_of("model.safetensors")
    again = load("owner/name")
    assert served(again)
    # planning reads the header again
    assert (
        hub.bytes_of("model.safetensors") - sent < (tiny("mistral") / "model.safetensors").stat().st_size / 2
    )
    assert bits(again.model) == bits(plain.model)
    assert again.model.config.name_or_path == plain.model.config.name_or_path == "owner/name"


def test_code_of_its_own_is_kept_only_at_a_commit(hub: HubServer, tiny: Tiny) -> None:
    commit = hub.add("owner/code", tiny("remote-code"))
    local = load(tiny("remote-code"), "inference-4bit", trust_remote_code=True)
    assert "code of its own is only cached at a commit of the Hub" in str(local.plan)
    assert not told(local)
    pinned = {"trust_remote_code": True, "revision": commit}
    first = load("owner/code", "inference-4bit", **pinned)
    again = load("owner/code", "inference-4bit", **pinned)
    assert served(again)
    assert type(again.model) is type(first.model)
    assert bits(again.model) == bits(first.model) == bits(local.model)
