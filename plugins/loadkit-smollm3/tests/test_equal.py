"""The plugin's classes beside transformers' own: the same weights, the same inputs, the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import loadkit
from loadkit_smollm3 import layers
from loadkit_smollm3.configuration import SmolLM3Config
from loadkit_smollm3.modeling import SmolLM3ForCausalLM

ATTENTIONS = ("eager", "sdpa")
DTYPES = ("bfloat16", "float32")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""Where the order of the sums differs (a token at a time, no padding), in float32; logits are up to 20."""

Pair = tuple[Any, Any]


@pytest.fixture(scope="module")
def pair(make, manager):
    """transformers' model and the plugin's, loaded by loadkit from one checkpoint, once for each way."""
    loaded: dict[tuple[str, str], Pair] = {}

    def load(attention: str = "sdpa", dtype: str = "float32") -> Pair:
        if (attention, dtype) not in loaded:
            options = {"attn_implementation": attention, "dtype": dtype, "plugin_manager": manager}
            theirs = loadkit.load(make(), smollm3_implementation="transformers", **options)
            ours = loadkit.load(make(), smollm3_implementation="plugin", **options)
            assert ours.report.findings == ()
            assert type(theirs.model) is transformers.SmolLM3ForCausalLM
            assert type(ours.model) is SmolLM3ForCausalLM
            loaded[attention, dtype] = theirs.model, ours.model
        return loaded[attention, dtype]

    return load


def tokens(rows: int = 3, length: int = 17) -> torch.Tensor:
    return torch.randint(8, 500, (rows, length), generator=torch.Generator().manual_seed(1))


def padded() -> dict[str, torch.Tensor]:
    """Rows of 17, 12 and 5 tokens, filled up on the left."""
    mask = torch.ones(3, 17, dtype=torch.long)
    mask[1, :5] = 0
    mask[2, :12] = 0
    ids = tokens().masked_fill(mask == 0, 0)
    return {"input_ids": ids, "attention_mask": mask}


def positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def run(model: Any, **inputs: Any) -> Any:
    with torch.no_grad():
        return model(**inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_logits_are_equal_to_the_last_bit(pair, attention: str, dtype: str) -> None:
    theirs, ours = pair(attention, dtype)
    left = padded()
    for inputs in (
        {"input_ids": tokens()},
        {"input_ids": tokens(), "use_cache": False},
        left,
        {**left, "position_ids": positions(left["attention_mask"])},
        {"inputs_embeds": theirs.get_input_embeddings()(tokens()).detach(), "logits_to_keep": 2},
        {"input_ids": tokens(), "labels": tokens()},
    ):
        expected, found = run(theirs, **inputs), run(ours, **inputs)
        assert expected.logits.std() > 1  # else equality would say little
        assert torch.equal(expected.logits, found.logits), list(inputs)
        assert (expected.past_key_values is None) == (found.past_key_values is None)
        if "labels" in inputs:
            assert torch.equal(expected.loss, found.loss)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_token_at_a_time_with_a_cache(pair, attention: str, dtype: str) -> None:
    left, whole = padded(), []
    ids, mask = left["input_ids"], left["attention_mask"]
    caches: list[Any] = [None, None]
    for start, end in ((0, 8), *((at, at + 1) for at in range(8, 17))):
        step = []
        for number, model in enumerate(pair(attention, dtype)):
            given = run(
                model,
                input_ids=ids[:, start:end],
                attention_mask=mask[:, :end],
                position_ids=positions(mask)[:, start:end],
                past_key_values=caches[number],
                use_cache=True,
            )
            caches[number] = given.past_key_values
            step.append(given.logits)
        assert torch.equal(*step), start
        whole.append(step[1])
    if dtype == "float32":
        at_once = run(pair(attention, dtype)[1], **left, position_ids=positions(mask)).logits
        real = mask.bool()  # what padding itself predicts is nobody's business
        torch.testing.assert_close(torch.cat(whole, dim=1)[real], at_once[real], **CLOSE)


def test_positions_are_counted_from_where_the_cache_ends(pair) -> None:
    first, rest = tokens()[:, :9], tokens()[:, 9:]
    _, ours = pair()
    cache = run(ours, input_ids=first, use_cache=True).past_key_values
    found = run(ours, input_ids=rest, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(found, run(ours, input_ids=tokens()).logits[:, 9:], **CLOSE)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_padding_changes_nothing(pair, attention: str) -> None:
    """Said of the plugin's classes alone, whatever transformers does."""
    _, ours = pair(attention, "float32")
    left = padded()
    filled = run(ours, **left, position_ids=positions(left["attention_mask"])).logits
    for row, length in enumerate((17, 12, 5)):
        alone = run(ours, input_ids=left["input_ids"][row : row + 1, -length:]).logits[0]
        torch.testing.assert_close(filled[row, -length:], alone, **CLOSE)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_generation_is_equal(pair, attention: str, use_cache: bool) -> None:
    wanted = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "use_cache": use_cache}
    theirs, ours = (m.generate(**padded(), **wanted) for m in pair(attention, "float32"))
    assert theirs.shape == (3, 29)
    assert len(set(theirs[:, 17:].flatten().tolist())) > 10
    assert torch.equal(theirs, ours)


def test_hidden_states_and_tuples(pair) -> None:
    theirs, ours = pair()
    expected, found = (
        run(m, input_ids=tokens(), output_hidden_states=True).hidden_states for m in (theirs, ours)
    )
    assert len(expected) == len(found) == 5
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert torch.equal(
        run(ours, input_ids=tokens(), return_dict=False)[0], run(theirs, input_ids=tokens()).logits
    )
    with pytest.raises(ValueError, match="attention weights"):
        run(ours, input_ids=tokens(), output_attentions=True)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        run(ours)


SMALL = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def built(**fields: Any) -> Pair:
    """Both models on one state, without files between."""
    torch.manual_seed(0)
    given = {**SMALL, **fields}
    theirs = transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(**given)).eval()
    ours = SmolLM3ForCausalLM(SmolLM3Config(**given)).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize(
    "fields",
    [
        {"num_key_value_heads": 1},
        {"num_key_value_heads": None, "attention_bias": True, "mlp_bias": True},
        {"no_rope_layers": [0, 1, 1, 0]},
        {"no_rope_layer_interval": 3, "tie_word_embeddings": False},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}},
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ],
    ids=lambda fields: next(iter(fields)) + str(next(iter(fields.values())))[:24],
)  # fmt: skip
def test_whatever_the_config_says(fields: dict[str, Any]) -> None:
    theirs, ours = built(**fields)
    assert ours.config.no_rope_layers == theirs.config.no_rope_layers
    ours.config._attn_implementation = theirs.config._attn_implementation = "eager"
    assert torch.equal(run(theirs, **padded()).logits, run(ours, **padded()).logits)


@pytest.mark.parametrize("fields", [{"num_key_value_heads": 3}, {"no_rope_layers": [1, 1]}])
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="can't build this model"):
        SmolLM3Config(**{**SMALL, **fields})


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant: bool) -> None:
    theirs, ours = built()
    kept = SmolLM3ForCausalLM(ours.config)
    kept.load_state_dict(ours.state_dict())
    enable = getattr(kept, "activation_checkpointing_enable", None) or kept.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})
    runs: list[int] = []
    kept.model.layers[1].input_layernorm.register_forward_hook(lambda *_: runs.append(1))
    gradients = []
    for model in (theirs, ours, kept):
        model.train()
        ran = model(**padded(), labels=tokens(), use_cache=model is kept)
        assert model is not kept or ran.past_key_values is None
        ran.loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert len(runs) == 2, "the layer wasn't run a second time"
    for name, gradient in gradients[1].items():
        assert gradient is not None, name
        assert torch.equal(gradients[2][name], gradient), name
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-4, atol=1e-5)


# --- The comparison would notice ---------------------------------------------------------------------


def turned_everywhere(patch: pytest.MonkeyPatch, model: Any) -> None:
    for layer in model.model.layers:
        patch.setattr(layer.self_attn, "turns", True)


def heads_in_another_order(patch: pytest.MonkeyPatch, model: Any) -> None:
    def repeated(states: torch.Tensor, groups: int, dim: int) -> torch.Tensor:
        return states.repeat(1, groups, 1, 1)

    patch.setattr(torch.Tensor, "repeat_interleave", repeated)


def mask_ignored(patch: pytest.MonkeyPatch, model: Any) -> None:
    real = layers.eager_attention
    patch.setattr(layers, "eager_attention", lambda m, q, k, v, mask, **more: real(m, q, k, v, None, **more))


def turned_the_other_way(patch: pytest.MonkeyPatch, model: Any) -> None:
    real = layers.turned
    patch.setattr(layers, "turned", lambda vectors, angles: real(vectors, (angles[0], -angles[1])))


@pytest.mark.parametrize(
    "mistake", [turned_everywhere, heads_in_another_order, mask_ignored, turned_the_other_way]
)
def test_a_mistake_shows(mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = built()
    ours.config._attn_implementation = theirs.config._attn_implementation = "eager"
    expected = run(theirs, **padded()).logits
    assert torch.equal(expected, run(ours, **padded()).logits)
    mistake(monkeypatch, ours)
    wrong = run(ours, **padded()).logits
    assert (expected - wrong).abs().max() > 0.1
