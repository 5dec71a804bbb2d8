"""The maker of tiny checkpoints: what it writes loads, runs and is the same every time."""

import hashlib
import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from loadkit.errors import LoadkitError
from loadkit.testing.checkpoints import (
    ARCHITECTURES,
    derived,
    make_adapter,
    make_checkpoint,
    make_pickle_only,
    make_prequantized,
)
from loadkit.testing.checkpoints.corpus import sentences
from loadkit.testing.checkpoints.tokenizers import RESERVED_TOKENS, SPECIAL_TOKENS, VOCAB_SIZE, make_tokenizer

# peft 0.21 asks a model for the name that transformers 5.23 has deprecated.
PEFT_ON_TRANSFORMERS = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
VISION_LANGUAGE = [name for name, recipe in ARCHITECTURES.items() if recipe.processor_class]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: make_checkpoint(folder / name, name) for name in ARCHITECTURES}


def load(folder: Path, name: str, **kwargs: Any) -> Any:
    """Load with the recipe's auto class; every tensor of the model must come out of the files."""
    import transformers

    model, info = getattr(transformers, ARCHITECTURES[name].auto_class).from_pretrained(
        folder, dtype="auto", output_loading_info=True, trust_remote_code=name == "remote-code", **kwargs
    )
    assert not any(info.values()), info
    return model


def batch_for(folder: Path, name: str, dtype: Any) -> Any:
    import torch
    from PIL import Image
    from transformers import AutoProcessor, AutoTokenizer

    if name in VISION_LANGUAGE:
        content = [
            {"type": "image", "image": Image.new("RGB", (50, 40), (9, 200, 3))},
            {"type": "text", "text": "Which?"},
        ]
        batch = AutoProcessor.from_pretrained(folder).apply_chat_template(
            [[{"role": "user", "content": content}]] * 2,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        batch["pixel_values"] = batch["pixel_values"].to(dtype)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=name == "remote-code")
        batch = tokenizer(["Where do rivers end?", "In the sea."], padding=True, return_tensors="pt")
    batch["labels"] = (
        torch.tensor([0, 2]) if "Sequence" in ARCHITECTURES[name].auto_class else batch["input_ids"]
    )
    return batch


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_names_are_sorted() -> None:
    assert list(ARCHITECTURES) == sorted(ARCHITECTURES)


def test_importing_it_imports_no_torch() -> None:
    code = (
        "import sys, loadkit.testing.checkpoints, loadkit.cli.demo_run\n"
        "print([name for name in ('torch', 'transformers', 'tokenizers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_checkpoint_loads_and_runs_forward_and_backward(checkpoints: dict[str, Path], name: str) -> None:
    import torch

    model = load(checkpoints[name], name)
    assert model.dtype is torch.bfloat16
    assert all(m.in_features % 64 == 0 for m in model.modules() if isinstance(m, torch.nn.Linear))
    output = model(**batch_for(checkpoints[name], name, model.dtype))
    assert output.logits.isfinite().all()
    output.loss.backward()
    embeddings = model.get_input_embeddings().weight
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_weight_is_constant(checkpoints: dict[str, Path], name: str) -> None:
    model = load(checkpoints[name], name)
    assert [key for key, p in model.named_parameters() if (p == p.flatten()[0]).all()] == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_checkpoint_is_complete_and_small(checkpoints: dict[str, Path], name: str) -> None:
    files = {path.name: path.stat().st_size for path in checkpoints[name].iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= set(files)
    assert sum(files.values()) < 3e6
    assert ("generation_config.json" in files) == ("Sequence" not in ARCHITECTURES[name].auto_class)
    assert ("processor_config.json" in files) == (name in VISION_LANGUAGE)
    config = json.loads((checkpoints[name] / "config.json").read_text())
    assert config["architectures"] == [ARCHITECTURES[name].model_class.rpartition(":")[2]]
    assert config["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_auto_tokenizer_keeps_the_trained_ids(checkpoints: dict[str, Path], name: str) -> None:
    from transformers import AutoTokenizer

    trained = make_tokenizer(ARCHITECTURES[name].special_tokens)
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[name], trust_remote_code=name == "remote-code")
    assert len(tokenizer) == VOCAB_SIZE
    for text in [*sentences(), "Crème brûlée,  42 \n 木\t!", "a cre\u0300me"]:
        ids = tokenizer(text)["input_ids"]
        assert ids == trained(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == unicodedata.normalize("NFC", text)


def test_special_tokens_have_the_ids_that_the_configs_name() -> None:
    for recipe in ARCHITECTURES.values():
        tokenizer = make_tokenizer(recipe.special_tokens)
        expected = [*SPECIAL_TOKENS.values(), *RESERVED_TOKENS, *recipe.special_tokens.values()]
        assert tokenizer.convert_ids_to_tokens(list(range(len(expected)))) == expected
        for role, token in recipe.special_tokens.items():
            key = {
                "boi_token": "boi_token_index",
                "eoi_token": "eoi_token_index",
                "image_token": "image_token_index",
            }[role]
            assert recipe.config[key] == tokenizer.convert_tokens_to_ids(token)


def test_the_chat_template_ends_an_answer_and_marks_it() -> None:
    tokenizer = make_tokenizer()
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<s>user: Why?\nassistant: So.</s>\n"
    asked = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "<s>user: Why?\nassistant: "
    encoded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked).strip() == "So.</s>"


def test_equal_seeds_give_equal_files_in_another_process(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "from loadkit.testing.checkpoints import make_checkpoint\n"
        "for name in sys.argv[2:]: make_checkpoint(f'{sys.argv[1]}/{name}', name)"
    )
    names = ["gemma3", "mistral", "remote-code"]
    subprocess.run([sys.executable, "-c", code, str(tmp_path), *names], check=True, capture_output=True)
    for name in names:
        assert hashes(tmp_path / name) == hashes(checkpoints[name])


def test_another_seed_changes_the_weights_only(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    one, other = hashes(checkpoints["mistral"]), hashes(make_checkpoint(tmp_path / "other", seed=1))
    assert {name for name in one if one[name] != other[name]} == {"model.safetensors"}


@PEFT_ON_TRANSFORMERS
def test_the_random_state_stays_as_it_was(tmp_path: Path) -> None:
    import torch

    before = torch.get_rng_state()
    base = make_checkpoint(tmp_path / "base")
    make_adapter(tmp_path / "adapter", base)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("shards", [2, 4])
def test_shards_are_several_files_with_an_index(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, shards: int
) -> None:
    import torch

    folder = make_checkpoint(tmp_path / "sharded", name, shards=shards)
    files = {path.name for path in folder.glob("*.safetensors")}
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert 2 <= len(files) <= shards
    assert set(index["weight_map"].values()) == files
    whole, sharded = load(checkpoints[name], name).state_dict(), load(folder, name).state_dict()
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[key], sharded[key]) for key in whole)


def test_a_folder_made_again_holds_the_new_weights(tmp_path: Path) -> None:
    import torch

    for number, shards in enumerate([1, 3, 1]):
        again = make_checkpoint(tmp_path / "again", seed=number, shards=shards)
        fresh = make_checkpoint(tmp_path / str(number), seed=number, shards=shards)
        assert hashes(again) == hashes(fresh)
        one, other = load(again, "mistral").state_dict(), load(fresh, "mistral").state_dict()
        assert all(torch.equal(one[key], other[key]) for key in one)


@PEFT_ON_TRANSFORMERS
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("make", [make_checkpoint, make_prequantized, make_adapter, make_pickle_only])
def test_an_interruption_leaves_no_half_made_folder(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, there: bool
) -> None:
    import peft
    import torch
    from transformers import TokenizersBackend

    folder = tmp_path / "a" / "b"

    def interrupted(*args: object, **kwargs: object) -> None:
        assert list(folder.iterdir())
        raise KeyboardInterrupt

    if there:
        folder.mkdir(parents=True)
        (folder / "mine.txt").write_text("keep")
    last_step = {
        make_checkpoint: (TokenizersBackend, "save_pretrained"),
        make_prequantized: (derived, "_copy_missing"),
        make_adapter: (peft.PeftConfig, "save_pretrained"),
        make_pickle_only: (torch, "save"),
    }
    monkeypatch.setattr(*last_step[make], interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(folder, "mistral" if make is make_checkpoint else checkpoints["mistral"])
    assert folder.exists() is there
    assert (folder / "mine.txt").exists() is there


def test_the_dtype_and_the_overrides_are_those_asked_for(tmp_path: Path) -> None:
    import torch

    plain = load(make_checkpoint(tmp_path / "a", dtype="float32", num_hidden_layers=3), "mistral")
    assert plain.dtype is torch.float32
    assert len(plain.model.layers) == 3
    folder = make_checkpoint(tmp_path / "b", "llava", tokenizer=False, text_config={"num_hidden_layers": 1})
    nested = load(folder, "llava").config.text_config
    assert (nested.num_hidden_layers, nested.hidden_size) == (1, 64)
    assert not list(folder.glob("*token*"))


def test_the_weights_are_tied_where_the_name_says_so(checkpoints: dict[str, Path]) -> None:
    for name, tied in {"qwen2": False, "qwen2-tied": True}.items():
        model = load(checkpoints[name], name)
        assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) is tied


def test_the_remote_code_is_the_folders_own(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    folder = checkpoints["remote-code"]
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] not in CONFIG_MAPPING
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModelForCausalLM"}
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    model = load(folder, "remote-code").eval()
    assert type(model).__module__.startswith("transformers_modules.")
    batch = batch_for(folder, "remote-code", model.dtype)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", "remote-code").eval()
    assert torch.equal(model(**batch).logits, again(**batch).logits)


def test_the_remote_code_attends_alike_in_sdpa_eager_and_with_a_cache(checkpoints: dict[str, Path]) -> None:
    import torch

    folder = checkpoints["remote-code"]
    batch = batch_for(folder, "remote-code", torch.float32)
    ids, mask = batch["input_ids"][:1], batch["attention_mask"][:1]
    logits = {}
    for attention in ("eager", "sdpa"):
        model = load(folder, "remote-code", attn_implementation=attention).float().eval()
        logits[attention] = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(logits["eager"], logits["sdpa"])
    first = model(input_ids=ids[:, :3], use_cache=True)
    rest = model(input_ids=ids[:, 3:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], dim=1), logits["sdpa"])


def test_the_remote_code_learns_alike_with_activation_checkpointing(checkpoints: dict[str, Path]) -> None:
    import torch

    folder, gradients = checkpoints["remote-code"], []
    for checkpointing in (False, True):
        model = load(folder, "remote-code").float().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**batch_for(folder, "remote-code", torch.float32)).loss.backward()
        gradients.append(model.model.layers[0].up_proj.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ["gemma3", "mistral"])
def test_a_prequantized_checkpoint_is_stored_in_four_bits(
    checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    import bitsandbytes

    folder = make_prequantized(tmp_path / "nf4", checkpoints[name])
    stored = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (stored["bnb_4bit_quant_type"], stored["bnb_4bit_use_double_quant"]) == ("nf4", True)
    assert hashes(folder)["tokenizer.json"] == hashes(checkpoints[name])["tokenizer.json"]
    model = load(folder, name)
    assert any(isinstance(m, bitsandbytes.nn.Linear4bit) for m in model.modules())
    assert model(**batch_for(folder, name, model.dtype)).logits.isfinite().all()


# 8-bit matmuls say that they cast bfloat16 inputs (bitsandbytes 0.50.2).
@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
def test_a_prequantized_checkpoint_can_be_of_eight_bits(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    import bitsandbytes

    folder = make_prequantized(tmp_path / "int8", checkpoints["mistral"], bits=8)
    model = load(folder, "mistral")
    assert any(isinstance(m, bitsandbytes.nn.Linear8bitLt) for m in model.modules())
    assert model(**batch_for(folder, "mistral", model.dtype)).logits.isfinite().all()


@PEFT_ON_TRANSFORMERS
@pytest.mark.parametrize("name", ["gemma3", "mistral", "qwen2-sequence-classification", "t5"])
def test_an_adapter_names_its_base_and_changes_it(
    checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    import peft
    import torch

    folder = make_adapter(tmp_path / "adapter", checkpoints[name])
    assert hashes(folder) == hashes(make_adapter(tmp_path / "again", checkpoints[name]))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(checkpoints[name])
    base = load(checkpoints[name], name).eval()
    batch = batch_for(checkpoints[name], name, base.dtype)
    plain = base(**batch).logits
    adapted = peft.PeftModel.from_pretrained(base, folder).eval()
    assert not torch.equal(adapted(**batch).logits, plain)


def test_a_pickled_checkpoint_holds_the_same_weights(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    import torch

    folder = make_pickle_only(tmp_path / "pickled", make_checkpoint(tmp_path / "sharded", shards=2))
    assert (folder / "pytorch_model.bin").is_file()
    assert not list(folder.glob("*.safetensors*"))
    one, other = load(checkpoints["mistral"], "mistral").state_dict(), load(folder, "mistral").state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_cannot_be_made_is_refused_with_what_can(tmp_path: Path) -> None:
    with pytest.raises(LoadkitError, match=r"arch='mystral': choose one of .*mistral"):
        make_checkpoint(tmp_path / "a", "mystral")
    with pytest.raises(LoadkitError, match="dtype='int8': choose one of bfloat16"):
        make_checkpoint(tmp_path / "a", dtype="int8")
    with pytest.raises(LoadkitError, match="shards=0"):
        make_checkpoint(tmp_path / "a", shards=0)
    for make in (make_adapter, make_prequantized):
        with pytest.raises(LoadkitError, match=r"no config\.json"):
            make(tmp_path / "a", tmp_path)
    with pytest.raises(LoadkitError, match="bits='3': choose one of 4, 8"):
        make_prequantized(tmp_path / "a", tmp_path, bits=3)
    with pytest.raises(LoadkitError, match=r"no \*\.safetensors"):
        make_pickle_only(tmp_path / "a", tmp_path)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("make", [make_adapter, make_prequantized])
def test_nothing_is_made_from_a_checkpoint_with_its_own_code(
    checkpoints: dict[str, Path], tmp_path: Path, make: Any
) -> None:
    with pytest.raises(LoadkitError, match="auto_map"):
        make(tmp_path / "a", checkpoints["remote-code"])
