"""The distribution as users have it: built, installed, found by its entry point, in its own processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import loadkit
from loadkit_smollm3.configuration import SmolLM3LoadkitConfig
from loadkit_smollm3.modeling import SmolLM3LoadkitForCausalLM

LOADKIT = Path(sys.executable).with_name("loadkit")
README = Path(__file__).parent.parent / "README.md"

LOGITS = """
import sys, torch, loadkit
loaded = loadkit.load(sys.argv[1])
ids = torch.arange(10, 30).view(2, 10)
with torch.no_grad():
    logits = loaded.model(ids).logits
torch.save([type(loaded.model).__name__, loaded.plan.why("architecture").plugin, logits], sys.argv[2])
"""


def run(installed: dict[str, str], *arguments: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**installed, "COLUMNS": "100"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line_knows_it(installed, make) -> None:
    listed = {p["name"]: p for p in json.loads(run(installed, LOADKIT, "plugins", "--json"))}
    ours = listed["smollm3"]
    assert (ours["state"], ours["distribution"], ours["version"]) == (
        "active",
        "loadkit-smollm3",
        "1.0.0.dev0",
    )
    assert "loadkit_architectures" in ours["hooks"]
    told = " ".join(run(installed, LOADKIT, "plan", make(), "--why").split())
    assert "AutoModelForCausalLM → SmolLM3ForCausalLM smollm3: transformers" in told
    demanded = run(installed, LOADKIT, "plan", make(), "--why", "--smollm3-implementation", "plugin")
    assert "loadkit_smollm3.modeling:SmolLM3ForCausalLM [plugin] smollm3: you asked for it" in " ".join(
        demanded.split()
    )


def test_planning_needs_no_torch(installed, make) -> None:
    said = "import sys, loadkit; loadkit.plan(sys.argv[1]); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert run(installed, "-c", said, make()).strip() == "[]"


@pytest.fixture
def own(make, tmp_path: Path) -> Path:
    """A checkpoint that the plugin's own classes saved, of the model type that only they know."""
    torch.manual_seed(0)
    source = transformers.AutoTokenizer.from_pretrained(make())
    config = SmolLM3LoadkitConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=source.bos_token_id,
        eos_token_id=source.eos_token_id,
        pad_token_id=source.pad_token_id,
    )
    folder = tmp_path / "own"
    SmolLM3LoadkitForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    source.save_pretrained(folder)
    return folder


def test_a_model_type_of_its_own(own: Path, manager, installed, tmp_path: Path) -> None:
    said = json.loads((own / "config.json").read_text(encoding="utf-8"))
    assert (said["model_type"], said["architectures"]) == ("smollm3_loadkit", ["SmolLM3LoadkitForCausalLM"])
    with pytest.raises(ValueError, match="smollm3_loadkit"):
        transformers.AutoConfig.from_pretrained(own)
    loaded = loadkit.load(own, plugin_manager=manager)
    decision = loaded.plan.why("architecture")
    assert decision.plugin == "smollm3"
    assert "has no 'smollm3_loadkit'" in decision.because
    assert loaded.report.findings == ()
    assert type(loaded.model) is SmolLM3LoadkitForCausalLM
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    ids = torch.arange(10, 30).view(2, 10)
    with torch.no_grad():
        expected = loaded.model(ids).logits
    with torch.no_grad():  # saved changed, so that an equal reload can't be the first file's
        loaded.model.model.norm.weight.mul_(1.5)
        changed = loaded.model(ids).logits
    assert not torch.equal(expected, changed)
    saved = loaded.save_pretrained(tmp_path / "saved")
    assert (
        json.loads((Path(saved) / "config.json").read_text(encoding="utf-8"))["model_type"]
        == "smollm3_loadkit"
    )
    again = loadkit.load(saved, plugin_manager=manager)
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, changed)
    assert again.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    run(installed, "-c", LOGITS, saved, tmp_path / "theirs.pt")
    name, plugin, logits = torch.load(tmp_path / "theirs.pt")
    assert (name, plugin) == ("SmolLM3LoadkitForCausalLM", "smollm3")
    assert torch.equal(logits, changed)


def test_adapters_on_it_are_saved_and_loaded_again(own: Path, manager, tmp_path: Path) -> None:
    loaded = loadkit.load(own, "lora", plugin_manager=manager)
    ids = torch.arange(10, 30).view(2, 10)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
        loaded.model.eval()
        expected = loaded.model(ids).logits
        saved = loaded.save_pretrained(tmp_path / "adapter")
        again = loadkit.load(saved, plugin_manager=manager)
        assert torch.equal(again.model.eval()(ids).logits, expected)


def test_what_the_plugin_saves_transformers_loads(make, manager, tmp_path: Path) -> None:
    loaded = loadkit.load(make(), plugin_manager=manager, smollm3_implementation="plugin")
    saved = loaded.save_pretrained(tmp_path / "saved")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved)
    assert type(theirs) is transformers.SmolLM3ForCausalLM
    ids = torch.arange(10, 30).view(2, 10)
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, loaded.model(ids).logits)


@pytest.mark.slow
def test_the_readme_works_when_typed_in(installed, make, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    code = "\n".join(blocks).replace("HuggingFaceTB/SmolLM3-3B", str(make(chat_template=False)))
    (tmp_path / "typed.py").write_text(code + "\nprint(loadkit.plan('my-smollm3').model_class.model_class)\n")
    said = run(installed, "typed.py", cwd=tmp_path)
    assert said.splitlines()[-1] == "loadkit_smollm3.modeling:SmolLM3LoadkitForCausalLM"
