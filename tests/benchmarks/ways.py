"""The ways of loading that are compared, and the process that loads once or several times by them.

python tests/benchmarks/ways.py once "plain" FOLDER qlora
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["AGAIN", "CACHE", "FIRST", "PLAIN", "PROFILES", "TRL", "WAYS", "in_turn", "once", "prepared_cache"]

PLAIN, TRL, FIRST, AGAIN = "from_pretrained", "TRL", "loadkit, first time", "loadkit, again"

PROFILES = ("qlora", "qlora-8bit", "inference")

CACHE = "LOADKIT_CACHE"


def plain(folder: str, profile: str, device: str) -> Any:
    """The lines that people write themselves."""
    import torch
    import transformers

    kwargs: dict[str, Any] = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
    if profile == "qlora":
        kwargs["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    if profile == "qlora-8bit":
        kwargs["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, device_map={"": device}, **kwargs
    )


def by_trl(folder: str, profile: str, device: str) -> Any:
    """What `trl sft` does with its model arguments: `get_quantization_config`, then the trainer's
    `create_model_from_path`."""
    from trl import ModelConfig, get_quantization_config
    from trl.trainer.utils import create_model_from_path

    args = ModelConfig(
        model_name_or_path=folder,
        dtype="bfloat16",
        attn_implementation="sdpa",
        load_in_4bit=profile == "qlora",
        load_in_8bit=profile == "qlora-8bit",
        bnb_4bit_quant_type="nf4",
        use_bnb_nested_quant=True,
    )
    placed = {} if device == "cpu" else {"device_map": {"": device}}
    quantized = get_quantization_config(args)
    given = {} if quantized is None else {"quantization_config": quantized}
    return create_model_from_path(
        folder, dtype=args.dtype, attn_implementation=args.attn_implementation, **placed, **given
    )


def ours(folder: str, profile: str, device: str) -> Any:
    """The same through loadkit; the adapter is left out, as the others attach none."""
    import loadkit

    placed = {} if device == "cpu" else {"device_map": {"": device}}
    return loadkit.load(folder, profile, adapter=False, **placed).model


WAYS: dict[str, Callable[[str, str, str], Any]] = {PLAIN: plain, TRL: by_trl, FIRST: ours, AGAIN: ours}


def touch(model: Any) -> None:
    """Read every page of the weights: on a CPU, those that aren't quantized are only mapped before."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.numel():
            tensor.detach().reshape(-1)[:: max(1, 4096 // tensor.element_size())].float().sum().item()


def held(model: Any) -> int:
    """Bytes of the model's tensors, what hangs on quantized ones among them."""
    storages: dict[int, int] = {}
    for parameter in [*model.parameters(), *model.buffers()]:
        state = getattr(parameter, "quant_state", None)
        found = [parameter, getattr(parameter, "SCB", None)]
        for part in (state, getattr(state, "state2", None)):
            found += [getattr(part, "absmax", None), getattr(part, "code", None)]
        for tensor in found:
            if tensor is not None:
                storages[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(storages.values())


def once(way: str, folder: str, profile: str, device: str) -> dict[str, Any]:
    """Load once in this process, imports included."""
    start = time.perf_counter()
    model = WAYS[way](folder, profile, device)
    there = time.perf_counter() - start
    touch(model)
    found = {"model there": there, "model bytes": held(model)}
    if device != "cpu":
        import torch

        torch.cuda.synchronize()
        found["peak on the device"] = torch.cuda.max_memory_allocated()
    found["weights in memory"] = time.perf_counter() - start
    status = Path("/proc/self/status")  # ru_maxrss would count the parent's memory at the fork
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        found["peak resident"] = int(line.split()[1]) * 1024
    return found


def in_turn(
    ways: list[str], folder: str, tiny: str, profile: str, device: str, rounds: int
) -> Iterator[dict[str, Any]]:
    """Load in this process by every way in turn, with the libraries imported; the order rotates."""
    with tempfile.TemporaryDirectory(dir=Path(folder).parent) as scratch:
        prepared, filled = Path(scratch, "prepared"), Path(scratch, "filled")
        with cached_in(prepared):
            for way in ways:
                WAYS[way](tiny, profile, device)  # pays for imports and first calls
        if AGAIN in ways:
            shutil.copytree(prepared, filled)
            with cached_in(filled):
                ours(folder, profile, device)
        for number in range(rounds):
            at = number % len(ways)
            for way in ways[at:] + ways[:at]:
                cache = filled if way == AGAIN else Path(scratch, "first")
                if way == FIRST:
                    shutil.copytree(prepared, cache)
                gc.collect()
                os.sync()
                with cached_in(cache):
                    start = time.perf_counter()
                    model = WAYS[way](folder, profile, device)
                    there = time.perf_counter() - start
                    touch(model)
                    whole = time.perf_counter() - start
                del model
                if way == FIRST:
                    shutil.rmtree(cache)
                yield {"way": way, "model there": there, "weights in memory": whole}


@contextlib.contextmanager
def cached_in(folder: Path) -> Iterator[None]:
    """Have loadkit use a cache folder."""
    before = os.environ.get(CACHE)
    os.environ[CACHE] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(CACHE)
        if before is not None:
            os.environ[CACHE] = before


def prepared_cache(folder: Path, tiny: str, profile: str, device: str) -> None:
    """Fill a cache with all that doesn't belong to the checkpoint that is measured: the index, compiled
    kernels."""
    with cached_in(folder):
        ours(tiny, profile, device)


def main() -> None:
    """Load as told, and print a line of JSON a load."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["once", "in-turn", "prepare"])
    parser.add_argument("way", help="a way, several joined by '|', or for prepare the cache folder")
    parser.add_argument("folder")
    parser.add_argument("profile", choices=PROFILES)
    parser.add_argument("--tiny", default="", help="a small checkpoint of the same kind, to warm up with")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.what == "prepare":
        prepared_cache(Path(given.way), given.folder, given.profile, given.device)
        return
    if given.what == "once":
        print(json.dumps(once(given.way, given.folder, given.profile, given.device)), flush=True)
        return
    ways = given.way.split("|")
    for sample in in_turn(ways, given.folder, given.tiny, given.profile, given.device, given.rounds):
        print(json.dumps(sample), flush=True)


if __name__ == "__main__":
    main()
