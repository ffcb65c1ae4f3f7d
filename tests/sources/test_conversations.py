"""Jobs of conversations: planned, shown and run."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.checkpoint import CHAT_TEMPLATE
from jobs.__main__ import main
from pipeline.dryrun import describe_plan, sample_rows
from pipeline.job import run_job
from pipeline.plan import Plan, plan_job
from pipeline.preprocess.template import hash_template
from pipeline.stages.preprocess import conversation_of
from schemas.job import JobSettings
from schemas.request import Request
from tests.fakes import load_echo_engine
from tests.inputs import picture
from tests.tiny import checkpoint

PART = pa.struct([("type", pa.string()), ("text", pa.string())])
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(PART))]))
IMAGE = {"type": "image", "text": None}


def user(*parts: str | None) -> dict[str, object]:
    """A user's message; None is an image."""
    return {"role": "user", "content": [IMAGE if p is None else {"type": "text", "text": p} for p in parts]}


def answered(text: str) -> dict[str, object]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [
        ([picture(1), picture(2)], [user("Is", None, "like", None)], "two"),
        ([], [user("Hello <image>!")], "none"),
        ([picture(3)], [user(None, "Who?"), answered("A cat."), user("Sure?")], None),
        ([picture(3)], [user("Who?")], "four"),
        (None, [user("Hi.")], "five"),
    ]
    images, messages, captions = zip(*rows, strict=True)
    table = pa.table(
        {
            "id": [str(number) for number in range(len(rows))],
            "images": pa.array(images, pa.list_(pa.binary())),
            "messages": pa.array(messages, MESSAGES),
            "caption": pa.array(captions, pa.string()),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


def plan_for(source: Path, **changes: object) -> Plan:
    base = {"input": (str(source),), "output": str(source.parent / "out"), "model": str(checkpoint())}
    settings = {**base, "max_new_tokens": 4, "max_error_rate": 1.0, **changes}
    return plan_job("caption", JobSettings.model_validate(settings), "Describe it.")


def test_a_plan_leaves_no_chat_template_open(source: Path) -> None:
    assert plan_for(source).settings.chat_template == "checkpoint"
    assert plan_for(source, chat_template="vicuna").identity()["chat_template"] == "vicuna"


def test_a_template_files_text_is_part_of_what_a_run_is(source: Path) -> None:
    file = source.parent / "mine.jinja"
    text = "{% for p in messages[-1].content %}{{ p.text or '<image>' }}{% endfor %}"
    file.write_text(text)
    assert plan_for(source, chat_template=str(file)).identity()["chat_template"] == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"chat_template": "34b"}, r"--chat-template must suit the model, .* <\|im_start\|>", id="format"),
        pytest.param({"chat_template": "llama"}, "--chat-template must be one of auto, checkpoint", id="name"),
        pytest.param({"prompt": ("Read {captoin}",)}, "--prompt with captoin: no such column; did you", id="column"),
        pytest.param({"prompt": ("Read {images}",)}, "--prompt with images must name .* text or numbers", id="type"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(source: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_job(plan_for(source, **changes), load_echo_engine)
    assert not (source.parent / "out").exists()


def test_a_dry_run_shows_the_template_and_a_conversation_as_the_model_reads_it(source: Path) -> None:
    plan = plan_for(source, system="Be brief.")
    assert "chat     the checkpoint's own template\nsystem   'Be brief.'" in describe_plan(plan)
    assert "messages: column 'messages'" in describe_plan(plan)
    shown = sample_rows(plan).lines
    assert "'<system>Be brief.<user>Is<image>\\nlike<image>\\n<assistant>'" in shown
    assert "  1  prompt  no image, 0 tiles" in shown
    assert "error at prompt: ImageCountMismatch: " in shown


def test_a_dry_run_shows_a_prompt_with_its_columns_filled_in(source: Path) -> None:
    plan = plan_for(source, prompt=("t=Translate {caption}: {{}}",), chat_template="vicuna", system="")
    assert "chat     format vicuna\nsystem   ''\nprompt   t: 'Translate {caption}: {{}}'" in describe_plan(plan)
    shown = sample_rows(plan).lines
    assert "'USER: <image>\\n<image>\\nTranslate two: {} ASSISTANT:'" in shown
    assert "error at prompt: NullInPrompt: the columns a prompt names must not be null, 'caption' is" in shown


def test_prompts_come_from_a_yaml_list(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source.parent / "job.yaml").write_text(
        "prompt:\n- short=In a word?\n- 'Translate {caption}: 1'\nmax_new_tokens: 4\n"
    )
    flags = ["--input", str(source), "--output", str(source.parent / "out"), "--model", str(checkpoint()), "--dry-run"]
    assert main(["caption", "--config", str(source.parent / "job.yaml"), *flags]) == 0
    shown = capsys.readouterr().err
    assert "prompt   short: 'In a word?'\nprompt   prompt2: 'Translate {caption}: 1'" in shown
    assert "10 answers" in shown


def test_prompts_come_from_a_yaml_mapping_of_names(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = source.parent / "job.yaml"
    flags = ["--input", str(source), "--output", str(source.parent / "out"), "--model", str(checkpoint()), "--dry-run"]
    config.write_text("prompt:\n  short: In a word?\n  sum: 1 + 1 = {caption}?\n")
    assert main(["caption", "--config", str(config), *flags]) == 0
    assert "prompt   short: 'In a word?'\nprompt   sum: '1 + 1 = {caption}?'" in capsys.readouterr().err
    config.write_text("prompt:\n  in a word: What?\n")
    assert main(["caption", "--config", str(config), *flags]) == 2
    assert "a prompt must have a name of a letter, then letters" in capsys.readouterr().err


def test_braces_in_a_rows_own_prompt_are_text() -> None:
    request = Request(id="a", images=(), prompt="What is {caption}, or {{?", values={"caption": "a cat"})
    assert conversation_of(request, None).question == "What is {caption}, or {{?"


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_job_answers_conversations_and_says_what_the_model_is(source: Path) -> None:
    run_job(plan_for(source), load_echo_engine)
    rows = pq.read_table(source.parent / "out" / "answers").to_pylist()
    assert [row["prompt"] for row in rows] == ["Is like", "Hello <image>!", "Sure?", "Who?", "Hi."]
    assert [row["error_type"] for row in rows] == [None, None, None, "ImageCountMismatch", None]
    assert [row["text"] for row in rows[:3]] == ["Is like 61x77 98x130", "Hello <image>! ", "Sure? 135x183"]
    written = json.loads((source.parent / "out" / ".run" / "run.json").read_text())
    assert written["settings"]["chat_template"] == "checkpoint"
    assert written["model"]["text"] == {"backbone": "llama", "width": 64, "layers": 2, "vocabulary": 262}
    assert (written["model"]["eos_token_ids"], written["model"]["pad_token_id"]) == ([1], 3)
    assert written["model"]["chat_template_hash"] == hash_template("checkpoint", CHAT_TEMPLATE)
