"""Patches after loading: named in plan, report and manifest, and held to changing code alone."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import loadkit
from loadkit import AuditError, Finish, LoadError, Plan, PluginError, PluginManager, hookimpl

Tiny = Callable[..., Path]


class FastNorm(torch.nn.RMSNorm):
    """The same as transformers' norms, by torch's function."""


def swap_norms(model: Any, make: Callable[[Any], Any] | None = None) -> Any:
    """Put another module in the place of every norm, with the same parameter."""

    def made(module: Any) -> Any:
        norm = FastNorm(module.weight.shape, eps=module.variance_epsilon, device="meta")
        norm.weight = module.weight
        return norm

    for name, module in list(model.named_modules()):
        if type(module).__name__ == "MistralRMSNorm":
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, (make or made)(module))
    return model


class Patch:
    """A plugin that finishes every model like this."""

    def __init__(self, act: Callable[[Any], Any] = swap_norms, what: str = "faster norms") -> None:
        self.act, self.what = act, what

    @hookimpl
    def loadkit_announce_finish(self) -> Finish:
        return Finish(what=self.what, because="the test says so", tolerance=0.02)

    @hookimpl
    def loadkit_finish_model(self, plan: Plan, model: Any) -> Any:
        return self.act(model)


def manager_with(*patches: tuple[str, object]) -> PluginManager:
    manager = PluginManager(environ={})
    for name, patch in patches:
        manager.register(patch, name)
    return manager


def findings_after(act: Callable[[Any], Any], folder: Path, **options: Any) -> dict[str, loadkit.Finding]:
    with pytest.raises(AuditError) as caught:
        loadkit.load(folder, plugin_manager=manager_with(("patch", Patch(act))), **options)
    return {f.code: f for f in caught.value.findings if f.plugin == "patch"}


def test_it_is_named_in_plan_report_and_manifest_and_done_again(tiny: Tiny, tmp_path: Path) -> None:
    manager = manager_with(("fast-norm", Patch()))
    plan = loadkit.plan(tiny("mistral"), "lora", plugin_manager=manager)
    assert "faster norms (fast-norm)" in str(plan)
    assert "fast-norm: the test says so" in plan.explained()
    assert Plan.from_json(plan.to_json()) == plan
    plain = loadkit.plan(tiny("mistral"), "lora")
    assert plan.digest != plain.digest
    loaded = loadkit.load(plan, plugin_manager=manager)
    (done,) = loaded.report.finished
    norms = sum(isinstance(m, FastNorm) for m in loaded.model.modules())
    assert (done.plugin, done.modules) == ("fast-norm", {"MistralRMSNorm → FastNorm": norms})
    assert loaded.report.seconds["finishing by fast-norm"] > 0
    assert not any(m.training for m in loaded.model.modules()) or plan.preparation.training
    manifest = loaded.manifest()
    assert manifest.finished == loaded.report.finished
    assert "faster norms" in str(manifest)
    again = loadkit.load(replay=manifest, plugin_manager=manager)
    assert again.report.finished == loaded.report.finished
    with pytest.raises(loadkit.ReplayError, match=r"finish fast-norm: faster norms.* → nothing"):
        loadkit.load(replay=manifest)
    with pytest.raises(LoadError, match=r"'fast-norm' finishes the model .*takes no part here"):
        loadkit.load(plan)


def test_the_outputs_stay_within_the_tolerance_and_the_model_trains(tiny: Tiny) -> None:
    ids = torch.arange(6, 22).reshape(2, 8)
    manager = manager_with(("fast-norm", Patch()))
    finished = loadkit.load(tiny("mistral"), "lora", plugin_manager=manager)
    plain = loadkit.load(tiny("mistral"), "lora")
    with torch.no_grad():
        ours, theirs = (each.model.eval()(input_ids=ids).logits.float() for each in (finished, plain))
    assert 0 <= (ours - theirs).abs().max() <= 0.02 * theirs.abs().max()
    finished.model.train()
    finished.model(input_ids=ids, labels=ids).loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in finished.model.parameters())


def test_several_patches_go_by_name_and_each_is_told(tiny: Tiny) -> None:
    def bind(model: Any) -> Any:
        for module in model.modules():
            if type(module).__name__ == "MistralMLP":
                forward = type(module).forward
                module.forward = types.MethodType(lambda self, x, forward=forward: forward(self, x), module)
        return model

    manager = manager_with(("b", Patch(bind, "other MLPs")), ("a", Patch()))
    report = loadkit.load(tiny("mistral"), plugin_manager=manager).report
    assert [f.plugin for f in report.finished] == ["a", "b"]
    assert list(report.finished[1].modules) == ["MistralMLP.forward"]


# --- What a patch mustn't do


def scale(model: Any) -> Any:
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    return swap_norms(model)


def scale_unseen(model: Any) -> Any:
    """Behind torch's count of writes."""
    model.get_input_embeddings().weight.data.mul_(2)
    return swap_norms(model)


def copy_other(model: Any) -> Any:
    def made(module: Any) -> Any:
        norm = FastNorm(module.weight.shape, eps=module.variance_epsilon, dtype=module.weight.dtype)
        torch.nn.init.constant_(norm.weight, 3.0)
        return norm

    return swap_norms(model, made)


def cast(model: Any) -> Any:
    def made(module: Any) -> Any:
        norm = FastNorm(module.weight.shape, eps=module.variance_epsilon)
        norm.weight = torch.nn.Parameter(module.weight.detach().float())
        return norm

    return swap_norms(model, made)


def thaw(model: Any) -> Any:
    for p in model.parameters():
        p.requires_grad_(not p.requires_grad)
    return swap_norms(model)


def new_weight(model: Any) -> Any:
    model.register_parameter("extra", torch.nn.Parameter(torch.ones(1)))
    return model


def rotary(model: Any) -> Any:
    for name, buffer in model.named_buffers():
        if "inv_freq" in name:
            buffer.data.mul_(0.5)
    return swap_norms(model)


SLOWER = [pytest.param(act, marks=pytest.mark.slow) for act in (scale, copy_other, thaw, new_weight)]


@pytest.mark.parametrize("act", [scale_unseen, cast, rotary, *SLOWER])
def test_a_patch_that_changes_weights_is_caught(act: Callable[[Any], Any], tiny: Tiny) -> None:
    found = findings_after(act, tiny("mistral"))
    assert "patched-weights" in found
    assert "LOADKIT_DISABLE=patch" in found["patched-weights"].remedy


def test_packed_weights_are_looked_at_too(tiny: Tiny) -> None:
    def flip(model: Any) -> Any:
        for module in model.modules():
            if type(module).__name__ == "Linear4bit":
                module.weight.data.bitwise_xor_(255)
                break
        return swap_norms(model)

    found = findings_after(flip, tiny("mistral"), profile="inference-4bit")
    assert "patched-weights" in found


def test_a_value_that_no_sample_sees_is_seen_in_full(tiny: Tiny) -> None:
    def one(model: Any) -> Any:
        weight = model.get_input_embeddings().weight
        weight.data.view(-1)[1] += 1
        return swap_norms(model)

    assert "patched-weights" in findings_after(one, tiny("mistral"), verify="full")


def test_a_patch_that_drops_a_hook_is_caught(tiny: Tiny) -> None:
    """Input gradients hang on a hook of the embeddings."""

    def drop(model: Any) -> Any:
        model.get_input_embeddings()._forward_hooks.clear()
        return swap_norms(model)

    with pytest.raises(AuditError, match="patched-hooks, from patch"):
        loadkit.load(tiny("mistral"), "qlora", plugin_manager=manager_with(("patch", Patch(drop))))


def test_a_patch_that_loses_hooks_by_a_swap_is_caught(tiny: Tiny) -> None:
    class Hooking:
        @hookimpl(wrapper=True)
        def loadkit_load_model(self) -> Any:
            model = yield
            model.model.norm.register_forward_hook(lambda *_: None)
            return model

    manager = manager_with(("hooks", Hooking()), ("patch", Patch()))
    with pytest.raises(AuditError, match=r"hooks of modules are gone.*such as model\.norm"):
        loadkit.load(tiny("mistral"), plugin_manager=manager)


def test_a_patch_of_the_whole_process_is_caught_and_taken_back(tiny: Tiny) -> None:
    from transformers.models.mistral import modeling_mistral

    before = modeling_mistral.MistralRMSNorm.forward, modeling_mistral.apply_rotary_pos_emb

    def everywhere(model: Any) -> Any:
        modeling_mistral.MistralRMSNorm.forward = lambda self, x: x
        modeling_mistral.apply_rotary_pos_emb = lambda *given: given
        return swap_norms(model)

    found = findings_after(everywhere, tiny("mistral"))
    assert "MistralRMSNorm.forward" in found["patched-elsewhere"].effective
    assert "apply_rotary_pos_emb" in found["patched-elsewhere"].effective
    assert before == (modeling_mistral.MistralRMSNorm.forward, modeling_mistral.apply_rotary_pos_emb)


def test_a_patch_that_changes_the_config_is_caught(tiny: Tiny) -> None:
    def configure(model: Any) -> Any:
        model.config.rms_norm_eps = 1e-3
        return swap_norms(model)

    assert "patched-model" in findings_after(configure, tiny("mistral"))


def sequential(model: Any) -> Any:
    return torch.nn.Sequential(model)


def in_place(model: Any) -> Any:
    model.__class__ = type("Faster", (type(model),), {})
    return model


@pytest.mark.parametrize("act", [sequential, in_place])
def test_a_patch_that_gives_another_model_is_named(act: Callable[[Any], Any], tiny: Tiny) -> None:
    with pytest.raises(PluginError, match=r"^plugin 'patch'.*for a MistralForCausalLM"):
        loadkit.load(tiny("mistral"), plugin_manager=manager_with(("patch", Patch(act))))


@pytest.mark.parametrize("act", [lambda model: model, lambda model: None])
def test_a_patch_that_does_nothing_is_told(act: Callable[[Any], Any], tiny: Tiny) -> None:
    assert set(findings_after(act, tiny("mistral"))) == {"not-finished"}


def test_a_patch_that_raises_is_named(tiny: Tiny) -> None:
    def fail(model: Any) -> None:
        raise ZeroDivisionError("by nought")

    with pytest.raises(
        PluginError, match=r"'patch' in loadkit_finish_model: .*by nought.*LOADKIT_DISABLE=patch"
    ):
        loadkit.load(tiny("mistral"), plugin_manager=manager_with(("patch", Patch(fail))))


def test_both_hooks_or_none() -> None:
    class Silent:
        @hookimpl
        def loadkit_finish_model(self, model: Any) -> Any:
            return model

    class Idle:
        @hookimpl
        def loadkit_announce_finish(self) -> None:
            return None

    for plugin, words in ((Silent(), "not loadkit_announce_finish"), (Idle(), "not loadkit_finish_model")):
        with pytest.raises(PluginError, match=words):
            manager_with(("half", plugin))


# --- Wrappers of loading


def test_a_wrapper_gets_the_model_whoever_loads(tiny: Tiny) -> None:
    seen: list[Any] = []

    class Around:
        @hookimpl(wrapper=True)
        def loadkit_load_model(self, plan: Plan) -> Any:
            model = yield
            seen.append(model)
            return model

    class OldAround:
        @hookimpl(hookwrapper=True)
        def loadkit_load_model(self, plan: Plan) -> Any:
            outcome = yield
            seen.append(outcome.get_result())

    manager = manager_with(("around", Around()), ("old", OldAround()))
    loaded = loadkit.load(tiny("mistral"), plugin_manager=manager)
    assert seen == [loaded.model, loaded.model]
    assert loaded.report.loading.missing == ()


def test_what_a_wrapper_makes_of_the_model_is_held_against_the_files(tiny: Tiny) -> None:
    class Meddles:
        @hookimpl(wrapper=True)
        def loadkit_load_model(self) -> Any:
            model = yield
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(1)
            return model

    with pytest.raises(AuditError, match="other-values"):
        loadkit.load(tiny("mistral"), plugin_manager=manager_with(("meddles", Meddles())))


def test_what_fails_within_a_wrapper_isnt_the_wrappers_fault(tiny: Tiny) -> None:
    class Around:
        @hookimpl(wrapper=True)
        def loadkit_load_model(self) -> Any:
            return (yield)

    class Fails:
        @hookimpl
        def loadkit_load_model(self) -> None:
            raise ZeroDivisionError("by nought")

    class Swallows:
        @hookimpl(wrapper=True)
        def loadkit_load_model(self) -> Any:
            yield
            yield

    class Raises:
        @hookimpl(wrapper=True)
        def loadkit_load_model(self) -> Any:
            model = yield
            raise ZeroDivisionError(type(model).__name__)

    with pytest.raises(PluginError, match=r"^plugin 'fails'"):
        loadkit.load(tiny("mistral"), plugin_manager=manager_with(("a", Around()), ("fails", Fails())))
    with pytest.raises(PluginError, match=r"^plugin 'twice'.*yielded twice"):
        loadkit.load(tiny("mistral"), plugin_manager=manager_with(("twice", Swallows())))
    with pytest.raises(PluginError, match=r"^plugin 'raises'.*MistralForCausalLM"):
        loadkit.load(tiny("mistral"), plugin_manager=manager_with(("a", Around()), ("raises", Raises())))
