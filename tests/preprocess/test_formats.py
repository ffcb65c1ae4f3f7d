"""The formats are the strings that each family was trained on, byte for byte."""

import pytest

from pipeline.preprocess.conversation import Conversation, Turn, ask
from pipeline.preprocess.formats import FORMATS, TextFacts, join_parts, published_format, render_format
from tests.chats import ONE_QUESTION, QUESTION, THREE_TURNS

WITH_SYSTEM = {
    "mistral": "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhy? [/INST]",
    "vicuna": "Be brief. USER: Why? ASSISTANT:",
    "34b": "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nWhy?<|im_end|><|im_start|>assistant\n",
    "llama3-8b": "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "72b": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
    "110b": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
}
WITHOUT_SYSTEM = {
    "mistral": "[INST] Why? [/INST]",
    "vicuna": "USER: Why? ASSISTANT:",
    "34b": "<|im_start|>user\nWhy?<|im_end|><|im_start|>assistant\n",
    "llama3-8b": "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "72b": "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
    "110b": "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
}


def three_turns() -> Conversation:
    return Conversation(
        turns=(
            Turn(role="user", parts=(None, "What?")),
            Turn(role="assistant", parts=("A cat.",)),
            Turn(role="user", parts=("Sure?",)),
        )
    )


@pytest.mark.parametrize("name", FORMATS)
def test_one_image_and_one_question_are_the_documentations_string(name: str) -> None:
    assert render_format(FORMATS[name], ask(QUESTION, 1)) == ONE_QUESTION[name]


@pytest.mark.parametrize("name", FORMATS)
def test_an_earlier_answer_ends_with_its_token_and_the_next_question_follows(name: str) -> None:
    assert render_format(FORMATS[name], three_turns()) == THREE_TURNS[name]


@pytest.mark.parametrize("name", FORMATS)
def test_a_system_message_takes_the_place_of_the_formats_own(name: str) -> None:
    conversation = Conversation(turns=ask("Why?", 0).turns, system="Be brief.")
    assert render_format(FORMATS[name], conversation) == WITH_SYSTEM[name]


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_system_message_is_none_at_all(name: str) -> None:
    assert render_format(FORMATS[name], Conversation(turns=ask("Why?", 0).turns, system="")) == WITHOUT_SYSTEM[name]


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        pytest.param((None, "a"), "<image>\na", id="image first"),
        pytest.param(("a", None), "a\n<image>", id="image last"),
        pytest.param(("a", None, "b", None, "c"), "a\n<image>\nb\n<image>\nc", id="in between"),
        pytest.param((None, None, "a"), "<image>\n<image>\na", id="two images"),
        pytest.param(("a\n", None), "a\n<image>", id="a break that is there"),
        pytest.param(("{}",), "{}", id="braces"),
    ],
)
def test_texts_and_images_stay_in_their_order_an_image_on_a_line_of_its_own(parts, joined: str) -> None:
    assert join_parts(parts) == joined


@pytest.mark.parametrize(
    ("backbone", "width", "layers", "vocabulary", "name"),
    [
        pytest.param("mistral", 4096, 32, 32064, "mistral", id="mistral-7b"),
        pytest.param("llama", 4096, 32, 32064, "vicuna", id="vicuna-7b"),
        pytest.param("llama", 5120, 40, 32064, "vicuna", id="vicuna-13b"),
        pytest.param("llama", 7168, 60, 64064, "34b", id="34b"),
        pytest.param("llama", 4096, 32, 128320, "llama3-8b", id="llama3-8b"),
        pytest.param("qwen2", 8192, 80, 152064, "72b", id="72b and 110b"),
        pytest.param("qwen2", 8192, 80, 152128, "72b", id="another padding of the table"),
        pytest.param("llama", 4096, 32, 50000, None, id="another vocabulary"),
        pytest.param("mistral", 4096, 40, 32064, None, id="another depth"),
        pytest.param("granite", 2048, 40, 49156, None, id="another family"),
    ],
)
def test_only_a_published_backbone_has_a_format(backbone, width, layers, vocabulary, name) -> None:
    assert published_format(TextFacts(backbone=backbone, width=width, layers=layers, vocabulary=vocabulary)) == name
