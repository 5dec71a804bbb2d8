"""Index the source of the installed transformers, and keep the index on disk.

Importing transformers takes seconds; parsing the few files that matter takes a fraction of one, and reading
the index back takes milliseconds. The index holds one file of maps (the auto classes), written once, and one
file for each source folder of models that a checkpoint needs. An index file counts only while the source
files it was made from have the size and time they had then.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from loadkit.cache.atomic_write import write_whole
from loadkit.cache.cache_folder import cache_folder
from loadkit.errors import LoadkitError
from loadkit.facts.library.library import ConfigFacts, Family, Library, ModelFacts, ModuleFacts
from loadkit.schema.request import Progress

if TYPE_CHECKING:
    from loadkit.facts.library.source_tree import SourceTree

__all__ = ["read_library"]

_Stored = TypeVar("_Stored", bound=msgspec.Struct)
_Stat = tuple[int, int]


class ModelFolder(msgspec.Struct, frozen=True, kw_only=True):
    """The classes of one folder below transformers/models, by name.

    `sources` are the files they were read from, relative to transformers' folder, with bytes and time in ns.
    """

    sources: dict[str, _Stat]
    configs: dict[str, ConfigFacts]
    models: dict[str, ModelFacts]
    modules: dict[str, ModuleFacts]


_memory: dict[tuple[str, str, str], Any] = {}
"""What this process has read already: (transformers' folder, store, file name) to value."""


def read_library(
    config: Mapping[str, Any] | None, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> Library:
    """Read what the installed transformers offers for a checkpoint, without importing it.

    Parameters:
        config: the checkpoint's config.json, whose model types (nested and default ones included) are read in
            full; None for the maps alone.
        cache_dir: where the index is kept; by default the environment's LOADKIT_CACHE, else the user's cache
            folder. One that can't be read or written costs time only.
        progress: called with a short sentence about what has to be built because the index lacks it.

    Returns:
        The facts; empty, with version "", where transformers isn't installed.

    Raises:
        LoadkitError: transformers is installed, but isn't laid out as loadkit knows it.
    """
    root = _locate()
    if root is None:
        return Library()
    version = _version(root)
    index = _Index(root, version, _store(root, version, cache_dir), progress or (lambda sentence: None))
    maps = index.maps()
    if config is None:
        return maps
    families: dict[str, Family] = {}
    waiting = [maps.model_type_of(config), *_model_types(config)]
    while waiting:
        model_type = waiting.pop(0)
        if maps.knows(model_type) and model_type not in families and (family := index.family(model_type)):
            families[model_type] = family
            waiting += _default_types(family)
    return msgspec.structs.replace(maps, families=families)


class _Index:
    """The index of one installed transformers: each part from memory, else from disk, else from source."""

    def __init__(self, root: Path, version: str, store: Path, progress: Progress) -> None:
        self._root = root
        self._version = version
        self._store = store
        self._progress = progress
        self._tree: SourceTree | None = None

    def maps(self) -> Library:
        """The library without families."""
        return self._get("maps", Library, lambda maps: maps.version == self._version, self._build_maps)

    def folder(self, name: str) -> ModelFolder:
        """The classes of a folder below models."""
        return self._get(
            f"models.{name}",
            ModelFolder,
            lambda folder: self._fresh(folder.sources),
            lambda: self._build_folder(name),
        )

    def family(self, model_type: str) -> Family | None:
        """A model type's classes; None where its config class is in no folder that the maps lead to."""
        maps = self.maps()
        name = maps.config_classes[model_type]
        own = self.folder(maps.modules[model_type])
        config = own.configs.get(name)
        aliases = [key for key, other in maps.config_classes.items() if other == name]
        if config is None:  # gpt-sw3, say, has its own folder and gpt2's classes
            found = (self.folder(maps.modules[key]).configs.get(name) for key in aliases)
            config = next((each for each in found if each), None)
        if config is None:
            return None
        auto_classes = maps.auto_classes.values()
        listed = {each for classes in auto_classes for key in aliases for each in classes.get(key, ())}
        others = {each: home for each in sorted(listed - set(own.models)) if (home := self._home(each))}
        return Family(
            model_type=model_type,
            config=config,
            configs=own.configs,
            models={**own.models, **{each: home.models[each] for each, home in others.items()}},
            modules=own.modules or {k: m for home in others.values() for k, m in home.modules.items()},
        )

    def _home(self, class_name: str) -> ModelFolder | None:
        """The folder of a model class that a map names for another folder's type."""
        maps = self.maps()
        owners = {
            maps.modules[key]: None
            for classes in maps.auto_classes.values()
            for key, names in classes.items()
            if class_name in names and key in maps.modules
        }
        folders = (self.folder(owner) for owner in owners)
        return next((folder for folder in folders if class_name in folder.models), None)

    def _get(
        self, name: str, kind: type[_Stored], valid: Callable[[_Stored], bool], build: Callable[[], _Stored]
    ) -> _Stored:
        key = (str(self._root), str(self._store), name)
        path = self._store / f"{name}.json"
        value: _Stored | None = _memory.get(key) or _load(path, kind)
        if value is None or not valid(value):
            value = build()
            _save(path, value)
        _memory[key] = value
        return value

    def _fresh(self, sources: Mapping[str, _Stat]) -> bool:
        try:
            return all(_stat(self._root / name) == stat for name, stat in sources.items())
        except OSError:
            return False

    def _build_maps(self) -> Library:
        from loadkit.facts.library.auto_maps import read_maps

        self._progress(f"reading the auto classes of transformers {self._version}")
        maps = read_maps(self._source(), self._version)
        if not maps.config_classes or not maps.auto_classes:
            raise LoadkitError(
                f"loadkit looked for the table of models in models/auto of the transformers {self._version} "
                f"at {self._root}, and found none. Install a release of transformers that loadkit supports."
            )
        return maps

    def _build_folder(self, name: str) -> ModelFolder:
        from loadkit.facts.library.reader import read_folder

        self._progress(f"reading the {name} models of transformers {self._version}")
        configs, models, modules, files = read_folder(self._source(), name)
        sources = {path.relative_to(self._root).as_posix(): _stat(path) for path in sorted(files)}
        return ModelFolder(sources=sources, configs=configs, models=models, modules=modules)

    def _source(self) -> SourceTree:
        if self._tree is None:
            from loadkit.facts.library.reader import source_of  # with ast, needed only to build

            self._tree = source_of(self._root)
        return self._tree


def _locate() -> Path | None:
    try:
        spec = importlib.util.find_spec("transformers")
    except (ImportError, ValueError):  # ValueError: a stand-in without a spec is in sys.modules
        return None
    return Path(spec.origin).resolve().parent if spec and spec.origin else None


def _version(root: Path) -> str:
    try:
        text = (root / "__init__.py").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return "unknown"
    found = re.search(r"""^__version__ *= *["']([\w.+!-]+)["']""", text, re.MULTILINE)
    return found.group(1) if found else "unknown"


def _store(root: Path, version: str, cache_dir: Path | None) -> Path:
    """The folder of this index, named for all that goes into every part of it: loadkit's readers too."""
    own = Path(__file__).parent.glob("*.py")
    sources = [root / "__init__.py", root / "configuration_utils.py", root / "modeling_utils.py"]
    sources += sorted([*(root / "models" / "auto").glob("*.py"), *own])
    parts = [str(root), str(sys.version_info[:2])]
    for path in sources:
        with contextlib.suppress(OSError):
            parts.append(f"{path} {_stat(path)}")
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
    return (cache_dir or cache_folder()) / "library" / f"{version}-{digest}"


def _stat(path: Path) -> _Stat:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _load(path: Path, kind: type[_Stored]) -> _Stored | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
        return None


def _save(path: Path, value: msgspec.Struct) -> None:
    """Keep a part of the index, where the cache can be written."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.encode(value))


def _model_types(config: Mapping[str, Any]) -> Iterator[str]:
    for value in config.values():
        if isinstance(value, Mapping):
            if isinstance(model_type := value.get("model_type"), str):
                yield model_type
            yield from _model_types(value)


def _default_types(family: Family) -> Iterator[str]:
    """The model types that a family's config holds by default, looking into parts without a type."""
    waiting = [family.config]
    while waiting:
        facts = waiting.pop()
        yield from facts.sub_configs.values()
        parts = [family.configs.get(name) for name in facts.sub_config_classes.values()]
        waiting += [part for part in parts if part]
