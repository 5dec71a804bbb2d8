"""What plugins need beyond the names of `loadkit`: facts in detail, cache entries, loading aids, words.

from loadkit import Claim, Context, hookimpl
from loadkit.plugins import LoadingAid, did_you_mean
"""

from __future__ import annotations

# fmt: off
from loadkit.audit.model_access import (
    base_of,
    configs,
    input_embeddings,
    is_packed,
    output_embeddings,
    tokenizer_of,
    towers,
)
from loadkit.cache.checksums import checksum, checksums, file_checksums, running_checksum
from loadkit.cache.entries import Entries
from loadkit.cache.records import Entry, Record
from loadkit.errors import SourceError
from loadkit.facts.checkpoint.checkpoint import AdapterFacts, File, ProcessingFacts, TensorHeader
from loadkit.facts.checkpoint.companions import Beside, Template
from loadkit.facts.library.annotations import fits
from loadkit.facts.library.library import ConfigFacts, Family, Keywords, Library, ModelFacts, ModuleFacts
from loadkit.facts.library.towers import Towers, is_projector, tower_keys
from loadkit.facts.local_copies import folder_of
from loadkit.facts.machine.named_machines import NamedAccelerator
from loadkit.loading.inference_mode import InferenceMode
from loadkit.loading.speed.gc_pause import pause_gc
from loadkit.manifest.manifest import FileProof
from loadkit.request.options import plain
from loadkit.request.recipes.key_tables import Contradiction, Default, Dialect, Key, read_dialect
from loadkit.schema.dtypes import FLOATS, ITEM_SIZES, SHORT_DTYPES, canonical_dtype
from loadkit.schema.loading_aids import LoadingAid, Shortcut, Stored
from loadkit.schema.memory import Optimizer
from loadkit.schema.reports import Section
from loadkit.schema.sources import Source, SourceFile
from loadkit.schema.values import HEADED_TASKS
from loadkit.text.suggest import did_you_mean, nearest_name, some_of
from loadkit.text.templates import template_fault
from loadkit.text.units import size, span

__all__ = [
    "AdapterFacts", "Beside", "ConfigFacts", "Contradiction", "Default", "Dialect", "Entries", "Entry", "FLOATS", "Family", "File", "FileProof", "HEADED_TASKS", "ITEM_SIZES", "InferenceMode", "Key", "Keywords", "Library", "LoadingAid", "ModelFacts", "ModuleFacts", "NamedAccelerator", "Optimizer", "ProcessingFacts", "Record", "SHORT_DTYPES", "Section", "Shortcut", "Source", "SourceError", "SourceFile", "Stored", "Template", "TensorHeader", "Towers", "base_of", "canonical_dtype", "checksum", "checksums", "configs", "did_you_mean", "file_checksums", "fits", "folder_of", "input_embeddings", "is_packed", "is_projector", "nearest_name", "output_embeddings", "pause_gc", "plain", "read_dialect", "running_checksum", "size", "some_of", "span", "template_fault", "tokenizer_of", "tower_keys", "towers",
]
