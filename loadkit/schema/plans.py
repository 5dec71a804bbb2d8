"""The plan: every decision as pure data. It prints, compares, hashes and round-trips through JSON."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import msgspec

from loadkit.errors import LoadkitError, Problem
from loadkit.schema.adapters import Adapter, Adapters
from loadkit.schema.claims import Decision
from loadkit.schema.finishes import Finish
from loadkit.schema.ledger import Requested
from loadkit.schema.loading_aids import Shortcut
from loadkit.schema.memory import Memory
from loadkit.schema.processing import Processing, Tokens
from loadkit.schema.request import Request
from loadkit.schema.stages import STAGES, stage_named
from loadkit.schema.values import ModelClass, Placement, Preparation, Quantization
from loadkit.text.suggest import did_you_mean

__all__ = ["CheckpointSummary", "Plan"]

KWARGS = "kwargs."


class CheckpointSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan keeps of the checkpoint: enough to load it again and to tell whether it is the same.

    Parameters:
        location: the folder's path, the repository's id, or the address of what a plugin brings.
        kind: "folder", "hub" or "store".
        revision: the revision asked for; "" for none.
        commit: the commit that serves everything; "" for a folder.
        weight_bytes: bytes of its tensors, by the headers.
        weight_format: "safetensors", "pickle" or "gguf".
    """

    source: str
    location: str
    kind: str
    revision: str = ""
    commit: str = ""
    model_type: str = ""
    weight_bytes: int = 0
    weight_format: str = "safetensors"
    tensors: int = 0
    weight_files: tuple[str, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What will be loaded, and who decided it.

    Parameters:
        request: what was asked.
        checkpoint: what it resolved to.
        decisions: one a stage, in the stages' order, then one a further keyword argument, sorted.
        warnings: problems that don't stop the plan.
        machine: the machine planned for, in a line.
        topology: the processes planned for, in a line that is equal on all ranks; "" for a single process.
        elsewhere: what the plan is for, where that isn't here: it can't be loaded here then; "" for here.
        plugins: the plugins that took part, name to version.
        memory: what it takes; None where that can't be told before loading.
        finishes: what plugins will do to the finished model, in the order of their names.
        shortcuts: what will make the load faster, as things were while planning; no part of the digest.
        requested: everything that was asked, and what became of it; no part of the digest, which has both.
    """

    request: Request
    checkpoint: CheckpointSummary
    decisions: tuple[Decision, ...]
    warnings: tuple[Problem, ...] = ()
    machine: str = ""
    topology: str = ""
    elsewhere: str = ""
    plugins: dict[str, str] = {}
    memory: Memory | None = None
    finishes: tuple[Finish, ...] = ()
    shortcuts: tuple[Shortcut, ...] = ()
    requested: tuple[Requested, ...] = ()

    @property
    def kwargs(self) -> dict[str, Any]:
        """What `from_pretrained` will get, as plain data, derived from the decisions."""
        found: dict[str, Any] = {}
        if self.checkpoint.kind == "hub":
            found["revision"] = self.checkpoint.commit
        if self.checkpoint.weight_format == "safetensors":
            found["use_safetensors"] = True  # a pickle can run code while loading
        if self.checkpoint.weight_format == "gguf":
            found["gguf_file"] = self.checkpoint.weight_files[0]
        for decision in self.decisions:
            stage = stage_named(decision.stage)
            if stage is not None:
                found |= stage.kwargs(decision.value)
            else:
                found[decision.stage.removeprefix(KWARGS)] = decision.value
        return found

    @property
    def digest(self) -> str:
        """SHA-256 of the plan's JSON without shortcuts and what is told of the environment, in hexadecimal:
        equal plans, equal digests."""
        lasting = msgspec.to_builtins(msgspec.structs.replace(self, shortcuts=()))
        del lasting["requested"]
        if not lasting["finishes"]:
            del lasting["finishes"]  # the digests from before there were any
        lasting["warnings"] = [each for each in lasting["warnings"] if each["stage"] != "environment"]
        return hashlib.sha256(msgspec.json.encode(lasting, order="sorted")).hexdigest()

    def why(self, stage: str) -> Decision:
        """The decision of a stage, or of a further keyword argument by its bare name.

        Raises:
            LoadkitError: there is no such decision in this plan.
        """
        found = self._find(stage) or self._find(KWARGS + stage) or self._find(_OPTION_STAGES.get(stage, ""))
        if found is None:
            names = [d.stage for d in self.decisions]
            raise LoadkitError(
                f"the plan has no decision {stage!r}{did_you_mean(stage, names)}; it has {', '.join(names)}"
            )
        return found

    def to_json(self) -> str:
        """The plan as JSON text; `Plan.from_json` reads it back."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read a plan that `to_json` wrote.

        Raises:
            LoadkitError: the text isn't one.
        """
        try:
            raw = msgspec.json.decode(text, type=cls)
            return msgspec.structs.replace(raw, decisions=tuple(_typed(d) for d in raw.decisions))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise LoadkitError(f"this isn't a plan that loadkit wrote: {error}") from error

    # Typed access to what the stages decided, for plugins that load.

    @property
    def model_class(self) -> ModelClass:
        """The class that loads the checkpoint."""
        return cast("ModelClass", self.why("architecture").value)

    @property
    def dtype(self) -> str:
        """The dtype of the weights, by its name in torch."""
        return cast("str", self.why("dtype").value)

    @property
    def attn_implementation(self) -> str | dict[str, str]:
        """The attention implementation, one name or one a sub-config."""
        return cast("str | dict[str, str]", self.why("attention").value)

    @property
    def quantization(self) -> Quantization | None:
        """How the weights are quantized; None where they aren't."""
        return cast("Quantization | None", self._value("quantization"))

    @property
    def quantized(self) -> Quantization | None:
        """How the weights are quantized in memory; None where they aren't, or are turned back while
        loading."""
        found = self.quantization
        return found if found is not None and found.packed else None

    @property
    def placement(self) -> Placement:
        """Where the weights go."""
        return cast("Placement", self.why("device_map").value)

    @property
    def preparation(self) -> Preparation:
        """What is done between loading and attaching an adapter."""
        return cast("Preparation", self.why("preparation").value)

    @property
    def use_cache(self) -> bool | None:
        """Whether the model keeps a key-value cache; None leaves the checkpoint's own."""
        return cast("bool | None", self._value("use_cache"))

    @property
    def processing(self) -> Processing:
        """The tokenizer or processor."""
        return cast("Processing", self.why("processing").value)

    @property
    def tokens(self) -> Tokens:
        """The special tokens, and those to add."""
        return cast("Tokens | None", self._value("tokens")) or Tokens()

    @property
    def adapters(self) -> Adapters | None:
        """Every adapter and what becomes of them; None for a bare model."""
        return cast("Adapters | None", self._value("adapter"))

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that is on; None for a bare model."""
        adapters = self.adapters
        return None if adapters is None else next(a for a in adapters.members if a.name == adapters.active)

    def _find(self, stage: str) -> Decision | None:
        return next((d for d in self.decisions if d.stage == stage), None)

    def _value(self, stage: str) -> Any:
        found = self._find(stage)
        return None if found is None else found.value

    def explained(self) -> str:
        """The plan as text, with who decided each stage, why, and instead of what."""
        from loadkit.schema.plan_text import plan_text

        return plan_text(self, why=True)

    def __str__(self) -> str:
        from loadkit.schema.plan_text import plan_text

        return plan_text(self)

    def __repr__(self) -> str:
        from loadkit.schema.plan_text import repr_text

        return repr_text(self)

    def _repr_html_(self) -> str:
        from loadkit.schema.plan_text import plan_html

        return plan_html(self)

    def __hash__(self) -> int:
        return int(self.digest[:15], 16)


_OPTION_STAGES = {stage.option: stage.name for stage in STAGES}


def _typed(decision: Decision) -> Decision:
    """Give a decision's value, plain after decoding, its stage's type again."""
    stage = stage_named(decision.stage)
    if stage is None:
        return decision
    return msgspec.structs.replace(
        decision,
        value=msgspec.convert(decision.value, stage.type),
        instead_of=tuple(
            msgspec.structs.replace(o, value=msgspec.convert(o.value, stage.type))
            for o in decision.instead_of
        ),
    )
