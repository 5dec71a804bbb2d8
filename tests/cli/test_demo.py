"""The demo's checkpoint is made once and whole, and a few steps of training lower the loss."""

from pathlib import Path
from typing import Any

import pytest

from loadkit.cli import demo_run as demo
from loadkit.cli.demo_run import DEMO_ARCHITECTURES, demo_checkpoint, train_a_few_steps
from loadkit.errors import LoadkitError

# peft 0.21 asks a model for the name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def load(folder: Path, arch: str, mode: str) -> tuple[Any, Any]:
    import torch
    import transformers

    recipe = DEMO_ARCHITECTURES[arch]
    bits = {
        "4bit": transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        "8bit": transformers.BitsAndBytesConfig(load_in_8bit=True),
    }
    model = getattr(transformers, recipe.auto_class).from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=bits.get(mode), device_map={"": "cpu"}
    )
    if mode != "full":
        import peft

        lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    auto = transformers.AutoProcessor if recipe.processor_class else transformers.AutoTokenizer
    return model, auto.from_pretrained(folder)


def test_the_names_are_sorted() -> None:
    assert list(DEMO_ARCHITECTURES) == sorted(DEMO_ARCHITECTURES)


@pytest.mark.parametrize("arch", DEMO_ARCHITECTURES)
def test_the_checkpoint_is_made_once(cache_dir: Path, tmp_path: Path, arch: str) -> None:
    said: list[str] = []
    folder = demo_checkpoint(arch, cache_dir=tmp_path / "new", progress=said.append)
    assert len(said) == 1
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert demo_checkpoint(arch, cache_dir=tmp_path / "new", progress=said.append) == folder
    assert len(said) == 1
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert list((tmp_path / "new").iterdir()) == [folder]
    assert folder.stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError, RuntimeError])
def test_an_interrupted_run_leaves_nothing_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    def write_half(folder: Path, recipe: object) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(demo, "write_recipe", write_half)
        with pytest.raises(interruption):
            demo_checkpoint(cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (demo_checkpoint(cache_dir=tmp_path) / "model.safetensors").is_file()


def test_what_a_killed_run_left_is_not_used(tmp_path: Path) -> None:
    left = tmp_path / ".unfinished-killed"
    left.mkdir()
    (left / "config.json").write_text("{")
    folder = demo_checkpoint(cache_dir=tmp_path)
    assert folder != left
    assert (folder / "model.safetensors").is_file()


def test_two_runs_at_once_agree_on_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, first = demo.write_recipe, []

    def overtaken(folder: Path, recipe: Any) -> Path:
        write(folder, recipe)
        if not first:
            first.append(folder)
            demo_checkpoint(cache_dir=tmp_path)
        return folder

    monkeypatch.setattr(demo, "write_recipe", overtaken)
    folder = demo_checkpoint(cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_changed_recipe_makes_another_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = demo_checkpoint(cache_dir=tmp_path)
    monkeypatch.setattr(demo, "CONVERSATIONS", demo.CONVERSATIONS[1:])
    assert demo_checkpoint(cache_dir=tmp_path) != before


def test_an_unknown_demo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadkitError, match="arch='bert': choose one of gemma3, mistral"):
        demo_checkpoint("bert", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("arch", "mode"),
    [
        ("gemma3", "4bit"),
        ("mistral", "4bit"),
        *(
            pytest.param(arch, mode, marks=pytest.mark.slow)
            for arch in DEMO_ARCHITECTURES
            for mode in ("full", "16bit-lora", "8bit")
        ),
    ],
)
def test_the_loss_falls(cache_dir: Path, arch: str, mode: str) -> None:
    model, processing_class = load(demo_checkpoint(arch, cache_dir=cache_dir), arch, mode)
    steps: list[tuple[int, float]] = []
    losses = train_a_few_steps(model, processing_class, on_step=lambda step, loss: steps.append((step, loss)))
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 1
    assert steps == list(enumerate(losses, start=1))


def test_padding_and_images_are_not_learned(cache_dir: Path) -> None:
    _, processor = load(demo_checkpoint("gemma3", cache_dir=cache_dir), "gemma3", "full")
    batch = demo._batch(processor)
    ignored = batch["labels"] == demo.IGNORED
    assert (ignored == ((batch["attention_mask"] == 0) | (batch["input_ids"] == 8))).all()
    assert batch["input_ids"][ignored].unique().tolist() == [0, 8]


def test_the_picture_reaches_the_model(cache_dir: Path) -> None:
    model, processor = load(demo_checkpoint("gemma3", cache_dir=cache_dir), "gemma3", "full")
    batch = demo._batch(processor)
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    model(**batch).loss.backward()
    tower = [p for name, p in model.named_parameters() if "vision_tower" in name]
    assert tower
    assert all(p.grad is not None for p in tower)
