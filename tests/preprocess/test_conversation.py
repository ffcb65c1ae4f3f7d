"""Messages become conversations, or a row error that says what is wrong with them."""

import json

import pytest

from pipeline.preprocess.conversation import Conversation, Turn, ask, parse_messages
from schemas.errors import RowError

IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def parse(*messages: object) -> Conversation:
    return parse_messages(json.dumps(messages))


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        pytest.param("Why?", ("Why?",), id="a plain string"),
        pytest.param([text("Why?")], ("Why?",), id="typed"),
        pytest.param([IMAGE, text("Why?")], (None, "Why?"), id="image first"),
        pytest.param([text("Why"), IMAGE, text("this?"), IMAGE], ("Why", None, "this?", None), id="the order given"),
        pytest.param(["a", "b"], ("ab",), id="strings as parts"),
        pytest.param([text("<ima"), text("ge>")], ("<image>",), id="texts side by side are one"),
        pytest.param([{"type": "image", "text": None}, text("?")], (None, "?"), id="nulls of an Arrow struct"),
    ],
)
def test_content_is_a_text_or_parts_in_their_order(content: object, parts: tuple[str | None, ...]) -> None:
    assert parse(user(content)).turns == (Turn(role="user", parts=parts),)


@pytest.mark.parametrize(
    ("part", "uri"),
    [
        pytest.param(IMAGE, None, id="the row's own"),
        pytest.param({"type": "image_url", "image_url": {"url": "s3://b/a.jpg"}}, "s3://b/a.jpg", id="image_url"),
        pytest.param({"type": "image_url", "image_url": "a.jpg"}, "a.jpg", id="image_url, a text"),
        pytest.param({"type": "image", "url": "a.jpg", "path": None}, "a.jpg", id="url"),
        pytest.param({"type": "image", "base64": "aGk="}, "data:;base64,aGk=", id="base64"),
        pytest.param({"type": "image", "image_url": {"url": None}}, None, id="nulls of an Arrow struct"),
    ],
)
def test_a_place_may_name_its_image(part: object, uri: str | None) -> None:
    conversation = parse(user([part, text("Why?"), IMAGE]))
    assert conversation.uris == (uri, None)
    assert conversation.num_images == 2
    assert conversation.turns[0].parts == (None, "Why?", None)


def test_an_image_written_out_in_a_text_is_text() -> None:
    assert parse(user("see <image>")).num_images == 0


def test_a_system_message_comes_first_and_is_none_of_the_turns() -> None:
    conversation = parse({"role": "system", "content": [text("Be brief.")]}, user([IMAGE, text("Why?")]))
    assert (conversation.system, conversation.num_images, conversation.question) == ("Be brief.", 1, "Why?")


def test_earlier_answers_are_turns_of_their_own() -> None:
    conversation = parse(user("a"), {"role": "assistant", "content": "b"}, user("c"))
    assert [turn.role for turn in conversation.turns] == ["user", "assistant", "user"]
    assert conversation.question == "c"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        pytest.param("[", "must be JSON text, '\\[' is not", id="not JSON"),
        pytest.param("[" * 100_000, "must be JSON text, '\\[\\[", id="too deep"),
        pytest.param(
            '[{"role": "user", "content": "\\ud800"}]', "must be JSON text, .* surrogates", id="half a letter"
        ),
        pytest.param("[]", "at least one message, got \\[\\]", id="empty"),
        pytest.param('"hi"', "must be a list .* got 'hi'", id="a string"),
        pytest.param('["hi"]', "must have a role and content, got 'hi'", id="a message that is a string"),
        pytest.param('[{"role": "tool", "content": "x"}]', "role must be user or assistant, .* got 'tool'", id="role"),
        pytest.param('[{"role": "user"}]', "content must be a text or a list of parts, got None", id="no content"),
        pytest.param('[{"role": "user", "content": []}]', "must have content, the user's has none", id="no parts"),
        pytest.param('[{"role": "user", "content": [{"type": "audio"}]}]', "a part must be .* got", id="audio"),
        pytest.param('[{"role": "user", "content": [{"type": "text"}]}]', "a part must be .* got", id="text without"),
        *(
            pytest.param(json.dumps([{"role": "user", "content": [part]}]), "a part must be .* url, path and", id=id)
            for id, part in {
                "image_url": {"type": "image_url", "image_url": {}},
                "no image_url": {"type": "image_url"},
                "an empty URL": {"type": "image", "url": ""},
                "a number for a URL": {"type": "image", "url": 7},
                "a list of URLs": {"type": "image_url", "image_url": ["x"]},
                "two names": {"type": "image", "url": "x", "path": "y"},
                "another's source": {"type": "image", "source": {"type": "base64", "data": "aGk="}},
                "another's data": {"type": "image", "data": "aGk="},
            }.items()
        ),
        pytest.param(
            '[{"role": "system", "content": [{"type": "image", "url": "x"}]}, {"role": "user", "content": "?"}]',
            "a system message must be text, it has an image",
            id="system",
        ),
    ],
)
def test_messages_that_cannot_be_read_fail_the_row(messages: str, message: str) -> None:
    with pytest.raises(RowError, match=f"prompt: BadMessages: .*{message}"):
        parse_messages(messages)


@pytest.mark.parametrize(
    ("roles", "order"),
    [
        pytest.param(("user", "assistant"), "user, assistant", id="ends with an answer"),
        pytest.param(("user", "user"), "user, user", id="twice the user"),
        pytest.param(("assistant", "user"), "assistant, user", id="the assistant first"),
        pytest.param(("system",), "no user", id="a system message alone"),
    ],
)
def test_user_and_assistant_take_turns(roles: tuple[str, ...], order: str) -> None:
    with pytest.raises(RowError, match=f"alternate, the user first and last, got {order}"):
        parse(*({"role": role, "content": "x"} for role in roles))


def test_only_the_user_shows_images() -> None:
    with pytest.raises(RowError, match="it is in an assistant's"):
        parse(user("a"), {"role": "assistant", "content": [IMAGE]}, user("b"))
    with pytest.raises(RowError, match="a system message must be text"):
        parse({"role": "system", "content": [IMAGE]}, user("b"))


def test_a_second_system_message_is_refused() -> None:
    with pytest.raises(RowError, match="or system in the first message, got 'system'"):
        parse(user("a"), {"role": "system", "content": "x"})


def test_every_text_is_changed_and_no_image() -> None:
    conversation = Conversation(turns=ask("a", 1).turns, system="b").with_texts(str.upper)
    assert (conversation.system, conversation.turns[0].parts) == ("B", (None, "A"))


def llava(*values: str) -> Conversation:
    """LLaVA's own form of a conversation, the human first."""
    return parse(*({"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)))


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        pytest.param("<image>\nHow many?", (None, "How many?"), id="first"),
        pytest.param("How many?\n<image>", (None, "How many?"), id="one comes first wherever it stands"),
        pytest.param("Is <image>\nlike <image>?", ("Is ", None, "like ", None, "?"), id="several stay in place"),
        pytest.param("<image>\n<image>\nSame?", (None, None, "Same?"), id="two"),
        pytest.param("<image>", (None,), id="alone"),
        pytest.param(" Hi.\n", (" Hi.\n",), id="none"),
    ],
)
def test_image_in_a_text_of_llavas_own_data_is_an_image(value: str, parts: tuple[str | None, ...]) -> None:
    conversation = llava(value)
    assert conversation.turns == (Turn(role="user", parts=parts),)
    assert conversation.uris == (None,) * parts.count(None)


def test_the_answer_that_was_to_be_learnt_is_left_out_and_earlier_ones_are_history() -> None:
    conversation = llava("<image>\na", "b", "c", "d")
    assert [(turn.role, turn.parts) for turn in conversation.turns] == [
        ("user", (None, "a")),
        ("assistant", ("b",)),
        ("user", ("c",)),
    ]


def test_llavas_data_may_have_a_system_message_and_nulls_of_a_struct() -> None:
    system = {"from": "system", "value": "Be brief.", "role": None}
    assert parse(system, {"from": "human", "value": "Hi."}, {"from": "gpt", "value": "No."}).system == "Be brief."


@pytest.mark.parametrize(
    ("message", "why"),
    [
        pytest.param({"from": "gpt", "value": "x"}, "alternate, .* got no user", id="an answer alone"),
        pytest.param({"from": "tool", "value": "x"}, "role must be user or assistant, .* got 'tool'", id="another"),
        pytest.param({"from": ["human"], "value": "x"}, "role must be .* got", id="no name"),
        pytest.param({"from": "human", "value": None}, "content must be a text .* got None", id="no value"),
        pytest.param({"from": "human"}, "content must be a text .* got None", id="nothing"),
        pytest.param({"from": "system", "value": "<image>"}, "a system message must be text", id="system"),
    ],
)
def test_llavas_data_that_cannot_be_asked_fails_the_row(message: object, why: str) -> None:
    with pytest.raises(RowError, match=f"prompt: BadMessages: .*{why}"):
        parse(message)
