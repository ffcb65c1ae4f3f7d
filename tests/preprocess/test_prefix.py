"""What every prompt of a job begins with follows from its model, chat template and system message, not from a row."""

import json
from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoProcessor

from pipeline.preprocess.conversation import Conversation, ask, parse_messages
from pipeline.preprocess.image import ImageLimits
from pipeline.preprocess.preprocessor import Chat, Images, Preprocessor
from schemas.sample import Prompt, Size
from tests.tiny import checkpoint

SYSTEM = "You read what is printed and nothing else."


def of_job(template: str, system: str | None) -> Preprocessor:
    return Preprocessor.load(str(checkpoint()), None, ImageLimits(), 8, Chat(template=template, system=system))


def images(count: int) -> Images:
    return Images(image_sizes=(Size(9, 9),) * count, tiles_per_image=(0,) * count, image_tokens=(3,) * count)


def built(job: Preprocessor, conversation: Conversation) -> Prompt:
    return job.build_conversation("p", conversation, images(conversation.num_images))


@pytest.mark.parametrize(
    ("template", "system", "prefix"),
    [
        pytest.param("checkpoint", SYSTEM, f"<system>{SYSTEM}<user>", id="the model's own template"),
        pytest.param("vicuna", SYSTEM, f"{SYSTEM} USER: ", id="vicuna"),
        pytest.param("vicuna", "", "USER: ", id="no system message"),
        pytest.param("mistral", SYSTEM, f"[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n", id="inside the user's turn"),
        pytest.param("mistral", None, "[INST] ", id="none"),
    ],
)
def test_all_prompts_of_a_job_begin_with_its_prefix(template: str, system: str | None, prefix: str) -> None:
    """The tiny model's tokens are single letters: so the prefix can be read."""
    job = of_job(template, system)
    talk = parse_messages(json.dumps([{"role": r, "content": "So?"} for r in ("user", "assistant", "user")]))
    found = [built(job, one) for one in (ask("Why?", 0), ask("x0", 1), ask(" Where?", 2), talk)]
    tokenizer = AutoProcessor.from_pretrained(checkpoint(), backend="pil").tokenizer
    for prompt in found:
        common = prompt.token_ids[: prompt.num_common]
        assert tokenizer.decode(common, skip_special_tokens=False).removeprefix("<s>") == prefix
        assert job.facts.image_token_id not in common
        assert np.array_equal(common, found[0].token_ids[: found[0].num_common])


def test_a_vicuna_prompt_begins_with_the_formats_own_system_message() -> None:
    prompt = built(of_job("vicuna", None), ask("Why?", 1))
    assert 140 < prompt.num_common < len(prompt.token_ids) - len("Why?")


def test_a_row_with_a_system_message_of_its_own_has_no_part_of_the_prefix() -> None:
    job, question = of_job("vicuna", SYSTEM), ask("Why?", 1)
    assert built(job, question).num_common > len(SYSTEM)
    assert built(job, replace(question, system="You read.")).num_common == 0
    assert built(job, replace(question, system="")).num_common == 0


def test_a_row_that_says_the_same_itself_begins_as_the_others_do() -> None:
    job, question = of_job("vicuna", SYSTEM), ask("Why?", 1)
    assert built(job, replace(question, system=SYSTEM)).num_common == built(job, question).num_common


def test_more_common_tokens_than_there_are_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="num_common must be from 0 to 2 token_ids, got 3"):
        Prompt(id="p", text="?", token_ids=np.array([1, 2], np.int32), num_common=3)
