"""loadkit: ask for a model, get exactly what you asked for, see who decided what, and have it proved.

    import loadkit

    model, tokenizer = loadkit.load("mistralai/Mistral-7B-v0.1", profile="qlora")

    plan = loadkit.plan("mistralai/Mistral-7B-v0.1", profile="qlora", attn_implementation="sdpa")
    print(plan)
    loaded = loadkit.load(plan)

What plugins need beyond these names is in `loadkit.plugins`. Names are imported when they are first used, so
that `import loadkit` costs nothing.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING

from loadkit.facts.machine import forks as _forks  # noqa: F401 - forks are noticed from here on
from loadkit.loading import known_noise as _known_noise

# fmt: off
if TYPE_CHECKING:
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
    from loadkit.facts.checkpoint.checkpoint import Checkpoint
    from loadkit.facts.context import Context
    from loadkit.facts.library.weight_roles import Weight
    from loadkit.facts.machine.machine import Accelerator, Machine
    from loadkit.facts.machine.topology import Topology
    from loadkit.hooks.hookspecs import hookimpl
    from loadkit.hooks.manager import PluginInfo, PluginManager, PluginWarning
    from loadkit.loading.load import Loaded, LoadkitWarning, load, load_processing_class
    from loadkit.manifest.manifest import Difference, Manifest, differences
    from loadkit.manifest.replay import ReplayError, ReplayWarning
    from loadkit.merging.merge import merge
    from loadkit.merging.merged import Merged
    from loadkit.planning.build_request import read_recipe_file as read_recipe
    from loadkit.planning.pipeline import make_plan as plan
    from loadkit.request.options import Option
    from loadkit.request.profiles import Profile, read_profile, read_profiles
    from loadkit.request.recipes import Recipe
    from loadkit.schema.adapters import Adapter, Adapters
    from loadkit.schema.claims import Claim, Decision, Overruled, PassedOver, Strength
    from loadkit.schema.finishes import Finish, Finished
    from loadkit.schema.memory import Memory, RankMemory
    from loadkit.schema.plans import Plan
    from loadkit.schema.processing import Processing, Tokens, Vocabulary
    from loadkit.schema.quantized_weights import Opened, Packed, Unit
    from loadkit.schema.readings import Reading
    from loadkit.schema.reports import Change, Loading, Measurements, Report
    from loadkit.schema.request import Asked, Request
    from loadkit.schema.values import (
        Architecture,
        Experimental,
        ModelClass,
        Placement,
        Preparation,
        Quantization,
        StoredFormat,
        Support,
        Supported,
        Unsupported,
    )

_HOMES = {
    "errors": "AuditError Finding LoadError LoadkitError PlanError PluginError Problem RankError Severity",
    "facts.checkpoint.checkpoint": "Checkpoint",
    "facts.context": "Context",
    "facts.library.weight_roles": "Weight",
    "facts.machine.machine": "Accelerator Machine",
    "facts.machine.topology": "Topology",
    "hooks.hookspecs": "hookimpl",
    "hooks.manager": "PluginInfo PluginManager PluginWarning",
    "loading.load": "Loaded LoadkitWarning load load_processing_class",
    "manifest.manifest": "Difference Manifest differences",
    "manifest.replay": "ReplayError ReplayWarning",
    "merging.merge": "merge",
    "merging.merged": "Merged",
    "planning.build_request": "read_recipe",
    "planning.pipeline": "plan",
    "request.options": "Option",
    "request.profiles": "Profile read_profile read_profiles",
    "request.recipes": "Recipe",
    "schema.adapters": "Adapter Adapters",
    "schema.claims": "Claim Decision Overruled PassedOver Strength",
    "schema.finishes": "Finish Finished",
    "schema.memory": "Memory RankMemory",
    "schema.plans": "Plan",
    "schema.processing": "Processing Tokens Vocabulary",
    "schema.quantized_weights": "Opened Packed Unit",
    "schema.readings": "Reading",
    "schema.reports": "Change Loading Measurements Report",
    "schema.request": "Asked Request",
    "schema.values": "Architecture Experimental ModelClass Placement Preparation Quantization StoredFormat Support "
    "Supported Unsupported",
}
"""Room to the public names that live in it."""

__all__ = [
    "Accelerator", "Adapter", "Adapters", "Architecture", "Asked", "AuditError", "Change", "Checkpoint",
    "Claim", "Context", "Decision", "Difference", "Experimental", "Finding", "Finish", "Finished", "LoadError", "Loaded",
    "Loading", "LoadkitError", "LoadkitWarning", "Machine", "Manifest", "Measurements", "Memory",
    "Merged", "ModelClass", "Opened", "Option", "Overruled", "Packed", "PassedOver", "Placement", "Plan", "PlanError",
    "PluginError", "PluginInfo", "PluginManager", "PluginWarning", "Preparation", "Problem", "Processing",
    "Profile", "Quantization", "RankError", "RankMemory", "Reading", "Recipe", "ReplayError", "ReplayWarning",
    "Report", "Request", "Severity", "StoredFormat", "Strength", "Support", "Supported", "Tokens", "Topology",
    "Unit", "Unsupported", "Vocabulary", "Weight", "differences", "hookimpl", "load", "load_processing_class",
    "merge", "plan", "read_profile", "read_profiles", "read_recipe",
]
_MOVED = [
    "AdapterFacts", "Beside", "ConfigFacts", "Entries", "Entry", "Family", "File", "FileProof",
    "InferenceMode", "Library", "LoadingAid", "ModelFacts", "ModuleFacts", "ProcessingFacts", "Record",
    "Shortcut", "Stored", "Template", "TensorHeader", "checksum", "checksums", "file_checksums", "size",
    "span",
]
"""Names that moved to `loadkit.plugins`; they work here until version 2."""

_RENAMED = {"collector_rests": "pause_gc", "nearest": "did_you_mean"}
"""Those that are called otherwise there."""
# fmt: on

_known_noise.leave_out_for_good()

_HOME_OF = {name: room for room, names in _HOMES.items() for name in names.split()}
_OTHERWISE = {"plan": "make_plan", "read_recipe": "read_recipe_file"}
"""A public name to what its room calls it."""


def __getattr__(name: str) -> object:
    if name == "plugins":
        return importlib.import_module("loadkit.plugins")
    if name in _MOVED or name in _RENAMED:
        now = _RENAMED.get(name, name)
        warnings.warn(
            f"loadkit.{name} is loadkit.plugins.{now} now; the old name works until version 2",
            DeprecationWarning,
            stacklevel=2,
        )
        moved: object = getattr(importlib.import_module("loadkit.plugins"), now)
        return moved
    if name not in _HOME_OF:
        raise AttributeError(f"module 'loadkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"loadkit.{_HOME_OF[name]}"), _OTHERWISE.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
