"""Linear layers that bitsandbytes would replace and that then can't run, or choose other experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loadkit import Context, ModelClass, Weight
from loadkit_plugins.bitsandbytes.packed_parameters import routers

__all__ = ["unsupported"]

WHOLE, HALF = 64, 32
"""What inputs, and for inference outputs, must be multiples of for bitsandbytes 0.50's 4-bit kernels on a CPU
with AVX-512: else the packed layout fails, and on some such CPUs the product is off by a fifth to a half
(measured)."""

ONLY_WHEN_ASKED: Mapping[str, str] = {
    "bloom": "slow_but_exact, which splits its products by hand as in tensor-parallel training"
}
"""Model types that compute with a layer's weight themselves only in a mode that isn't the default."""

FOUR_DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "prophetnet": ("self_attn.out_proj", "self_attn.relative_pos_embeddings")
}
"""Model types to layers with four-dimensional activations, as `kv_b_proj` of every latent attention has."""


def unsupported(context: Context, architecture: ModelClass, bits: int) -> dict[str, str]:
    """The ends of such layers' paths, each with the reason, for 4 or 8 bits."""
    facts = context.library.class_facts(architecture.model_class)
    kept = facts.keep_in_fp32_modules if facts else ()  # transformers leaves those alone itself
    choosing = (path for path in routers(context) if path.rpartition(".")[2] not in kept)
    found = dict.fromkeys(choosing, "it chooses experts, which a rounding could change")
    direct = (path for path in _used_directly(context) if path.rpartition(".")[2] not in kept)
    found |= dict.fromkeys(direct, "its weight is computed with directly, which a packed one can't")
    if context.machine.kind != "cuda" and bits == 8:
        reason = "its activations have four dimensions, which bitsandbytes' 8-bit product takes on CUDA only"
        found |= dict.fromkeys(_four_dimensional(context), reason)
    if context.machine.kind == "cpu" and bits == 4:
        reason = f"its inputs aren't a multiple of {WHOLE}, or its outputs of {HALF}: bitsandbytes' 4-bit kernel for CPUs fails"
        found |= dict.fromkeys(_odd(context, architecture), reason)
    return found


def _used_directly(context: Context) -> Iterator[str]:
    """By the source: `F.linear(x, self.classifier.weight)` in the class of "router": "router.classifier"."""
    for name, family in context.library.families.items():
        if name in ONLY_WHEN_ASKED:
            continue
        for class_name, facts in family.modules.items():
            direct = [member for member in facts.direct if "Linear" in facts.members.get(member, ())]
            homes = [
                attribute
                for other in family.modules.values()
                for attribute, classes in other.members.items()
                if class_name in classes
            ]
            yield from (f"{home}.{member}" for member in direct for home in dict.fromkeys(homes))


def _four_dimensional(context: Context) -> Iterator[str]:
    yield from FOUR_DIMENSIONS.get(context.checkpoint.model_type, ())
    if context.checkpoint.text_config.get("kv_lora_rank"):
        yield "kv_b_proj"


def _odd(context: Context, architecture: ModelClass) -> Iterator[str]:
    """Layers of odd widths, by the last two names in their paths, and numbers between these; by the last
    alone where files have it in another module than the classes do, and no even layer is called so."""
    training = bool(context.request.value("training", False))  # over layers that aren't packed for inference
    linear = [w for w in context.weights(architecture) if w.kind == "linear" and len(w.shape) == 2]
    even = {_ends(weight.module, 1) for weight in linear if not _is_odd(weight, training)}
    for weight in linear:
        if _is_odd(weight, training):
            last, two = _ends(weight.module, 1), _ends(weight.module, 2)
            homes = _homes(context, last)
            moved = bool(homes) and not homes & {"", two.split(".")[0]}
            yield last if moved and last not in even else two


def _homes(context: Context, member: str) -> set[str]:
    """The attributes under which modules that have such a member are found; "" among them where a model has
    it itself."""
    found: set[str] = set()
    for family in context.library.families.values():
        for owner in (name for name, facts in family.modules.items() if member in facts.members):
            within = {
                attribute
                for facts in family.modules.values()
                for attribute, classes in facts.members.items()
                if owner in classes
            }
            found |= within or {""}
    return found


def _ends(path: str, names: int) -> str:
    """The last names of a path, with numbers between them, or the last number and its parent."""
    parts = path.split(".")
    if parts[-1].isdigit():
        return ".".join(parts[-2:])
    named = [place for place, part in enumerate(parts) if not part.isdigit()]
    return ".".join(parts[named[-names:][0] :])


def _is_odd(weight: Weight, training: bool) -> bool:
    outputs, inputs = weight.shape
    return bool(inputs % WHOLE or (outputs % HALF and not training))
