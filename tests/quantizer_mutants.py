"""A quantizer of the tests' own, whole, and with one fault each: int8 rows with a scale for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadkit import Claim, Context, Opened, Option, Packed, Plan, Quantization, Weight, hookimpl

__all__ = ["Blind", "Careless", "Deaf", "Whole"]

KEPT = ("lm_head",)


class Whole:
    """Without a fault: every check passes."""

    @hookimpl
    def loadkit_options(self) -> Sequence[Option]:
        return [
            Option(name="mutant_rows", type="bool", stage="quantization", help="int8 rows of a test's own")
        ]

    @hookimpl
    def loadkit_choose_quantization(self, context: Context) -> Claim[Quantization | None] | None:
        asked = context.request.asked("mutant_rows")
        if asked is None or not asked.value or context.checkpoint.quantization_config:
            return None
        value = Quantization(
            method="mutant",
            bits=8,
            skip_modules=(*KEPT, "o_proj"),
            unsavable="its codes have no format on disk",
        )
        return Claim(value=value, because=asked.because, strength=asked.strength)

    @hookimpl
    def loadkit_estimate_weights(
        self, context: Context, plan: Plan, weights: Sequence[Weight]
    ) -> Mapping[str, Packed] | None:
        if plan.quantization is None or plan.quantization.method != "mutant":
            return None
        return {
            w.name: Packed(data=w.shape[0] * w.shape[1], constants=w.shape[0] * 4, dtype="int8")
            for w in weights
            if w.kind == "linear" and not w.module.endswith(plan.quantization.skip_modules)
        }

    @hookimpl
    def loadkit_load_model(self, plan: Plan) -> Any:
        if plan.quantization is None or plan.quantization.method != "mutant":
            return None
        import torch
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(
            plan.checkpoint.location,
            dtype=getattr(torch, plan.dtype),
            attn_implementation=plan.attn_implementation,
        )
        if plan.use_cache is not None:
            model.config.use_cache = plan.use_cache
        skipped = self.skipped(plan)
        for name, module in list(model.named_modules()):
            if type(module) is torch.nn.Linear and not name.endswith(skipped):
                model.set_submodule(name, _rows(module))
        return model

    def skipped(self, plan: Plan) -> tuple[str, ...]:
        assert plan.quantization is not None
        return plan.quantization.skip_modules

    @hookimpl
    def loadkit_open_parameter(self, plan: Plan, parameter: Any) -> Opened | None:
        scale = getattr(parameter, "row_scale", None)
        return None if scale is None else Opened(data=parameter, constants=(scale,), count=parameter.numel())

    @hookimpl
    def loadkit_compare_tensor(self, plan: Plan, module: Any, parameter: Any, stored: Any) -> str | None:
        if not hasattr(parameter, "row_scale"):
            return None
        return "" if self.same(module, parameter, stored) else "other values"

    def same(self, module: Any, parameter: Any, stored: Any) -> bool:
        held = parameter[: stored.shape[0]] * module.row_scale[: stored.shape[0]]
        return bool(((held - stored.float()).abs() <= module.row_scale[: stored.shape[0]]).all())


class Careless(Whole):
    """It quantizes what was to stay, and opens nothing, so that the core's own audit can't tell."""

    def skipped(self, plan: Plan) -> tuple[str, ...]:
        return KEPT

    @hookimpl
    def loadkit_estimate_weights(
        self, context: Context, plan: Plan, weights: Sequence[Weight]
    ) -> Mapping[str, Packed] | None:
        if plan.quantization is None or plan.quantization.method != "mutant":
            return None
        return {
            w.name: Packed(data=w.shape[0] * w.shape[1], constants=w.shape[0] * 4, dtype="int8")
            for w in weights
            if w.kind == "linear" and not w.module.endswith(KEPT)
        }

    @hookimpl
    def loadkit_open_parameter(self, plan: Plan, parameter: Any) -> Opened | None:
        return None


class Deaf(Whole):
    """Its estimate has twice the codes that there are."""

    @hookimpl
    def loadkit_estimate_weights(
        self, context: Context, plan: Plan, weights: Sequence[Weight]
    ) -> Mapping[str, Packed] | None:
        if plan.quantization is None or plan.quantization.method != "mutant":
            return None
        found = {
            w.name: w for w in weights if w.kind == "linear" and not w.module.endswith((*KEPT, "o_proj"))
        }
        return {
            name: Packed(data=w.shape[0] * w.shape[1], constants=w.shape[0] * w.shape[1], dtype="int8")
            for name, w in found.items()
        }


class Blind(Whole):
    """Its comparison never finds anything."""

    def same(self, module: Any, parameter: Any, stored: Any) -> bool:
        return True


def _rows(linear: Any) -> Any:
    """A layer that computes with int8 codes and a scale for each row."""
    import torch

    class RowLinear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            full = linear.weight.detach().float()
            scale = full.abs().amax(1, keepdim=True) / 127
            codes = (full / scale).round().to(torch.int8)
            self.weight = torch.nn.Parameter(codes, requires_grad=False)
            self.register_buffer("row_scale", scale, persistent=False)
            self.weight.row_scale = self.row_scale
            self.out_features, self.in_features = codes.shape

        def forward(self, x: Any) -> Any:
            return torch.nn.functional.linear(x, (self.weight * self.row_scale).to(x.dtype))

    return RowLinear()
