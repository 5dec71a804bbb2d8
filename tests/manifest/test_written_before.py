"""What loadkit wrote before its modules moved is read: a plan, a manifest, the record of a cache entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import loadkit
from loadkit.cache.entries import Entries

HERE = Path(__file__).with_name("written_before")


def holds(now: Any, written: Any) -> bool:
    """Whether everything that was written is there still; fields that came later don't matter."""
    if isinstance(written, dict):
        return all(key in now and holds(now[key], value) for key, value in written.items())
    if isinstance(written, list):
        return len(now) == len(written) and all(map(holds, now, written))
    return bool(now == written)


def test_a_plan() -> None:
    plan = loadkit.Plan.from_json((HERE / "plan.json").read_bytes())
    assert plan.quantization == loadkit.Quantization(
        method="bitsandbytes",
        bits=4,
        options={
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
        },
    )
    assert plan.adapter is not None
    assert plan.adapter.options["r"] == 16
    assert holds(json.loads(plan.to_json()), json.loads((HERE / "plan.json").read_bytes()))


def test_a_manifest() -> None:
    manifest = loadkit.Manifest.from_json((HERE / "manifest.json").read_bytes())
    assert manifest.files["checkpoint/model.safetensors"].size > 0
    assert manifest.libraries["transformers"] == "5.23.0"
    assert holds(json.loads(manifest.to_json()), json.loads((HERE / "manifest.json").read_bytes()))


def test_the_record_of_a_cache_entry(tmp_path: Path) -> None:
    record = json.loads((HERE / "entry.json").read_bytes())
    folder = tmp_path / record["key"]
    folder.mkdir()
    for name, size in record["files"].items():
        (folder / name).write_bytes(bytes(size))
    (folder / "entry.json").write_bytes((HERE / "entry.json").read_bytes())
    entry = Entries(tmp_path).find(record["key"])
    assert entry is not None
    assert entry.record.digests == record["digests"]
    assert entry.record.more == record["more"]
