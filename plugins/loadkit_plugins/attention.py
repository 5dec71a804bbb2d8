"""attention: the fastest implementation that package, accelerator, dtype and architecture allow.

Where nobody asks it is a chain: flash_attention_3, else flash_attention_2, else sdpa, else eager, for every
nested config on its own. A name given by the user is a demand; one in a profile is where the chain starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from loadkit import (
    Claim,
    Context,
    Finding,
    Machine,
    ModelClass,
    Option,
    PassedOver,
    Plan,
    Problem,
    Reading,
    Strength,
    Supported,
    hookimpl,
)
from loadkit.plugins import ConfigFacts, Library, configs, did_you_mean

_problem = partial(Problem, "attention", "attention")
_finding = partial(Finding, "attention", "attention")

CHAIN = ("flash_attention_3", "flash_attention_2", "sdpa", "eager")
ON_DEMAND = ("flash_attention_4", "flex_attention")
HALF = ("bfloat16", "float16")
JOINING = ("padding_free", "packing")
"""Fields of trainers' configs that make one text of several (TRL 1.16 wants FlashAttention for both)."""


class Needs(msgspec.Struct, frozen=True):
    """What a FlashAttention version needs of the machine: a package, and a range of compute capabilities."""

    package: str
    least: tuple[int, int]
    most: tuple[int, int]
    family: str


FLASH: Mapping[str, Needs] = {
    "flash_attention_2": Needs("flash-attn", (8, 0), (99, 0), "sm80 or newer"),
    "flash_attention_3": Needs("flash-attn-3", (9, 0), (9, 9), "sm90 (Hopper)"),
    "flash_attention_4": Needs("flash-attn-4", (9, 0), (99, 0), "sm90 or newer"),
}


@hookimpl
def loadkit_options() -> Sequence[Option]:
    return [
        Option(
            name="attn_implementation",
            type="names or str",
            stage="attention",
            help=f"attention backend: {', '.join((*CHAIN, *ON_DEMAND))}, a Hub kernel by its full name, or a mapping of sub-configs",
        )
    ]


@hookimpl
def loadkit_choose_attention(
    context: Context, architecture: ModelClass, dtype: str
) -> Sequence[Claim[str | dict[str, str]] | Problem]:
    fallback = _chain(CHAIN, context, architecture, dtype, Strength.FALLBACK)
    asked = context.request.asked("attn_implementation")
    if asked is None:
        return [fallback]
    if isinstance(asked.value, str) and not asked.demanded:
        links = (asked.value, *(link for link in CHAIN if link != asked.value))
        return [_chain(links, context, architecture, dtype, asked.strength, because=asked.because)]
    names = [asked.value] if isinstance(asked.value, str) else list(dict(asked.value).values())
    by = [str(each) for each in context.library.registrations if each.name in names and not known(each.name)]
    return [
        Claim(value=asked.value, because="; ".join((asked.because, *by)), strength=asked.strength),
        fallback,
    ]


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    return [*_problems(context, plan), *_joined(context, plan)]


def _joined(context: Context, plan: Plan) -> Iterator[Problem]:
    """Texts that the trainer joins, and that other attention than FlashAttention lets see each other."""
    joining = [name for name in context.request.value("trainer_fields", ()) if name in JOINING]
    chosen = plan.attn_implementation
    names = [chosen] if isinstance(chosen, str) else list(chosen.values())
    if joining and not any("flash" in name for name in names):
        yield _problem(
            "joined-without-flash",
            f"the trainer's config has {' and '.join(joining)}, which joins texts into one, and with attention {chosen!r} "
            f"({plan.why('attention').because}) they can see each other",
            f"train where FlashAttention can be had, or leave {' and '.join(joining)} out",
            severity="warning",
        )


def _problems(context: Context, plan: Plan) -> Iterator[Problem]:
    decision = plan.why("attention")
    chosen = plan.attn_implementation
    by_part = {"": chosen} if isinstance(chosen, str) else chosen
    parts = _parts(context, plan.model_class)
    by = "you asked for" if decision.strength is Strength.YOU else f"plugin {decision.plugin!r} chose"
    for part, name in by_part.items():
        by_others = [each for each in context.library.registrations if each.name == name]
        if not known(name) and len(by_others) > 1:
            both = " and ".join(sorted(each.distribution for each in by_others))
            yield _problem(
                "conflict",
                f"{by} attention {name!r}, which several distributions register: {both}",
                "uninstall all but one",
            )
            continue
        if not known(name) and not by_others:
            names = (*CHAIN, *ON_DEMAND, *(each.name for each in context.library.registrations))
            yield _problem(
                "unknown-attention",
                f"{by} attention {name!r}{did_you_mean(name, names)}",
                f"choose one of {', '.join(names)}, or a Hub kernel as owner/name",
            )
            continue
        if part and part not in parts:
            yield _problem(
                "unknown-sub-config",
                f"{by} attention for {part!r}, which this config doesn't have{did_you_mean(part, parts)}",
                f"it has {', '.join(p or 'the outermost (an empty key)' for p in parts)}",
            )
            continue
        concerned = parts if isinstance(chosen, str) else {part: parts.get(part, [])}
        reasons = [r for classes in concerned.values() if (r := missing(name, context, classes, plan.dtype))]
        if reasons:
            where = f" for {part}" if part else ""
            had = _chain(CHAIN, context, plan.model_class, plan.dtype, Strength.FALLBACK)
            works = (
                f"attn_implementation={had.value!r} works here; leave the option out to have it chosen"
                if isinstance(had, Claim)
                else had.remedy
            )
            yield _problem(
                "attention-unavailable",
                f"{by} {name}{where}, but {'; '.join(dict.fromkeys(reasons))}",
                f"{_install(name, reasons)}{works}",
            )


def _install(name: str, reasons: Sequence[str]) -> str:
    """What to install, where a package is all that is missing."""
    package = FLASH[name].package if name in FLASH else "kernels"
    return f"pip install {package}; or " if all(package in reason for reason in reasons) else ""


@hookimpl
def loadkit_read_back(plan: Plan, model: Any) -> Sequence[Reading]:
    """Every sub-config runs the planned implementation, which transformers may change while building."""
    chosen = plan.attn_implementation
    by_part = {"": chosen} if isinstance(chosen, str) else chosen
    whole = chosen if isinstance(chosen, str) else ""
    found = []
    for path, config in configs(model.config):
        part = path.split(".")[0]
        planned = by_part.get(part, whole)
        effective = getattr(config, "_attn_implementation", None)
        if planned and effective is not None:
            found.append(
                Reading(
                    stage="attention",
                    names=("attn_implementation",) if whole else (f"attn_implementation.{part}",),
                    where=f"config.{path}._attn_implementation".replace("..", "."),
                    planned=planned,
                    effective=str(effective),
                    verbatim=planned != "paged|eager",
                    code="attention",
                )
            )
    return found


@hookimpl
def loadkit_audit_model(plan: Plan, model: Any) -> Sequence[Finding]:
    return list(_called(model, plan.attn_implementation))


def _called(model: Any, chosen: str | dict[str, str]) -> Iterator[Finding]:
    """What attention modules read when they are called: a config of their own may differ from the model's."""
    if not isinstance(chosen, str):
        return
    known = {id(config) for _, config in configs(model.config)}
    stray: dict[str, str] = {}
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        effective = getattr(config, "_attn_implementation", None)
        called = type(module).__name__.endswith("Attention") and id(config) not in known
        if called and effective not in (None, chosen):
            stray.setdefault(str(effective), name)
    for effective, name in stray.items():
        yield _finding("attention-called", f"{name} calls another attention", chosen, effective)


def known(name: str) -> bool:
    """Whether transformers can know the name: its own ones, and kernels on the Hub, which need an owner."""
    return name in CHAIN or name in ON_DEMAND or "/" in name or name == "paged|eager"


def _chain(
    links: Sequence[str],
    context: Context,
    architecture: ModelClass,
    dtype: str,
    strength: Strength,
    *,
    because: str = "",
) -> Claim[str | dict[str, str]] | Problem:
    """Walk the links for every part of the config; one name where all parts agree. A problem where a part
    can have none of them."""
    chosen: dict[str, str] = {}
    passed: dict[str, PassedOver] = {}
    for part, classes in _parts(context, architecture).items():
        for link in links:
            if not (reason := missing(link, context, classes, dtype)):
                chosen[part] = link
                break
            passed.setdefault(link, PassedOver(link, reason))
        else:
            return _none(links, part, passed)
    value: str | dict[str, str] = chosen if len(set(chosen.values())) > 1 else chosen[""]
    first = chosen[""]
    had = f"the first of {' > '.join(links)} that" if first != links[0] else first
    because = f"{because}; {had} can be had" if because else f"{had} can be had"
    return Claim(value=value, because=because, strength=strength, passed_over=tuple(passed.values()))


def _none(links: Sequence[str], part: str, passed: Mapping[str, PassedOver]) -> Problem:
    reasons = "; ".join(f"{link}: {passed[link].reason}" for link in links if link in passed)
    return _problem(
        "no-attention",
        f"no attention can be had{f' for {part}' if part else ''}: {reasons}",
        "see that what is registered of this architecture's attention is true (Supported for what runs), or tell the plugin's author",
    )


def _parts(context: Context, architecture: ModelClass) -> dict[str, list[str]]:
    """First-level sub-config ("" for the whole) to the classes that read it, as far as the library tells."""
    library, checkpoint = context.library, context.checkpoint
    parts = {"": [architecture.model_class]}
    family = library.families.get(library.model_type_of(checkpoint.config))
    if family is None or architecture.config_key or architecture.implementation != "transformers":
        return parts
    nested = dict(checkpoint.sub_configs())
    for key in family.config.sub_configs:
        given = nested.get(key, {}).get("model_type", "")
        config = library.sub_config(family.config, key, given if isinstance(given, str) else "")
        if config is not None and (readers := _readers(library, config)):
            parts[key] = readers
    return parts


def _readers(library: Library, config: ConfigFacts) -> list[str]:
    """The model classes that are built from a nested config."""
    auto = library.model_class("AutoModel", config.model_type)
    if auto is not None:
        return [auto]
    return [
        facts.name
        for family in library.families.values()
        for facts in family.models.values()
        if facts.config_class == config.name
    ]


def missing(name: str, context: Context, classes: Sequence[str], dtype: str) -> str:
    """Why the implementation can't be had here; "" where it can."""
    if name in FLASH and (reason := _flash(name, context.machine, dtype)):
        return reason
    if "/" in name and context.machine.version("kernels") is None:
        return "it is a kernel on the Hub, and the package kernels isn't installed"
    family = context.registered
    concerned = family is not None and (
        not family.models or not {*family.models.values()}.isdisjoint(classes)
    )
    if concerned and family is not None and name in family.attention:
        support = family.attention[name]
        return "" if isinstance(support, Supported) else f"{family.model_type}: {support.reason}"
    for class_name in classes:
        facts = context.library.class_facts(class_name)
        if facts is None:
            continue
        supported = {"sdpa": facts.supports_sdpa, "flex_attention": facts.supports_flex_attn}
        if name in FLASH:
            supported[name] = facts.supports_flash_attn
        if not supported.get(name, True):
            return f"{class_name} doesn't support it"
    return ""


def _flash(name: str, machine: Machine, dtype: str) -> str:
    needs = FLASH[name]
    if machine.kind != "cuda":
        return "it needs a CUDA device, and this machine has none"
    if not needs.least <= machine.capability <= needs.most:
        major, minor = machine.capability
        return f"it needs {needs.family}, and {machine.accelerators[0].name} is sm{major}{minor}"
    if machine.version(needs.package) is None:
        return f"the package {needs.package} isn't installed"
    if dtype not in HALF:
        return f"it computes in bfloat16 or float16, and the dtype is {dtype}"
    return ""
