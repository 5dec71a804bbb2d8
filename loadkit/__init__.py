"""loadkit: ask for a model, get exactly what you asked for, see who decided what, and have it proved.

    import loadkit

    model, tokenizer = loadkit.load("mistralai/Mistral-7B-v0.1", profile="qlora")

    plan = loadkit.plan("mistralai/Mistral-7B-v0.1", profile="qlora", attn_implementation="sdpa")
    print(plan)
    loaded = loadkit.load(plan)

Names are imported when they are first used, so that `import loadkit` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadkit.claims import Claim, Decision, Overruled, PassedOver, Strength
    from loadkit.collector import collector_rests
    from loadkit.context import Context
    from loadkit.entries import Entries, Entry, Record
    from loadkit.errors import (
        AuditError,
        Finding,
        LoadError,
        LoadkitError,
        PlanError,
        PluginError,
        Problem,
        RankError,
        Severity,
    )
    from loadkit.facts.beside import Beside, Template
    from loadkit.facts.checkpoint import AdapterFacts, Checkpoint, File, ProcessingFacts, TensorHeader
    from loadkit.facts.library import ConfigFacts, Family, Library, ModelFacts, ModuleFacts
    from loadkit.facts.machine import Accelerator, Machine
    from loadkit.facts.parts import Weight
    from loadkit.facts.request import Asked, Request
    from loadkit.facts.topology import Topology
    from loadkit.hookspecs import hookimpl
    from loadkit.inference import InferenceMode
    from loadkit.integrity import checksum, checksums, file_checksums
    from loadkit.loading import Loaded, LoadkitWarning, load, load_processing_class
    from loadkit.manager import PluginInfo, PluginManager, PluginWarning
    from loadkit.manifests import Difference, FileProof, Manifest, differences
    from loadkit.options import Option, nearest
    from loadkit.pipeline import make_plan as plan
    from loadkit.plans import Memory, Plan, RankMemory
    from loadkit.profiles import Profile, read_profile, read_profiles
    from loadkit.recipes import Recipe, read_recipe
    from loadkit.replaying import ReplayError, ReplayWarning
    from loadkit.report import Change, Loading, Measurements, Report
    from loadkit.shortcuts import LoadingAid, Shortcut, Stored
    from loadkit.units import size, span
    from loadkit.values import (
        Adapter,
        Adapters,
        Architecture,
        Experimental,
        ModelClass,
        Opened,
        Packed,
        Placement,
        Preparation,
        Processing,
        Quantization,
        Support,
        Supported,
        Tokens,
        Unsupported,
        Vocabulary,
    )

_HOMES: dict[str, tuple[str, ...]] = {
    "claims": ("Claim", "Decision", "Overruled", "PassedOver", "Strength"),
    "collector": ("collector_rests",),
    "context": ("Context",),
    "integrity": ("checksum", "checksums", "file_checksums"),
    "entries": ("Entries", "Entry", "Record"),
    "errors": (
        "AuditError",
        "Finding",
        "LoadError",
        "LoadkitError",
        "PlanError",
        "PluginError",
        "Problem",
        "RankError",
        "Severity",
    ),
    "facts.beside": ("Beside", "Template"),
    "facts.checkpoint": ("AdapterFacts", "Checkpoint", "File", "ProcessingFacts", "TensorHeader"),
    "facts.library": ("ConfigFacts", "Family", "Library", "ModelFacts", "ModuleFacts"),
    "facts.machine": ("Accelerator", "Machine"),
    "facts.parts": ("Weight",),
    "facts.request": ("Asked", "Request"),
    "facts.topology": ("Topology",),
    "hookspecs": ("hookimpl",),
    "inference": ("InferenceMode",),
    "loading": ("Loaded", "LoadkitWarning", "load", "load_processing_class"),
    "manager": ("PluginInfo", "PluginManager", "PluginWarning"),
    "manifests": ("Difference", "FileProof", "Manifest", "differences"),
    "options": ("Option", "nearest"),
    "pipeline": ("plan",),
    "plans": ("Memory", "Plan", "RankMemory"),
    "profiles": ("Profile", "read_profile", "read_profiles"),
    "recipes": ("Recipe", "read_recipe"),
    "replaying": ("ReplayError", "ReplayWarning"),
    "report": ("Change", "Loading", "Measurements", "Report"),
    "shortcuts": ("LoadingAid", "Shortcut", "Stored"),
    "units": ("size", "span"),
    "values": (
        "Adapter",
        "Adapters",
        "Architecture",
        "Experimental",
        "ModelClass",
        "Opened",
        "Packed",
        "Placement",
        "Preparation",
        "Processing",
        "Quantization",
        "Support",
        "Supported",
        "Tokens",
        "Unsupported",
        "Vocabulary",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_ELSEWHERE = {"plan": "make_plan"}

__all__ = [
    "Accelerator",
    "Adapter",
    "AdapterFacts",
    "Adapters",
    "Architecture",
    "Asked",
    "AuditError",
    "Beside",
    "Change",
    "Checkpoint",
    "Claim",
    "ConfigFacts",
    "Context",
    "Decision",
    "Difference",
    "Entries",
    "Entry",
    "Experimental",
    "Family",
    "File",
    "FileProof",
    "Finding",
    "InferenceMode",
    "Library",
    "LoadError",
    "Loaded",
    "Loading",
    "LoadingAid",
    "LoadkitError",
    "LoadkitWarning",
    "Machine",
    "Manifest",
    "Measurements",
    "Memory",
    "ModelClass",
    "ModelFacts",
    "ModuleFacts",
    "Opened",
    "Option",
    "Overruled",
    "Packed",
    "PassedOver",
    "Placement",
    "Plan",
    "PlanError",
    "PluginError",
    "PluginInfo",
    "PluginManager",
    "PluginWarning",
    "Preparation",
    "Problem",
    "Processing",
    "ProcessingFacts",
    "Profile",
    "Quantization",
    "RankError",
    "RankMemory",
    "Recipe",
    "Record",
    "ReplayError",
    "ReplayWarning",
    "Report",
    "Request",
    "Severity",
    "Shortcut",
    "Stored",
    "Strength",
    "Support",
    "Supported",
    "Template",
    "TensorHeader",
    "Tokens",
    "Topology",
    "Unsupported",
    "Vocabulary",
    "Weight",
    "checksum",
    "checksums",
    "collector_rests",
    "differences",
    "file_checksums",
    "hookimpl",
    "load",
    "load_processing_class",
    "nearest",
    "plan",
    "read_profile",
    "read_profiles",
    "read_recipe",
    "size",
    "span",
]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'loadkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"loadkit.{home}"), _ELSEWHERE.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
