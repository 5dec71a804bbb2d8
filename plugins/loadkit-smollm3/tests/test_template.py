"""The chat template: which mode it asks for, what becomes of the system message, whose tokenizer gets it."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest

import loadkit

QUESTION = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
NO_THOUGHT = "<think>\n\n</think>\n"


@pytest.fixture(scope="module")
def tokenizer(make, manager):
    loaded = loadkit.load(make(chat_template=False), plugin_manager=manager)
    processing = loaded.plan.processing
    assert processing.template_origin == "a plugin's architecture"
    assert "a plugin registered one for 'smollm3'" in loaded.plan.why("processing").because
    return loaded.tokenizer


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


@pytest.mark.parametrize(
    ("before", "options", "mode", "left"),
    [
        ([], {}, "/think", ""),
        ([], {"enable_thinking": True}, "/think", ""),
        ([], {"enable_thinking": False}, "/no_think", ""),
        ([system("Be kind. /no_think")], {}, "/no_think", "\n\nBe kind."),
        ([system("/think")], {"enable_thinking": False}, "/think", ""),
        ([system("/no_think")], {"enable_thinking": True}, "/no_think", ""),
        ([system("Be kind.")], {"enable_thinking": False}, "/no_think", "\n\nBe kind."),
    ],
)
def test_the_modes(tokenizer, before: list[Any], options: dict[str, Any], mode: str, left: str) -> None:
    text = tokenizer.apply_chat_template(
        [*before, QUESTION], tokenize=False, add_generation_prompt=True, **options
    )
    assert text == (
        f"<|im_start|>system\nReasoning Mode: {mode}{left}<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        f"<|im_start|>assistant\n{NO_THOUGHT if mode == '/no_think' else ''}"
    )


@pytest.mark.parametrize("thinks", [True, False])
def test_answers_and_what_counts_in_the_loss(tokenizer, thinks: bool) -> None:
    text = tokenizer.apply_chat_template([QUESTION, ANSWER, QUESTION], tokenize=False, enable_thinking=thinks)
    assert text.endswith(
        f"<|im_start|>assistant\n{'' if thinks else NO_THOUGHT}Because.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
    )
    encoded = tokenizer.apply_chat_template(
        [QUESTION, ANSWER], return_dict=True, return_assistant_tokens_mask=True, enable_thinking=thinks
    )
    counted = [i for i, c in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if c]
    assert tokenizer.decode(counted) == "Because.<|im_end|>\n"


def test_a_prompt_is_the_start_of_what_is_trained_on(tokenizer) -> None:
    for thinks in (True, False):
        prompt, whole = (
            tokenizer.apply_chat_template(c, tokenize=False, enable_thinking=thinks, add_generation_prompt=p)
            for c, p in (([QUESTION], True), ([QUESTION, ANSWER], False))
        )
        assert whole.startswith(prompt)


def test_other_roles_are_refused(tokenizer) -> None:
    with pytest.raises(jinja2.TemplateError, match="not tool"):
        tokenizer.apply_chat_template([QUESTION, {"role": "tool", "content": "42"}], tokenize=False)


def test_a_template_that_is_there_or_asked_for_stays(make, manager) -> None:
    own = loadkit.plan(make(), plugin_manager=manager).processing
    assert own.chat_template is None
    bare = make(chat_template=False)
    asked = loadkit.plan(bare, plugin_manager=manager, chat_template="{{ messages }}").processing
    assert asked.chat_template == "{{ messages }}"
    another = loadkit.plan(
        bare, plugin_manager=manager, tokenizer=str(make("mistral", chat_template=False))
    ).processing
    assert another.chat_template is None
    chat = loadkit.plan(bare, plugin_manager=manager, chat=True)
    assert "Reasoning Mode" in (chat.processing.chat_template or "")
