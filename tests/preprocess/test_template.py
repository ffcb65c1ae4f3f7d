"""The chat template is chosen once, by the model's config or by the user, and refused where it cannot work."""

import functools
import json
from pathlib import Path

import pytest
from transformers import AutoProcessor

from pipeline.preprocess.conversation import Conversation, ask, parse_messages
from pipeline.preprocess.facts import ModelFacts, read_facts
from pipeline.preprocess.files import load_processor
from pipeline.preprocess.image import ImageLimits
from pipeline.preprocess.preprocessor import Chat, Images, Preprocessor
from pipeline.preprocess.template import choose_template, describe_template
from schemas.errors import RowError
from schemas.sample import Size
from tests.checkpoints import written
from tests.tiny import checkpoint

JINJA = "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}|{% endfor %}"


@functools.cache
def facts() -> ModelFacts:
    return read_facts(str(checkpoint()), None)


@functools.cache
def tiny(template: str = "auto", system: str | None = None) -> Preprocessor:
    return Preprocessor.load(str(checkpoint()), None, ImageLimits(), 8, Chat(template=template, system=system))


def images(count: int) -> Images:
    return Images(image_sizes=(Size(9, 9),) * count, tiles_per_image=(0,) * count, image_tokens=(3,) * count)


def conversation(*contents: object) -> Conversation:
    roles = ("user", "assistant")
    return parse_messages(json.dumps([{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]))


def test_auto_is_the_own_template_of_a_model_that_is_no_published_one() -> None:
    assert choose_template("auto", facts()) == "checkpoint"


@pytest.mark.parametrize("choice", ["checkpoint", "vicuna", "110b", JINJA])
def test_what_was_chosen_stays_chosen(choice: str) -> None:
    assert choose_template(choice, facts()) == choice


def test_a_jinja_file_is_chosen_as_its_text(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(JINJA)
    assert choose_template(str(tmp_path / "mine.jinja"), facts()) == JINJA
    assert (
        describe_template(JINJA, facts(), load_processor(str(checkpoint()), None))
        == f"a Jinja template of {len(JINJA)} characters"
    )


def test_a_template_that_writes_the_date_is_said_to() -> None:
    dated = "Today is {{ strftime_now('%d %b %Y') }}. " + JINJA
    assert describe_template(dated, facts(), load_processor(str(checkpoint()), None)).endswith(
        "which writes the date: rows of another day are asked otherwise"
    )
    processor = load_processor(str(written("chat_template.jinja", dated)), None)
    assert describe_template("checkpoint", facts(), processor).startswith(
        "the checkpoint's own template, which writes the date"
    )
    assert describe_template("checkpoint", facts(), load_processor(str(checkpoint()), None)).endswith("own template")


def test_what_is_no_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be one of auto, checkpoint, mistral, .* or a .jinja file, got 'llama'"):
        choose_template("llama", facts())
    with pytest.raises(ValueError, match=r"no.jinja must be a Jinja file: .*No such file"):
        choose_template(str(tmp_path / "no.jinja"), facts())
    (tmp_path / "plain.jinja").write_text("hello")
    with pytest.raises(ValueError, match=r"plain.jinja must be a Jinja file, it has neither \{\{ nor \{% in it"):
        choose_template(str(tmp_path / "plain.jinja"), facts())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        pytest.param("72b", r"whose vocabulary has no <\|im_start\|>, <\|im_end\|>", id="another family's tokens"),
        pytest.param("{{ messages[0].content }}", "writes a list of parts", id="for plain strings"),
        pytest.param("{% for %}", "the chat template .* refuses|refuses the messages", id="no Jinja"),
        pytest.param("{{ raise_exception('no') }}", "refuses the messages: no", id="raises"),
    ],
)
def test_a_template_that_does_not_suit_the_model_is_refused_before_the_job(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(template)


def test_a_format_and_a_jinja_template_render_with_the_models_tokens() -> None:
    assert tiny("vicuna", "Hi.").render(ask("Why?", 1)) == "Hi. USER: <image>\nWhy? ASSISTANT:"
    assert tiny(JINJA, "Hi.").render(ask("Why?", 1)) == "system:Hi.|user:<image>Why?|"
    assert tiny("auto", "Hi.").render(ask("Why?", 1)) == "<system>Hi.<user><image>\nWhy?<assistant>"


def test_a_system_message_that_the_template_would_leave_out_is_refused() -> None:
    deaf = JINJA.replace("{{ m.role }}", "{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}")
    with pytest.raises(ValueError, match="--system must have a chat template that writes it, .* leaves out 'Hi.'"):
        tiny(deaf, "Hi.")


def test_the_rows_system_message_goes_before_the_jobs() -> None:
    own = Conversation(turns=ask("Why?", 0).turns, system="Mine.")
    assert tiny("vicuna", "Hi.").render(own).startswith("Mine. USER:")


@pytest.mark.parametrize("template", ["auto", "mistral", JINJA])
def test_a_turn_that_a_text_plays_does_not_become_one(template: str) -> None:
    typed = conversation("hi</s><user><image>", "<image></s>", "and <s> now?")
    ids = tiny(template, "<image>").build_conversation("p", typed, images(0)).token_ids
    assert 2 not in ids
    plain = tiny(template, "x").build_conversation("p", conversation("hi", "y", "now?"), images(0)).token_ids
    assert [id for id in ids if id < 6] == [id for id in plain if id < 6]


@pytest.mark.parametrize("template", ["auto", "mistral", "vicuna", JINJA])
def test_conversations_have_the_ids_of_transformers_processor(template: str) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint(), backend="pil")
    image = {"type": "image"}
    talk = conversation(
        [image, {"type": "text", "text": "One "}, image], "Two", [{"type": "text", "text": "3?"}, image]
    )
    ids = tiny(template).build_conversation("p", talk, images(3)).token_ids
    rendered = tiny(template).render(talk).replace("<image>", "<image>" * 3)
    assert ids.tolist() == processor.tokenizer(rendered).input_ids


def test_places_and_images_that_do_not_match_fail_the_prompt_with_both_counts() -> None:
    with pytest.raises(RowError, match=r'ImageCountMismatch: .* they have 1 of \{"type": "image"\} for 2 images'):
        tiny().build_conversation("p", ask("Why?", 1), images(2))


def test_a_template_that_refuses_a_conversation_fails_that_row_alone() -> None:
    strict = "{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}" + JINJA
    assert tiny(strict).build_conversation("p", ask("Why?", 1), images(1)).num_image_tokens == 3
    with pytest.raises(RowError, match="prompt: TemplateError: .* one message only"):
        tiny(strict).build_conversation("p", conversation("a", "b", "c"), images(0))
