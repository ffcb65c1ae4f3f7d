import pytest
from pydantic import ValidationError

from schemas.job import JobSettings
from schemas.wording import (
    counted,
    credentials_in,
    describe_settings,
    did_you_mean,
    printable,
    printable_lines,
    redacted,
    shortened,
)


def refused(**changes) -> ValidationError:
    with pytest.raises(ValidationError) as found:
        JobSettings.model_validate({"input": ("a",), "output": "o", **changes})
    return found.value


def test_every_problem_is_a_line_with_setting_rule_and_value() -> None:
    assert describe_settings(refused(limit=0, top_p=2)) == [
        "limit: input should be greater than or equal to 1, got 0",
        "top_p: input should be less than or equal to 1, got 2",
    ]


def test_a_setting_is_called_as_it_was_typed() -> None:
    assert describe_settings(refused(top_p=2), spell=str.upper)[0].startswith("TOP_P: ")


def test_a_rule_about_several_settings_names_them_itself() -> None:
    (line,) = describe_settings(refused(min_new_tokens=9, max_new_tokens=5))
    assert line == "min_new_tokens must be at most max_new_tokens (5), got 9"


def test_what_is_no_setting_names_the_nearest() -> None:
    (line,) = describe_settings(refused(limt=3), known=JobSettings.model_fields)
    assert line == "limt is no setting of a job; did you mean limit?"
    assert did_you_mean("qqqq", JobSettings.model_fields) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("http://me:SECRET@host/x", "http://***@host/x", id="user and password"),
        pytest.param("got https://SECRET@host/x.", "got https://***@host/x.", id="a token alone"),
        pytest.param("http://me:SEC@RET@host/x", "http://***@host/x", id="an @ in a password"),
        pytest.param("s3://AKIA:SEC/RET+@b/x", "s3://***@b/x", id="a slash in a key"),
        pytest.param(
            "https://h/x?a=1&X-Amz-Signature=SECRET&b=2", "https://h/x?a=1&X-Amz-Signature=***&b=2", id="signed"
        ),
        pytest.param("x?SIG=SECRET'", "x?SIG=***'", id="any case"),
        pytest.param("?token=SECRET&api_key=SECRET", "?token=***&api_key=***", id="tokens"),
        pytest.param("Authorization: Bearer SECRET.SECRET", "Authorization: Bearer ***", id="a header"),
        pytest.param("hf_SECRETSECRETSECRETSECRET", "***", id="a token of the hub"),
        pytest.param("http://127.0.0.1:9000/b/a@2x.png", "http://127.0.0.1:9000/b/a@2x.png", id="a port and an @"),
        pytest.param("s3://b/a@2x.png?x=1", "s3://b/a@2x.png?x=1", id="nothing secret"),
        pytest.param("abfs://box@account/x hf://gpt2@main/x", "abfs://box@account/x hf://gpt2@main/x", id="no users"),
    ],
)
def test_secrets_of_urls_are_not_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize("text", ["://a:" * 20_000, "?token=" * 20_000, "a@" * 50_000, "://" + "x:" * 50_000])
def test_a_long_text_is_read_once_however_it_is_made(text: str) -> None:
    assert len(shortened(text, 100)) <= 103
    assert "***" in redacted(f"{text} http://a:b@c")


def test_half_a_secret_is_not_left_where_a_text_is_cut() -> None:
    assert shortened(f"http://me:{'S' * 150}@host/x", 100) == "http://***@host/x"


@pytest.mark.parametrize(
    ("url", "holds"),
    [
        ("http://me:pw@h/x", "a user or password"),
        ("s3://id:key@b/x", "a user or password"),
        ("https://h/x?sig=1", "a key or signature"),
        ("s3://b/x?sig=1", None),  # a name like any other
        ("/a/x?sig=1", None),
        ("/a/://me:pw@h", None),
        ("abfs://box@account/x", None),
    ],
)
def test_a_url_that_no_file_may_keep_is_known(url: str, holds: str | None) -> None:
    assert credentials_in(url) == holds


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("\x1b[2J\x07\x9b", "\\x1b[2J\\x07\\x9b", id="control"),
        pytest.param("a\r\n\tb", "a\\r\\n\\tb", id="line breaks"),
        pytest.param("\u202egpj.exe\u2066", "\\u202egpj.exe\\u2066", id="writing direction"),
        pytest.param("\u2028\udce9\U000e0001", "\\u2028\\udce9\\U000e0001", id="beyond"),
        pytest.param("Ärger 写真\u3000क\u200dष 🎉", "Ärger 写真\u3000क\u200dष 🎉", id="scripts of the world"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable_lines(f"{text[:1]}\n") == f"{printable(text[:1])}\n"


@pytest.mark.parametrize(("number", "said"), [(0, "0 units"), (1, "1 unit"), (2000, "2,000 units")])
def test_what_is_counted_is_one_or_many(number: int, said: str) -> None:
    assert counted(number, "unit") == said
