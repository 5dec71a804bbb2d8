"""The options of a request: declared as data, checked against the declarations, turned into plain values."""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from typing import Any

import msgspec

from loadkit.errors import Problem
from loadkit.schema.claims import Strength
from loadkit.schema.request import Asked, Fields
from loadkit.text.kinds import kind_of, kinds_text
from loadkit.text.suggest import did_you_mean

__all__ = ["CORE_OPTIONS", "RESERVED", "Option", "ask", "option_fault", "plain"]

_problem = partial(Problem, "request", "loadkit")

TYPES: Mapping[str, Any] = {
    "bool": bool,
    "float": float,
    "int": int,
    "list": list[str],
    "mapping": dict[str, Any],
    "str": str,
    "bool or mapping": bool | dict[str, Any],
    "bool or str": bool | str,
    "list or str": list[str] | str,
    "mapping or str": dict[str, Any] | str,
    "names or str": dict[str, str] | str,
    "places or str": dict[str, int | str] | str,
    "sizes": dict[str, int | str],
    "bool or mapping or str": bool | dict[str, Any] | str,
}
"""What an option's value may be, by the name its declaration uses."""


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One option of `plan()` and `load()`, declared by the plugin that owns it.

    Parameters:
        name: as the user writes it, in the ecosystem's own terms.
        type: a key of `TYPES`.
        help: one line for the reference and for `--help`.
        stage: the stage it settles.
        choices: the values it may have; empty for any.
        aliases: older or other spellings, such as `torch_dtype` for `dtype`.
    """

    name: str
    type: str
    help: str
    stage: str
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


def option_fault(option: Option) -> str:
    """Why nobody could give an option as it is declared; "" where it can be given."""
    names: tuple[object, ...] = (option.name, *option.aliases)
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            return f"{name!r} can't be a keyword and a flag: letters, digits and _ can"
    if option.type not in TYPES:
        return f"{option.type!r} isn't a type of options{did_you_mean(str(option.type), TYPES)}; there are {', '.join(TYPES)}"
    return ""


CORE_OPTIONS: tuple[Option, ...] = (
    Option(name="revision", type="str", stage="checkpoint", help="branch, tag or commit of the repository"),
    Option(
        name="adapter_revision",
        type="str",
        stage="checkpoint",
        help="branch, tag or commit of the adapter's repository",
    ),
    Option(
        name="trust_remote_code",
        type="bool",
        stage="architecture",
        help="run the checkpoint's own Python code where transformers has none for it",
    ),
    Option(
        name="allow_pickle",
        type="bool",
        stage="checkpoint",
        help="accept .bin weights, which are pickles and can run code while loading",
    ),
    Option(
        name="optim",
        type="str",
        stage="memory",
        help='the trainer\'s optimizer, for the estimate of memory: "adamw_torch" (the default), "adamw_8bit", "sgd", …',
    ),
    Option(
        name="trainer_fields",
        type="list",
        stage="request",
        help="fields of the trainer's config that bear on the model and that the trainer carries out: `from_training_arguments` names them, "
        "for plan.requested",
    ),
    Option(
        name="check_memory",
        type="bool",
        stage="memory",
        help="refuse a plan whose weights don't fit the device (the default)",
    ),
    Option(
        name="tp_plan",
        type="mapping or str",
        stage="engine",
        help='split layers over the processes: "auto" by transformers\' own plan for the architecture, or rules that change it',
    ),
    Option(
        name="tp_size",
        type="int",
        stage="engine",
        help="over how many processes layers are split; by default all",
    ),
    Option(
        name="gguf_file",
        type="str",
        stage="checkpoint",
        help="the GGUF file in the folder or repository that holds the model; the path of one can be the source itself",
    ),
    Option(name="cache_dir", type="str", stage="checkpoint", help="where Hub files are cached"),
    Option(
        name="local_files_only",
        type="bool",
        stage="checkpoint",
        help="use only what is cached; don't ask the Hub",
    ),
    Option(
        name="tokenizer",
        type="str",
        stage="processing",
        help="folder or Hub id[@revision] of another tokenizer or processor; by default the adapter's or the model's own",
        aliases=("tokenizer_name_or_path",),
    ),
    Option(
        name="chat_template",
        type="str",
        stage="processing",
        help="a chat template to set: Jinja text, a file, or the folder or Hub id of a checkpoint that has it",
    ),
    Option(
        name="adapter",
        type="bool or mapping or str",
        stage="adapter",
        help='true for a new LoRA adapter, false for none; the folder or Hub id[@revision] of an existing one; or several as {"name": "source"}',
    ),
    Option(
        name="quantization_config",
        type="mapping",
        stage="quantization",
        help="a quantization config object of transformers, or its fields with quant_method",
    ),
    Option(
        name="skip_modules",
        type="list",
        stage="quantization",
        help="modules to leave unquantized, in addition to the automatic ones: paths or their last parts",
        aliases=("llm_int8_skip_modules", "modules_to_not_convert"),
    ),
    Option(
        name="model_kwargs",
        type="mapping",
        stage="kwargs",
        help="further keyword arguments of from_pretrained, and fields of the config to set",
    ),
)
"""Options that the core reads itself."""

RESERVED = frozenset({
    "as_json", "asked", "engine", "generate", "help", "json", "kwargs", "kwargs_only", "launch", "machine", "manifest", "max_new_tokens",
    "model", "nodes", "options", "output", "plugin_manager", "profile", "progress", "recipe", "replay", "save", "source", "strict",
    "together", "token", "topology", "verbose", "why", "word",
})  # fmt: skip
"""Names that no option can have: arguments of `plan()` and `load()`, and flags of their commands."""

SKIPPING = next((o.name, *o.aliases) for o in CORE_OPTIONS if o.name == "skip_modules")
"""What the modules to leave unquantized are called, as an option and as a field of a quantization config."""


def plain(value: object) -> Any:
    """Turn an option's value into plain data, without importing the library it comes from.

    A torch dtype becomes its name, a configuration its `to_dict()`, an enum its value, sets sorted lists.

    Raises:
        TypeError: the value has no plain form.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(item) for item in value]
    kind = type(value)
    if kind.__module__.split(".")[0] == "torch" and kind.__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    to_dict = getattr(value, "to_dict", None)
    if callable(to_dict):
        return plain(to_dict())
    raise TypeError(f"a {kind.__module__}.{kind.__qualname__} has no plain form")


def ask(
    given: Mapping[str, object],
    declared: Mapping[str, tuple[str, Option]],
    conflicts: Mapping[str, Sequence[str]],
    *,
    by: str,
    strength: Strength,
) -> tuple[dict[str, Asked], list[Problem]]:
    """Check options against their declarations.

    Parameters:
        given: option to value, as the user or the profile wrote them.
        declared: every spelling of an option to (declaring plugin, declaration).
        conflicts: a spelling that several plugins declare, to those plugins.
        by: who gives them: "you", "profile 'qlora'".
        strength: how much that weighs.

    Returns:
        The options that are well-formed, under their canonical names, and a problem for each that isn't.
    """
    asked: dict[str, Asked] = {}
    problems: list[Problem] = []
    for name, value in given.items():
        if name not in declared:
            problems.append(_undeclared(name, by, declared, conflicts))
            continue
        if value is None:
            continue
        plugin, option = declared[name]
        problem = partial(Problem, option.stage, plugin)
        try:
            clean = msgspec.convert(plain(value), TYPES[option.type])
        except (TypeError, msgspec.ValidationError):
            found = f"{by} gave {name}={value!r}, {_unfit(value, option)}; it takes {kinds_text(option.type)}"
            problems.append(problem("bad-option", found, f"{name}: {option.help}"))
            continue
        if isinstance(clean, list):
            clean = list(dict.fromkeys(clean))  # a name that is given twice is given
        if any(math.isnan(number) for number in _floats(clean)):
            found = f"{by} gave {name}={value!r}, and NaN isn't a number"
            problems.append(problem("bad-option", found, f"give a number; {name}: {option.help}"))
            continue
        earlier = asked.get(option.name)
        if option.choices and clean not in option.choices:
            found = f"{by} gave {name}={clean!r}{did_you_mean(str(clean), option.choices)}"
            problems.append(problem("bad-choice", found, f"choose one of {', '.join(option.choices)}"))
        elif earlier is not None and earlier.value != clean:
            found = f"{by} gave {option.name!r} twice under two names, with {earlier.value!r} and with {clean!r} ({name})"
            remedy = f"keep {option.name}={earlier.value!r} or {option.name}={clean!r}"
            problems.append(problem("option-twice", found, remedy))
        else:
            value = Fields(option.name, clean) if isinstance(clean, dict) else clean
            asked[option.name] = Asked(name=option.name, value=value, by=by, strength=strength)
    return asked, problems


def _unfit(value: Any, option: Option) -> str:
    """What is wrong with a value: its kind, or in a mapping of the right kind the entry that doesn't fit."""
    for key, each in value.items() if isinstance(value, Mapping) else ():
        if not _fits({key: each}, option):
            return f"where {key!r} has {each!r}, {kind_of(each)}"
    return kind_of(value)


def _fits(value: Any, option: Option) -> bool:
    try:
        msgspec.convert(plain(value), TYPES[option.type])
    except (TypeError, msgspec.ValidationError):
        return False
    return True


def _floats(value: Any) -> Iterator[float]:
    match value:
        case float():
            yield value
        case dict():
            for each in value.values():
                yield from _floats(each)
        case list():
            for each in value:
                yield from _floats(each)


def _undeclared(
    name: str, by: str, declared: Mapping[str, object], conflicts: Mapping[str, Sequence[str]]
) -> Problem:
    if name in conflicts:
        plugins = conflicts[name]
        message = f"{by} gave {name!r}, which several plugins declare as theirs: {', '.join(plugins)}"
        remedy = f"leave all but one out, for example LOADKIT_DISABLE={','.join(plugins[1:])}"
        return _problem("conflict", message, remedy)
    longer = [option for option in declared if option.endswith(f"_{name}")]
    hint = f" (did you mean {longer[0]!r}?)" if longer else did_you_mean(name, declared)
    message = f"{by} gave {name!r}, which isn't an option{hint}"
    remedy = "`loadkit plan --help` lists the options; pass anything else that from_pretrained takes in model_kwargs"
    if longer and longer[0].startswith("lora_"):
        remedy = f"give {longer[0]}=…, or fields of PEFT's in adapter={{{name!r}: …}}"
    return _problem("unknown-option", message, remedy)
