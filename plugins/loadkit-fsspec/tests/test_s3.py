"""S3, spoken by a real client to a real server on this machine: traffic, resuming, changes, credentials."""

from __future__ import annotations

import json
import mmap
import os
import struct
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loadkit
from loadkit import LoadError, PlanError, PluginManager

pytest.importorskip("s3fs", reason="s3fs isn't installed (pip install 'loadkit-fsspec[test]')")
pytest.importorskip(
    "moto.server", reason="moto's server isn't installed (pip install 'loadkit-fsspec[test]')"
)
pytestmark = pytest.mark.filterwarnings("ignore")

Tiny = Callable[[str], Path]
PLACE = "s3://models/tiny"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    """An S3 server: its address and port."""
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield running.get_host_and_port()
    running.stop()


@pytest.fixture
def s3(server: tuple[str, int], wire: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A wire to a server with an empty bucket "models", which the environment leads to."""
    import boto3

    made = wire(server)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_ENDPOINT_URL": made.address,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    url = "http://{}:{}".format(*server)
    _post(f"{url}/moto-api/reset")
    made.client = boto3.client("s3", endpoint_url=url)
    made.client.create_bucket(Bucket="models")
    made.url = url
    return made


def _post(url: str, data: bytes = b"") -> None:
    kind = {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(url, data, kind, method="POST")).close()


def upload(s3: Any, folder: Path, prefix: str = "tiny") -> None:
    for path in folder.iterdir():
        s3.client.put_object(Bucket="models", Key=f"{prefix}/{path.name}", Body=path.read_bytes())


def codes(error: PlanError) -> list[str]:
    return [problem.code for problem in error.problems if problem.severity == "error"]


def test_it_loads_as_the_folder_does(s3: Any, tiny: Tiny, manager: PluginManager) -> None:
    import torch

    upload(s3, tiny("mistral"))
    loaded = loadkit.load(PLACE, plugin_manager=manager, verify="full")
    folder = loadkit.load(tiny("mistral"))
    pairs = zip(loaded.model.state_dict().items(), folder.model.state_dict().items(), strict=True)
    assert all(one == other and torch.equal(a, b) for (one, a), (other, b) in pairs)
    assert loaded.model.name_or_path == PLACE


def test_a_plan_of_seven_billion_parameters_costs_less_than_a_megabyte(
    s3: Any, tiny: Tiny, manager: PluginManager, tmp_path: Path
) -> None:
    """Shards of the true size, sparse: a header, and a hole where the weights would be."""
    folder = seven_billion(tiny("mistral"), tmp_path / "seven")
    upload(s3, folder, "seven")
    for path in tmp_path.glob("*.safetensors"):
        sparse(s3, f"seven/{path.name}", path)
    s3.sent = 0
    plan = loadkit.plan("s3://models/seven", plugin_manager=manager)
    assert plan.checkpoint.weight_bytes == 2 * 7_241_732_096
    assert 0 < s3.sent < 1_000_000
    print(f"{s3.sent:,} bytes")


def seven_billion(like: Path, folder: Path) -> Path:
    """The small files of Mistral 7B's shape; its shards lie beside the folder."""
    import shutil

    shutil.copytree(like, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((like / "config.json").read_text())
    hidden, inner, heads, layers, vocabulary = 4096, 14336, 8, 32, 32000
    config |= {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "head_dim": 128,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [vocabulary, hidden]}
    for at in range(layers):
        name = f"model.layers.{at}"
        shapes |= {
            f"{name}.self_attn.{part}_proj.weight": [128 * heads if part in "kv" else hidden, hidden]
            for part in "qkvo"
        }
        shapes |= {f"{name}.mlp.{part}_proj.weight": [inner, hidden] for part in ("gate", "up")}
        shapes |= {f"{name}.mlp.down_proj.weight": [hidden, inner]}
        shapes |= {f"{name}.{part}_layernorm.weight": [hidden] for part in ("input", "post_attention")}
    shapes |= {"model.norm.weight": [hidden], "lm_head.weight": [vocabulary, hidden]}
    names, home = list(shapes), {}
    for shard in range(3):
        file = f"model-{shard + 1:05}-of-00003.safetensors"
        header, end = {}, 0
        for name in names[shard * 97 : (shard + 1) * 97]:
            size = 2 * shapes[name][0] * (shapes[name] + [1])[1]
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [end, end + size]}
            end += size
            home[name] = file
        text = json.dumps(header).encode()
        with (folder.parent / file).open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + end)
    index = {"metadata": {"total_size": 0}, "weight_map": home}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def sparse(s3: Any, key: str, path: Path) -> None:
    """Have the server take an object's bytes from a sparse file: it would hold them in memory."""
    from moto.s3.models import FakeKey, s3_backends

    class SparseKey(FakeKey):
        value = property(lambda self: self.mapped)  # type: ignore[assignment]

    s3.client.put_object(Bucket="models", Key=key, Body=b"")
    stored = s3_backends["123456789012"]["aws"].buckets["models"].keys[key]
    stored.__class__ = SparseKey
    with path.open("rb") as file:
        stored.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    stored.contentsize = os.path.getsize(path)


def test_a_download_goes_on_where_the_connection_was_cut(
    s3: Any, tiny: Tiny, manager: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadkit.schema.sources.CHUNK", 50_000)
    upload(s3, tiny("mistral"))
    size = (tiny("mistral") / "model.safetensors").stat().st_size
    plan = loadkit.plan(PLACE, plugin_manager=manager)
    s3.cut_after = s3.sent + 220_000
    with pytest.raises(LoadError) as caught:
        loadkit.load(plan, plugin_manager=manager)
    assert "[source-" in str(caught.value)
    s3.cut_after, s3.sent = None, 0
    loadkit.load(plan, plugin_manager=manager)
    assert s3.sent < size - 100_000


def test_a_changed_object_is_refused(s3: Any, tiny: Tiny, manager: PluginManager) -> None:
    upload(s3, tiny("mistral"))
    plan = loadkit.plan(PLACE, plugin_manager=manager)
    weights = bytearray((tiny("mistral") / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    s3.client.put_object(Bucket="models", Key="tiny/model.safetensors", Body=bytes(weights))
    with pytest.raises(LoadError, match="source-changed"):
        loadkit.load(plan, plugin_manager=manager)


def test_wrong_credentials_are_one_clear_problem(
    s3: Any, tiny: Tiny, manager: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(s3, tiny("mistral"))
    _post(f"{s3.url}/moto-api/reset-auth", b"0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-very-secret-key")
    try:
        with pytest.raises(PlanError) as caught:
            loadkit.plan(PLACE, plugin_manager=manager)
    finally:
        _post(f"{s3.url}/moto-api/reset-auth", b"inf")
    assert codes(caught.value) == ["no-access"]
    assert "a-very-secret-key" not in str(caught.value)


def test_none_at_all_is_the_same(
    s3: Any, manager: PluginManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(PlanError) as caught:
        loadkit.plan(PLACE, plugin_manager=manager)
    assert codes(caught.value) in (["no-access"], ["no-such-source"])


@pytest.mark.parametrize("place", ["s3://no-such-bucket/tiny", "s3://models/none"])
def test_what_isnt_there_is_one_problem(s3: Any, place: str, manager: PluginManager) -> None:
    with pytest.raises(PlanError) as caught:
        loadkit.plan(place, plugin_manager=manager)
    assert codes(caught.value) == ["no-such-source"]


def test_offline_and_unreachable_the_copy_is_used(
    s3: Any, tiny: Tiny, manager: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(s3, tiny("mistral"))
    commit = loadkit.load(PLACE, plugin_manager=manager).plan.checkpoint.commit
    s3.sent, s3.cut_after = 0, 0
    again = loadkit.load(PLACE, plugin_manager=manager)
    assert again.plan.checkpoint.commit == commit
    assert [p.code for p in again.plan.warnings] == ["source-unreachable"]
    offline = loadkit.load(PLACE, plugin_manager=manager, local_files_only=True)
    assert offline.plan.checkpoint.commit == commit
    with pytest.raises(PlanError) as caught:
        loadkit.plan("s3://models/other", plugin_manager=manager, local_files_only=True)
    assert codes(caught.value) == ["offline-not-cached"]
