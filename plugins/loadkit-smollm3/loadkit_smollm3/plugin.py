"""What loadkit sees of SmolLM3: facts of the family, whose classes serve, a dtype, and what can't be had.

No torch here: the classes are named as "module:Class" and imported when a plan that names them is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from loadkit import (
    Architecture,
    Claim,
    Context,
    ModelClass,
    Option,
    Plan,
    Problem,
    Supported,
    Unsupported,
    hookimpl,
)

_problem = partial(Problem, "architecture", "smollm3")

NATIVE = "smollm3"
OWN = "smollm3_loadkit"
"""A model type that only this plugin knows."""

OPTION = "smollm3_implementation"
TASK = "causal-lm"
TASKS = (None, "text", TASK)
"""Values of the option `task` that a language model answers to."""

STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""The rotary embeddings that the classes have: those whose frequencies don't depend on the text's length."""

BF16_CAPABILITY = (8, 0)

CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")


def _family(model_type: str, names: str) -> Architecture:
    return Architecture(
        model_type=model_type,
        config=f"loadkit_smollm3.configuration:{names}Config",
        models={TASK: f"loadkit_smollm3.modeling:{names}ForCausalLM"},
        attention={
            "eager": Supported(),
            "sdpa": Supported(),
            "flash_attention_2": Supported(),
            "flash_attention_3": Unsupported("loadkit-smollm3's classes weren't tried with it"),
            "flash_attention_4": Unsupported("loadkit-smollm3's classes weren't tried with it"),
            "flex_attention": Unsupported(
                "loadkit-smollm3's classes make masks as tensors, not as block masks"
            ),
        },
        lora_target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        chat_template=CHAT_TEMPLATE,
    )


FAMILIES = {NATIVE: _family(NATIVE, "SmolLM3"), OWN: _family(OWN, "SmolLM3Loadkit")}


@hookimpl
def loadkit_options() -> Sequence[Option]:
    return [
        Option(
            name=OPTION,
            type="str",
            stage="architecture",
            choices=("auto", "transformers", "plugin"),
            help="whose SmolLM3 classes serve: transformers' where it has them (auto), or loadkit-smollm3's",
        )
    ]


@hookimpl
def loadkit_architectures() -> Sequence[Architecture]:
    return list(FAMILIES.values())


@hookimpl
def loadkit_choose_architecture(context: Context) -> Claim[ModelClass] | None:
    """Whose classes serve; None for other families, and for tasks and classes that these aren't for."""
    if not _concerns(context):
        return None
    native, asked = _native(context), context.request.asked(OPTION)
    wanted = asked.value if asked is not None else "auto"
    if wanted == "plugin" and asked is not None:
        return Claim(value=_own(context), because=asked.because, strength=asked.strength)
    if native is None:
        because = f"transformers {context.library.version} has no {context.checkpoint.model_type!r}"
        return Claim(value=_own(context), because=f"{because}; loadkit-smollm3 brings classes for it")
    if wanted == "transformers" and asked is not None:
        return Claim(value=native, because=asked.because, strength=asked.strength)
    return Claim(
        value=native,
        because=f"transformers {context.library.version} has {native.model_class}, and its own serves unless {OPTION}='plugin'",
    )


@hookimpl
def loadkit_choose_dtype(context: Context) -> Claim[str] | None:
    """bfloat16 where nothing says a dtype: no request, no config, no header of a weight file."""
    checkpoint, machine = context.checkpoint, context.machine
    says = (
        context.request.asked("dtype") is not None
        or checkpoint.config_dtype
        or checkpoint.stored_dtype
        or checkpoint.quantization_config
    )
    too_old = machine.kind == "cuda" and machine.capability < BF16_CAPABILITY
    if checkpoint.model_type not in FAMILIES or says or too_old:
        return None
    return Claim(
        value="bfloat16",
        because="neither config.json nor the files' headers say a dtype, and SmolLM3 was trained and published in bfloat16",
    )


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    return [*_unmet(context, plan), *_not_here(context, plan)]


def _unmet(context: Context, plan: Plan) -> list[Problem]:
    """The option asks for what doesn't serve."""
    asked, served = context.request.asked(OPTION), plan.model_class
    if asked is None or asked.value in ("auto", served.implementation):
        return []
    checkpoint, library = context.checkpoint, context.library
    if checkpoint.model_type not in FAMILIES:
        reason = f"this checkpoint is of model type {checkpoint.model_type!r}"
        remedy = f"leave {OPTION} out: it is for model types {' and '.join(FAMILIES)}"
    elif asked.value == "transformers":
        reason = f"transformers {library.version} has no class for model type {checkpoint.model_type!r}"
        remedy = f"leave {OPTION} out to have loadkit-smollm3's classes"
    else:
        reason = f"loadkit-smollm3 has a class for {TASK} only, and {served.model_class} for {served.task} was decided"
        remedy = f"leave {OPTION} out, or ask for task={TASK!r}"
    return [
        _problem(
            "smollm3-implementation",
            f"{asked.by} asked for {OPTION}={asked.value!r}, and {reason}",
            remedy,
            severity="error" if asked.demanded else "warning",
        )
    ]


def _not_here(context: Context, plan: Plan) -> list[Problem]:
    """What the checkpoint's config asks of these classes and they don't have."""
    if plan.model_class.model_class not in {f.models[TASK] for f in FAMILIES.values()}:
        return []
    config = context.checkpoint.config
    wrong = []
    layers = config.get("layer_types") or ()
    if (config.get("use_sliding_window") and config.get("sliding_window")) or "sliding_attention" in layers:
        wrong.append("a sliding window")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else "default"
    if kind not in STATIC_ROPE:
        wrong.append(f"the rotary embedding {kind!r} (there are {', '.join(STATIC_ROPE)})")
    if not wrong:
        return []
    remedy = (
        f"{OPTION}='transformers' loads it with transformers' classes"
        if _native(context) is not None
        else "install a transformers that has SmolLM3"
    )
    return [
        _problem(
            "smollm3-not-supported",
            f"loadkit-smollm3's classes were to serve, and the checkpoint's config asks for {' and '.join(wrong)}, which they don't have",
            remedy,
        )
    ]


def _concerns(context: Context) -> bool:
    """Whether the checkpoint is of the family, and the language model with its head is what is wanted."""
    asked = context.request.asked("task")
    if context.checkpoint.model_type not in FAMILIES or (asked.value if asked else None) not in TASKS:
        return False
    named = context.checkpoint.architectures
    return asked is not None or not named or any(name.endswith("ForCausalLM") for name in named)


def _own(context: Context) -> ModelClass:
    family = FAMILIES[context.checkpoint.model_type]
    return ModelClass(
        task=TASK,
        auto_class="",
        model_class=family.models[TASK],
        implementation="plugin",
        config_class=family.config,
    )


def _native(context: Context) -> ModelClass | None:
    """transformers' own class, where the installed version has it."""
    auto, checkpoint = "AutoModelForCausalLM", context.checkpoint
    name = context.library.model_class(auto, checkpoint.model_type, checkpoint.architectures)
    return ModelClass(task=TASK, auto_class=auto, model_class=name) if name else None
