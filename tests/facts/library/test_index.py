"""The index that `read_library` keeps, and how it reads source: on the real transformers and on a tiny
one."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadkit.errors import LoadkitError
from loadkit.facts.library import index as library_index
from loadkit.facts.library.index import read_library
from loadkit.facts.library.library import Library, ModelFacts
from loadkit.facts.library.literals import evaluate, execute
from loadkit.facts.library.source_tree import SourceTree


@pytest.fixture(autouse=True)
def _fresh_memory() -> Iterator[None]:
    library_index._memory.clear()
    yield
    library_index._memory.clear()


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from loadkit.facts.library.index import read_library;"
        "library = read_library({'model_type': 'gemma3'}, cache_dir=Path(sys.argv[1]));"
        "assert library.families['gemma3'].models;"
        "print([n for n in ('torch', 'transformers', 'bitsandbytes', 'peft', 'accelerate') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_second_reading_parses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(*args: object, **kwargs: object) -> None:
        raise AssertionError("source was parsed")

    said: list[str] = []
    first = read_library({"model_type": "gemma3"}, cache_dir=tmp_path, progress=said.append)
    assert [sentence.split(" of ")[0] for sentence in said] == [
        "reading the auto classes",
        "reading the gemma3 models",
        "reading the siglip models",
    ]

    monkeypatch.setattr(ast, "parse", parse)
    again = read_library({"model_type": "gemma3"}, cache_dir=tmp_path, progress=said.append)
    library_index._memory.clear()
    from_disk = read_library({"model_type": "gemma3"}, cache_dir=tmp_path, progress=said.append)
    assert first == again == from_disk
    assert len(said) == 3
    with pytest.raises(AssertionError, match="source was parsed"):
        read_library({"model_type": "llava"}, cache_dir=tmp_path)


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b"[1]", b'{"version": 3}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_index_is_rebuilt(damage: bytes, tmp_path: Path) -> None:
    first = read_library({"model_type": "mistral"}, cache_dir=tmp_path)
    stored = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in stored} == {"maps.json", "models.mistral.json"}

    for path in stored:
        path.write_bytes(damage)
    library_index._memory.clear()

    assert read_library({"model_type": "mistral"}, cache_dir=tmp_path) == first
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == stored


@pytest.mark.parametrize("make", ["file in the way", "folder in the way", "not writable"])
def test_an_index_that_cant_be_written_costs_time_only(make: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    if make == "file in the way":
        cache.write_text("")
    elif make == "folder in the way":
        read_library(None, cache_dir=cache)
        maps = next(cache.rglob("maps.json"))
        maps.unlink()
        maps.mkdir()
        library_index._memory.clear()
    else:
        cache.mkdir(mode=0o500)
    try:
        library = read_library({"model_type": "mistral"}, cache_dir=cache)
    finally:
        if make == "not writable":
            cache.chmod(0o700)
    assert library.model_class("AutoModelForCausalLM", "mistral") == "MistralForCausalLM"
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_the_index_is_kept_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADKIT_CACHE", str(tmp_path))
    read_library(None)
    assert [path.name for path in (tmp_path / "library").glob("*/*")] == ["maps.json"]


# What follows reads a transformers of a few lines, made here.

AUTO = {
    "configuration_auto.py": """
        from collections import OrderedDict
        from .auto_mappings import CONFIG_MAPPING_NAMES, SPECIAL_MODEL_TYPE_TO_MODULE_NAME
        CONFIG_MAPPING_NAMES.update({"small-vl": "SmallVLConfig"})
        CONFIG_MAPPING_NAMES = OrderedDict(**{"alias": "SmallConfig"}, **CONFIG_MAPPING_NAMES)
        DEPRECATED_MODELS = ["old"]
        """,
    "auto_mappings.py": """
        from collections import OrderedDict
        CONFIG_MAPPING_NAMES = OrderedDict([("small", "SmallConfig"), ("old", "OldConfig")])
        SPECIAL_MODEL_TYPE_TO_MODULE_NAME = OrderedDict([("small-vl", "small")])
        """,
    "modeling_auto.py": """
        from collections import OrderedDict
        from .auto_factory import _BaseAutoModelClass, _LazyAutoMapping
        from .configuration_auto import CONFIG_MAPPING_NAMES
        NAMES = OrderedDict([("small", "SmallForCausalLM"), ("small-vl", ("SmallVL", "SmallForCausalLM"))])
        MAPPING = _LazyAutoMapping(CONFIG_MAPPING_NAMES, NAMES)
        class AutoModelForCausalLM(_BaseAutoModelClass):
            _model_mapping = MAPPING
        AutoModelForCausalLM = auto_class_update(AutoModelForCausalLM)
        class AutoModelForAny(_BaseAutoModelClass):
            _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict([*list(NAMES.items()), ("old", "Old")]))
        class AutoModelForUnreadable(_BaseAutoModelClass):
            _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, {key: "X" for key in NAMES})
        """,
    "tokenization_auto.py": """
        TOKENIZER_MAPPING_NAMES = OrderedDict[str, str | None]([
            ("small", "Fast" if is_tokenizers_available() else None),
            ("small-vl", "Common" if is_common_available() else ("Fast" if is_tokenizers_available() else None)),
            ("none", None),
        ])
        for name in {"old", "small"}:
            if name not in TOKENIZER_MAPPING_NAMES:
                TOKENIZER_MAPPING_NAMES[name] = "Slow"
        """,
    "processing_auto.py": """
        if TYPE_CHECKING:
            PROCESSOR_MAPPING_NAMES = OrderedDict()
        else:
            PROCESSOR_MAPPING_NAMES = OrderedDict([("small-vl", "SmallProcessor")])
        """,
}
SMALL = {
    "configuration_utils.py": """
        class Rope:
            not_a_field: int = 1
        class PreTrainedConfig(Rope):
            model_type: ClassVar[str] = ""
            return_dict: bool = True
        PretrainedConfig = PreTrainedConfig
        """,
    "modeling_utils.py": """
        class PreTrainedModel(Module):
            _supports_sdpa: bool = False
            _no_split_modules: list[str] | None = None
        """,
    "models/small/__init__.py": """
        if TYPE_CHECKING:
            from .configuration_small import *
        """,
    "models/small/configuration_small.py": """
        from ... import PreTrainedConfig
        from ...configuration_utils import PretrainedConfig
        class Mixin:
            not_a_field_either: int = 1
        class SmallConfig(Mixin, PretrainedConfig):
            model_type = "small"
            attribute_map = {"width": "hidden_size"}
            hidden_size: int = -8
            names: list[str] = COMPUTED
            rate: float = bounded(0, 1)(default=0.5)
            use_cache: bool = True
            ratios: tuple[float, ...] = (1 / 4, 2.0)
            ClassVar_looking = 3
        class PartConfig(PreTrainedConfig):
            size: int = 1
        class SmallVLConfig(PreTrainedConfig):
            model_type = "small-vl"
            sub_configs = {"text_config": AutoConfig, "part": PartConfig, "other": SmallConfig}
        class SmallVLTwoConfig(SmallVLConfig):
            sub_configs_defaults = {"ignored": PartConfig}
        """,
    "models/small/modeling_small.py": """
        from ...modeling_utils import PreTrainedModel
        from ..base import Mixin
        from ..base.modeling_base import BasePreTrainedModel
        class SmallPreTrainedModel(BasePreTrainedModel):
            config: SmallConfig
        class SmallForCausalLM(Mixin, SmallPreTrainedModel):
            supports_gradient_checkpointing = True
        class SmallVL(SmallPreTrainedModel):
            config_class = SmallVLConfig
            _supports_sdpa = False
        class NotAModel:
            _supports_sdpa = True
        """,
    "models/base/__init__.py": """
        if TYPE_CHECKING:
            from .configuration_base import *
            from .modeling_base import *
        """,
    "models/base/modeling_base.py": """
        from ...modeling_utils import PreTrainedModel
        class BasePreTrainedModel(PreTrainedModel):
            _supports_sdpa = _supports_flash_attn = True
            _no_split_modules = ["BaseLayer"]
        class Mixin:
            _supports_flash_attn = False
        """,
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A transformers of a few lines in place of the real one; its folder."""
    root = tmp_path / "site" / "transformers"
    files = {"__init__.py": '__version__ = "9.9.0"\n', **SMALL}
    files |= {f"models/auto/{name}": text for name, text in AUTO.items()}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        path.write_text("\n".join(line[indent:] for line in lines) + "\n")
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    monkeypatch.syspath_prepend(root.parent)
    return root


def test_maps_of_every_style(small: Path, tmp_path: Path) -> None:
    library = read_library(None, cache_dir=tmp_path / "cache")

    assert library.version == "9.9.0"
    assert list(library.config_classes) == ["alias", "small", "old", "small-vl"]
    assert library.modules == {
        "alias": "alias",
        "small": "small",
        "old": "deprecated.old",
        "small-vl": "small",
    }
    causal = {"small": ("SmallForCausalLM",), "small-vl": ("SmallVL", "SmallForCausalLM")}
    assert library.auto_classes == {
        "AutoModelForCausalLM": causal,
        "AutoModelForAny": {**causal, "old": ("Old",)},
    }
    assert library.tokenizer_classes == {"small": ("Fast",), "small-vl": ("Common", "Fast"), "old": ("Slow",)}
    assert library.processor_classes == {"small-vl": ("SmallProcessor",)}
    assert library.image_processor_classes == {}
    assert library.model_class("AutoModelForCausalLM", "alias") == "SmallForCausalLM"


def test_families_of_every_style(small: Path, tmp_path: Path) -> None:
    library = read_library({"model_type": "small-vl"}, cache_dir=tmp_path / "cache")

    assert set(library.families) == {"small-vl", "small"}
    config = library.families["small-vl"].config
    assert config.sub_configs == {"text_config": "", "part": "", "other": "small"}
    assert config.sub_config_classes == {
        "text_config": "AutoConfig",
        "part": "PartConfig",
        "other": "SmallConfig",
    }
    assert config.fields == {"return_dict": True}
    assert not config.has_use_cache
    heir = library.config_facts("SmallVLTwoConfig")
    assert heir is not None
    assert heir.sub_configs == config.sub_configs
    text = library.families["small"].config
    assert text.fields == {
        "return_dict": True,
        "hidden_size": -8,
        "names": None,
        "rate": 0.5,
        "use_cache": True,
        "ratios": [0.25, 2.0],
    }
    assert text.has_use_cache
    assert text.attribute_map == {"width": "hidden_size"}
    assert set(library.families["small"].models) == {"SmallPreTrainedModel", "SmallForCausalLM", "SmallVL"}
    causal = library.class_facts("SmallForCausalLM")
    assert causal == ModelFacts(
        name="SmallForCausalLM",
        module="transformers.models.small.modeling_small",
        supports_sdpa=True,
        supports_gradient_checkpointing=True,
        config_class="SmallConfig",
        no_split_modules=("BaseLayer",),
    )
    vision = library.class_facts("SmallVL")
    assert vision is not None
    assert (vision.supports_sdpa, vision.supports_flash_attn, vision.config_class) == (
        False,
        True,
        "SmallVLConfig",
    )
    alias = read_library({"model_type": "alias"}, cache_dir=tmp_path / "cache").families["alias"]
    assert alias.config == text
    assert "SmallForCausalLM" in alias.models


@pytest.mark.parametrize("name", ["models/small/modeling_small.py", "models/base/modeling_base.py"])
def test_an_edited_source_is_read_again(name: str, small: Path, tmp_path: Path) -> None:
    def sdpa() -> bool:
        facts = read_library({"model_type": "small"}, cache_dir=tmp_path / "cache").class_facts(
            "SmallForCausalLM"
        )
        assert facts is not None
        return facts.supports_sdpa

    assert sdpa()
    source = (small / name).read_text()
    edit = ("_checkpointing = True", "_checkpointing = True; _supports_sdpa = False")
    if "base" in name:
        edit = ("_flash_attn = True", "_flash_attn = False")
    (small / name).write_text(source.replace(*edit))
    assert not sdpa()
    library_index._memory.clear()
    assert not sdpa()


def test_an_edited_map_is_read_again(small: Path, tmp_path: Path) -> None:
    assert not read_library(None, cache_dir=tmp_path).knows("new")
    mappings = small / "models/auto/auto_mappings.py"
    mappings.write_text(mappings.read_text().replace('"old"', '"new"'))
    assert read_library(None, cache_dir=tmp_path).knows("new")


@pytest.mark.parametrize(
    "name", ["index", "library", "reader", "auto_maps", "class_source", "source_tree", "literals"]
)
def test_an_edited_reader_reads_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each module that an index comes from is part of its folder's name."""

    def folder() -> Path:
        return library_index._store(tmp_path, "9.9.0", tmp_path)

    stat = library_index._stat
    before = folder()
    assert folder() == before
    monkeypatch.setattr(library_index, "_stat", lambda path: (0, 0) if path.stem == name else stat(path))
    assert folder() != before


def test_an_unknown_layout_is_refused(small: Path, tmp_path: Path) -> None:
    (small / "models/auto/modeling_auto.py").unlink()
    with pytest.raises(LoadkitError, match=r"transformers 9\.9\.0.*Install a release"):
        read_library(None, cache_dir=tmp_path)


def test_without_transformers_the_library_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if "editable" not in repr(f).lower()])
    assert read_library({"model_type": "mistral"}, cache_dir=tmp_path) == Library()
    assert os.listdir(tmp_path) == []


def test_inheritance_is_pythons(tmp_path: Path) -> None:
    source = """
class A: pass
class B(A): pass
class C(A): pass
class D(B, C): pass
class M: pass
class E(M, D): pass
F = E
class G(F, A): pass
"""
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mod.py").write_text(source)
    names: dict[str, Any] = {}
    exec(source, names)
    tree = SourceTree(tmp_path / "pack")
    for name in "ABCDEG":
        found = tree.find("pack.mod", name)
        assert found is not None
        assert [each.name for each in tree.mro(found)] == [each.__name__ for each in names[name].__mro__[:-1]]


@pytest.mark.parametrize(
    "text",
    [
        "unknown",
        "unknown()",
        "[*1]",
        "{**1}",
        "dict(1)",
        "-'a'",
        "'a' + 'b'",
        "1 in 2",
        "x.items()",
        "(1).items()",
        "lambda: 1",
        "[n for n in ()]",
        "f'{1}'",
        "{'a': 1}['a']",
    ],
)
def test_what_isnt_literal_has_no_value(text: str) -> None:
    with pytest.raises(ValueError):
        evaluate(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize(
    "statement",
    [
        "names = computed()",
        "names.update(computed())",
        "names.update(3)",
        "names['b'] = computed()",
        "names[key] = 1",
    ],
)
def test_a_map_that_isnt_known_in_full_is_no_map(statement: str) -> None:
    names: dict[str, Any] = {}
    execute(ast.parse(f"names = {{'a': 1}}\n{statement}\nother = 2").body, names, lambda imported: {})
    assert names == {"other": 2}


def test_branches_that_run() -> None:
    names: dict[str, Any] = {}
    source = """
if is_available():
    a = 1
else:
    a = 2
if not is_available():
    b = 1
else:
    b = 2
if 1 in [2]:
    c = 1
try:
    d = e = 1
except ImportError:
    d = 2
"""
    execute(ast.parse(source).body, names, lambda imported: {})
    assert names == {"a": 1, "b": 2, "d": 1, "e": 1}


def test_every_answer_lists_all_its_files(tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "low.py").write_text("class Low: pass\n")
    (pack / "mid.py").write_text("from .low import Low\nclass Mid(Low): pass\n")
    tree = SourceTree(pack)
    for name in ("one", "two"):
        (pack / f"{name}.py").write_text("from .mid import Mid\nclass Top(Mid): pass\n")
        tree.start()
        top = tree.find(f"pack.{name}", "Top")
        assert top is not None
        assert [each.name for each in tree.mro(top)] == ["Top", "Mid", "Low"]
        assert {path.stem for path in tree.visited} == {name, "mid", "low"}
