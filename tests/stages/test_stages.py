"""The stages as functions of tables: every row stays, in its place, with an answer or a reason."""

import json
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.engine.engine import Engine
from pipeline.preprocess.image import Room
from pipeline.preprocess.parsed import answer_columns
from pipeline.preprocess.preprocessor import EncodedImage, Images
from pipeline.preprocess.row_border import Nobody, Watch
from pipeline.stages.engine_settings import engine_settings, sampling_of
from pipeline.stages.generate import Generate, final_answers
from pipeline.stages.preprocess import Preprocess
from schemas.answer import ANSWER_SCHEMA, Answer, table_to_answers
from schemas.engine import EngineSettings
from schemas.errors import Failure, Refused, Stage
from schemas.job import JobSettings
from schemas.request import ImageRef, Request, requests_to_table
from schemas.sample import Sample, table_to_samples
from tests.fakes import EchoEngine, load_echo_engine
from tests.images import encoded
from tests.inputs import picture
from tests.tiny import checkpoint


def settings(**changes: object) -> JobSettings:
    base = {"input": ("a",), "output": "o", "model": str(checkpoint()), "max_new_tokens": 4}
    return JobSettings.model_validate({**base, **changes})


def requests(*images: ImageRef, prompt: str | None = "What?") -> pa.Table:
    rows = [Request(id=f"r{i}", images=(image,), prompt=prompt) for i, image in enumerate(images)]
    return requests_to_table(rows).append_column("keep:n", pa.array(range(len(rows))))


GOOD, OTHER = ImageRef(data=picture(1)), ImageRef(data=picture(2))


@pytest.mark.parametrize(
    ("image", "stage", "type"),
    [
        pytest.param(ImageRef(), "read", "NoImage", id="null"),
        pytest.param(ImageRef(uri="/no/such.jpg"), "fetch", "FileNotFound", id="missing"),
        pytest.param(ImageRef(uri="http://127.0.0.1/x.jpg"), "fetch", "PrivateAddress", id="http"),
        pytest.param(ImageRef(data=picture(1)[:200]), "decode", "BrokenImage", id="truncated"),
        pytest.param(ImageRef(data=b"hello"), "decode", "NotAnImage", id="not an image"),
    ],
)
def test_a_bad_image_costs_nobody_else_their_sample(image: ImageRef, stage: str, type: str) -> None:
    table = Preprocess(settings())(requests(GOOD, image, GOOD))
    first, failed, last = table_to_samples(table)
    assert failed.prompts[0].failure is not None
    assert (failed.prompts[0].failure.stage, failed.prompts[0].failure.type) == (stage, type)
    assert first.prompts[0].failure is None
    assert last.prompts[0].failure is None
    assert table.column("keep:n").to_pylist() == [0, 1, 2]


def failures(samples: list[Sample]) -> list[tuple[str, str] | None]:
    """Stage and type of each row's first prompt."""
    found = [sample.prompts[0].failure for sample in samples]
    return [failure and (failure.stage, failure.type) for failure in found]


def naming(url: str) -> str:
    """Messages whose image is at that URL, any half of a surrogate pair escaped."""
    return json.dumps([{"role": "user", "content": [{"type": "image", "url": url}, {"type": "text", "text": "?"}]}])


@pytest.mark.parametrize(
    ("image", "failure"),
    [
        pytest.param(ImageRef(uri="x.pdf#page=" + "1" * 5000), None, id="page number"),
        pytest.param(ImageRef(uri="hf://"), None, id="no repository"),
        pytest.param(ImageRef(uri="/" + "a" * 2_000_000), None, id="long path"),
        pytest.param(ImageRef(uri="a" * 2_000_000), None, id="long name"),
        pytest.param(ImageRef(uri="a.pdf#page=" * 200_000), None, id="many pages"),
        pytest.param(ImageRef(uri="/\0/x.png"), ("fetch", "FetchFailed"), id="null character"),
        pytest.param(ImageRef(uri="data:" + "a" * 2_000_000), None, id="data without a comma"),
    ],
)
def test_no_uri_costs_more_than_its_row(image: ImageRef, failure: tuple[str, str] | None) -> None:
    good, bad, last = table_to_samples(Preprocess(settings())(requests(GOOD, image, GOOD)))
    assert failures([good, last]) == [None, None]
    (found,) = failures([bad])
    assert found is not None
    assert found[0] == "fetch"
    assert failure in (None, found)
    assert len(bad.prompts[0].failure.message) < 2100


@pytest.mark.parametrize("messages", [
    naming("\ud800.png"), '[' * 100_000, '[{"role": ' + "1" * 5000 + "}]", naming("a" * 10**6), "[null]", "[[]]", "{}",
    json.dumps([{"role": "user", "content": "?"}] * 50_000),
    json.dumps([{"role": ("user", "assistant")[i % 2], "content": "?"} for i in range(20_001)]),
    json.dumps([{"role": "user", "content": [{"type": "text", "text": "x"}] * 100_000}]),
    json.dumps([{"role": "user", "content": [{"type": "image", "url": "/large.bmp"}] * 250}]),
    json.dumps([{"role": "user", "content": "x" * 10**7}]),
])  # fmt: skip
def test_no_messages_cost_more_than_their_row(messages: str) -> None:
    rows = [Request(id=id, images=(), messages=text) for id, text in (("a", naming_nothing()), ("b", messages))]
    good, bad = rows_to_samples(*rows)
    assert failures([good]) == [None]
    assert failures([bad]) != [None]
    assert len(bad.prompts[0].failure.message) < 2100


def naming_nothing() -> str:
    return json.dumps([{"role": "user", "content": "Hello!"}])


def test_a_row_that_is_no_text_costs_itself_alone() -> None:
    table = requests(GOOD, OTHER, GOOD)
    broken = pa.array([b"What?", b"Wh\xff?", b"What?"], pa.binary()).view(pa.string())
    table = table.set_column(2, "prompt", broken)
    samples = table_to_samples(Preprocess(settings())(table))
    assert failures(samples) == [None, ("read", "UnicodeDecodeError"), None]
    assert [sample.id for sample in samples] == ["r0", "r1", "r2"]


def test_an_id_that_is_no_text_is_written_as_escapes() -> None:
    table = requests(GOOD, GOOD).set_column(0, "id", pa.array([b"a\xff", b"b"], pa.binary()).view(pa.string()))
    first, second = table_to_samples(Preprocess(settings())(table))
    assert (first.id, second.id) == ("a\\xff", "b")
    assert failures([first, second]) == [("read", "UnicodeDecodeError"), None]


class BuggyPreprocess(Preprocess):
    """Has a bug in what it does of each row, one that shows for `r1`."""

    bug: BaseException = ZeroDivisionError("a bug")

    def _load(self, fetched: Iterator[EncodedImage], room: Room) -> Images:
        images = super()._load(fetched, room)
        if images.image_sizes[0].width == 88:
            raise self.bug
        return images


class Traces(Nobody):
    """Keeps the tracebacks."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def keep(self, failure: Failure, trace: str) -> None:
        self.kept[f"{failure.stage}-{failure.type}"] = trace


def test_a_bug_costs_the_rows_in_which_it_shows_and_its_traceback_is_kept() -> None:
    traces, wide = Traces(), ImageRef(data=encoded(Image.new("RGB", (88, 20))))
    samples = table_to_samples(BuggyPreprocess(settings())(requests(GOOD, wide, GOOD), traces))
    assert failures(samples) == [None, ("decode", "ZeroDivisionError"), None]
    assert "in _load" in traces.kept["decode-ZeroDivisionError"]


class Clock(Nobody):
    """Knows whether the time of a row runs."""

    def __init__(self) -> None:
        self.runs, self.began = False, threading.Event()
        self._changed = threading.Condition()

    def begin(self, row: int, stage: Stage) -> None:
        with self._changed:
            self.runs = True
            self.began.set()

    def end(self) -> None:
        with self._changed:
            self.runs = False
            self._changed.notify_all()

    def rests(self) -> bool:
        """Return whether no row's time runs within 10 s."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.runs, timeout=10)


class SlowlyFetching(Preprocess):
    """Fetches `late.png` once another row's time, or an earlier image's, has begun, and notes whether it rests then."""

    clock: Clock
    rested: bool | None = None

    def _fetch(self, image: ImageRef, room: Room, watch: Watch) -> EncodedImage | Failure:
        if image.uri == "late.png":
            assert self.clock.began.wait(10)
            self.rested = self.clock.rests()
        return picture(1)


LATE = ImageRef(uri="late.png")


def test_no_time_of_a_row_runs_while_its_next_image_is_fetched() -> None:
    preprocess = SlowlyFetching(settings())
    preprocess.clock = Clock()
    row = Request(id="a", images=(GOOD, LATE, GOOD), prompt="What?")
    assert failures(table_to_samples(preprocess(requests_to_table([row]), preprocess.clock))) == [None]
    assert preprocess.rested


def test_no_time_of_a_row_runs_while_the_unit_before_is_prepared() -> None:
    preprocess = SlowlyFetching(settings())
    preprocess.clock = Clock()
    before = threading.Thread(target=preprocess, args=(requests(LATE),))
    before.start()
    rows = [Request(id=id, images=(GOOD,), messages=messages([IMAGE, "What?"])) for id in "ab"]
    assert failures(table_to_samples(preprocess(requests_to_table(rows), preprocess.clock))) == [None, None]
    before.join()
    assert preprocess.rested


def test_a_page_in_strips_is_rendered_while_its_time_runs() -> None:
    class Looking(Preprocess):
        def _load(self, fetched: Iterator[EncodedImage], room: Room) -> Images:
            images = super()._load(fetched, room)
            ran.append(clock.runs)
            return images

    clock, ran = Clock(), list[bool]()
    Looking(settings(strips="auto"))(requests(GOOD), clock)
    assert ran == [True]


def test_a_file_named_more_often_than_the_context_has_room_for_is_not_fetched() -> None:
    many = Request(id="many", images=(ImageRef(uri="/no/such.bmp"),) * 250, prompt="What?")
    assert failures(rows_to_samples(many)) == [("prompt", "PromptTooLong")]


def test_a_prompt_that_is_too_long_fails_alone() -> None:
    long = "x" * 2000
    (sample,) = table_to_samples(Preprocess(settings(prompt=(f"long={long}", "short=What?")))(requests(GOOD)))
    failures = {prompt.id: prompt.failure and prompt.failure.type for prompt in sample.prompts}
    assert failures == {"long": "PromptTooLong", "short": None}


def rows_to_samples(*rows: Request, **changes: object) -> list[Sample]:
    return table_to_samples(Preprocess(settings(**changes))(requests_to_table(rows)))


def messages(*contents: object) -> str:
    return json.dumps([{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)])


IMAGE = {"type": "image"}


def test_conversations_with_any_number_of_images_share_a_unit() -> None:
    said = {"type": "text", "text": "Same?"}
    samples = rows_to_samples(
        Request(id="two", images=(GOOD, OTHER), messages=messages([IMAGE, said, IMAGE])),
        Request(id="none", images=(), messages=messages("Hello!")),
        Request(id="null", images=(ImageRef(),), messages=messages("Hello!")),
        Request(id="three turns", images=(GOOD,), messages=messages([IMAGE, said], "No.", "Sure?")),
        Request(id="prompt", images=(GOOD, OTHER), prompt="What?"),
        Request(id="no image", images=(), prompt="What?"),
    )
    assert [sample.prompts[0].failure for sample in samples] == [None] * 6
    assert [len(sample.image_sizes) for sample in samples] == [2, 0, 0, 1, 2, 0]
    assert [sample.prompts[0].text for sample in samples] == ["Same?", "Hello!", "Hello!", "Sure?", "What?", "What?"]
    assert samples[0].prompts[0].num_image_tokens == np.count_nonzero(samples[0].prompts[0].token_ids == 2)


@pytest.mark.parametrize(
    ("request_", "stage", "type"),
    [
        pytest.param(
            Request(id="r", images=(GOOD, GOOD), messages=messages([IMAGE, "?"])), "prompt", "ImageCountMismatch"
        ),
        pytest.param(Request(id="r", images=(GOOD,), messages=messages("<image>")), "prompt", "ImageCountMismatch"),
        pytest.param(Request(id="r", images=(ImageRef(),), messages=messages([IMAGE])), "prompt", "ImageCountMismatch"),
        pytest.param(Request(id="r", images=(GOOD,), messages="oops"), "prompt", "BadMessages"),
        pytest.param(Request(id="r", images=(GOOD, ImageRef()), messages=messages([IMAGE, IMAGE])), "read", "NoImage"),
        pytest.param(Request(id="r", images=(ImageRef(data=b"x"),), messages=messages("?")), "decode", "NotAnImage"),
        pytest.param(Request(id="r", images=(GOOD,)), "prompt", "EmptyPrompt"),
    ],
)
def test_a_conversation_that_cannot_be_asked_is_a_row_with_a_reason(request_: Request, stage: str, type: str) -> None:
    (sample,) = rows_to_samples(request_)
    failure = sample.prompts[0].failure
    assert failure is not None
    assert (failure.stage, failure.type) == (stage, type)


def test_the_jobs_prompts_are_filled_row_by_row_and_a_null_is_an_error_of_its_own() -> None:
    full, empty = (
        Request(id=caption or "", images=(GOOD,), values={"caption": caption}) for caption in ("a dog", None)
    )
    samples = rows_to_samples(full, empty, prompt=("t=Translate {caption}.", "w=What {{is}} it?"))
    assert [prompt.text for prompt in samples[0].prompts] == ["Translate a dog.", "What {is} it?"]
    failed, answered = samples[1].prompts
    assert failed.text == "Translate {caption}."
    assert failed.failure == Failure(
        stage="prompt", type="NullInPrompt", message="the columns a prompt names must not be null, 'caption' is"
    )
    assert answered.failure is None


def test_a_jobs_system_message_is_every_rows_without_one() -> None:
    own = json.dumps([{"role": "system", "content": "Mine."}, {"role": "user", "content": "Hi"}])
    stage = Preprocess(settings(system="Ours.", chat_template="vicuna"))
    assert stage.render(Request(id="a", images=(), messages=own)) == "Mine. USER: Hi ASSISTANT:"
    assert stage.render(Request(id="a", images=(GOOD,), prompt="Hi")) == "Ours. USER: <image>\nHi ASSISTANT:"


def test_a_jobs_system_message_is_run_once_for_all_its_rows_and_strips() -> None:
    asked = settings(system="You read what is printed and nothing else.", chat_template="vicuna", strips="auto")
    samples = Preprocess(asked)(requests(GOOD, ImageRef(data=page_of_lines(20)), OTHER))
    generate = Generate(asked, lambda _: Engine.load(str(checkpoint()), settings=EngineSettings(dtype="float32")))
    assert {answer.status for answer in table_to_answers(generate(samples))} == {"ok"}
    num_prompts = sum(len(sample.prompts) for sample in table_to_samples(samples))
    assert num_prompts > 3
    assert generate.statistics().num_prefix_tokens == 48 * num_prompts  # of 50: <s>, the message, ` USER: `


def test_kept_columns_follow_their_row_to_each_of_its_answers() -> None:
    asked = settings(prompt=("a=A?", "b=B?"))
    samples = Preprocess(asked)(requests(GOOD, ImageRef(), GOOD))
    table = final_answers(Generate(asked, load_echo_engine)(samples))
    assert table.column_names == [*ANSWER_SCHEMA.names, "n"]
    assert list(zip(table["id"].to_pylist(), table["n"].to_pylist(), strict=True)) == [
        (f"r{n}", n) for n in range(3) for _ in "ab"
    ]


def test_a_failed_row_never_reaches_the_model_but_has_its_answer() -> None:
    samples = Preprocess(settings())(requests(GOOD, ImageRef(data=b"hello")))
    good, bad = table_to_answers(Generate(settings(), load_echo_engine)(samples))
    assert good.text == "What? 61x77"
    assert (bad.status, bad.error_stage, bad.error_type) == ("error", "decode", "NotAnImage")


class ForgetfulEngine(EchoEngine):
    """Leaves the last answer out."""

    def generate(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        yield from list(super().generate(samples))[:-1]


def test_an_engine_that_loses_a_row_ends_the_run() -> None:
    samples = Preprocess(settings())(requests(GOOD, GOOD))
    with pytest.raises(RuntimeError, match="1 answers for 2 prompts"):
        Generate(settings(), lambda _: ForgetfulEngine())(samples)


def page_of_lines(num_lines: int) -> bytes:
    """An encoded page of black bars, a line of text each."""
    page = Image.new("L", (400, 40 + 40 * num_lines), 255)
    for line in range(num_lines):
        page.paste(0, (20, 30 + 40 * line, 300, 50 + 40 * line))
    return encoded(page)


def test_a_page_in_strips_is_one_row_at_every_stage() -> None:
    pages = requests(ImageRef(data=page_of_lines(20)), GOOD, ImageRef(data=b"broken"))
    samples = Preprocess(settings(strips="auto", prompt=("a=Read.", "b=Count.")))(pages)
    assert samples.num_rows == 3
    page, small, broken = table_to_samples(samples)
    assert len(page.strips) > 2
    assert len(page.prompts) == 2 * len(page.strips)
    assert len(page.tiles) == page.tiles_per_image[0] == sum(strip.num_tiles for strip in page.strips)
    assert (small.strips, len(small.prompts), len(broken.prompts)) == ((), 2, 2)
    answers = Generate(settings(), load_echo_engine)(samples)
    assert answers.column("id").to_pylist() == [id for id in pages.column("id").to_pylist() for _ in range(2)]
    assert answers.column("keep:n").to_pylist() == [0, 0, 1, 1, 2, 2]
    first = table_to_answers(answers)[0]
    assert (first.image_width, first.image_height) == (400, 840)
    assert [strip.top for strip in first.strips or ()] == [strip.top for strip in page.strips]
    lost = Generate(settings(), load_echo_engine).fail_rows(
        samples, Failure(stage="generate", type="WorkerDied", message="it died")
    )
    assert lost.column("prompt_id").to_pylist() == ["a", "b"] * 3


def test_without_strips_a_page_is_seen_whole() -> None:
    (sample,) = table_to_samples(Preprocess(settings())(requests(ImageRef(data=page_of_lines(20)))))
    assert (sample.strips, len(sample.prompts)) == ((), 1)


def test_every_draw_of_every_prompt_is_an_answer_of_its_own() -> None:
    asked = settings(prompt=("a=A?", "b=B?"), num_answers=3, temperature=1.0)
    samples = Preprocess(asked)(requests(GOOD, ImageRef(), GOOD))
    table = final_answers(Generate(asked, load_echo_engine)(samples), asked)
    assert table.column_names == [*ANSWER_SCHEMA.names, "n", "answer_id"]
    assert table["prompt_id"].to_pylist() == ["a", "a.2", "a.3", "b", "b.2", "b.3"] * 3
    assert tuple(table["prompt_id"].to_pylist()[:6]) == asked.prompt_ids
    assert table["answer_id"].to_pylist() == [1, 2, 3] * 6
    assert table["n"].to_pylist() == [n for n in range(3) for _ in range(6)]


def test_what_a_job_asks_stands_in_columns_of_its_answers() -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"]}
    asked = settings(json_schema=schema, parse=True, logprobs=2, max_new_tokens=40)
    engine = Engine.load(str(checkpoint()), settings=EngineSettings(dtype="float32", sampling=sampling_of(asked)))
    table = final_answers(Generate(asked, lambda _: engine)(Preprocess(asked)(requests(GOOD, ImageRef()))), asked)
    assert (table.schema.names[-3:], table.schema.types[-2:]) == (
        ["n", "logprobs", "parsed"],
        [type for _, type in answer_columns(asked)],
    )
    good, bad = table.to_pylist()
    assert good["parsed"] == json.loads(good["text"])
    assert len(good["logprobs"]) == good["num_generated_tokens"]
    assert [len(step["top"]) for step in good["logprobs"]] == [2] * len(good["logprobs"])
    assert (bad["status"], bad["parsed"], bad["logprobs"]) == ("error", None, None)


def test_a_row_follows_the_schema_in_its_column_and_one_that_is_no_good_fails_alone() -> None:
    asked = settings(json_schema_column="form", choices="yes,no", max_new_tokens=20)
    forms = ['{"enum": [1, 22]}', None, '{"not": {}}']
    rows = [Request(id=f"r{i}", images=(GOOD,), prompt="What?", values={"form": form}) for i, form in enumerate(forms)]
    engine = Engine.load(str(checkpoint()), settings=EngineSettings(dtype="float32", sampling=sampling_of(asked)))
    own, jobs, bad = table_to_answers(Generate(asked, lambda _: engine)(Preprocess(asked)(requests_to_table(rows))))
    assert own.text in ("1", "22")
    assert jobs.text in ("yes", "no")
    assert (bad.error_stage, bad.error_type) == ("prompt", "FormRefused")


@pytest.mark.parametrize("template", ["vicuna", "mistral", "checkpoint"])
def test_an_answer_begins_with_its_prefix_where_the_template_has_answers(template: str) -> None:
    asked = settings(chat_template=template, answer_prefix="It is")
    begun, plain = (Preprocess(one)(requests(GOOD)) for one in (asked, asked.model_copy(update={"answer_prefix": ""})))
    (with_it,), (without,) = table_to_samples(begun)[0].prompts, table_to_samples(plain)[0].prompts
    assert with_it.token_ids[: len(without.token_ids)].tolist() == without.token_ids.tolist()
    blank = len(with_it.token_ids) - len(without.token_ids) - len("It is")
    assert (blank, with_it.num_prefix) == ((0, 5) if template == "checkpoint" else (1, 6))
    answer = table_to_answers(Generate(asked, load_echo_engine)(begun))[0]
    assert answer.status == "ok"


def test_a_prefix_that_would_play_a_turn_is_refused() -> None:
    with pytest.raises(Refused, match="--answer-prefix must hold no special token"):
        Preprocess(settings(answer_prefix="</s> <user>"))


def test_rows_with_fewer_image_tokens_are_prepared_and_answered_alike() -> None:
    asked, whole = settings(image_tokens=0.4, prompt=("a=A?", "b=B?")), settings(prompt=("a=A?", "b=B?"))
    engine = Engine.load(str(checkpoint()), settings=engine_settings(asked, on_gpu=False))
    answers = table_to_answers(Generate(asked, lambda _: engine)(Preprocess(asked)(requests(GOOD, OTHER))))
    samples = table_to_samples(Preprocess(whole)(requests(GOOD, OTHER)))
    before = [prompt.num_image_tokens for sample in samples for prompt in sample.prompts]
    assert {answer.status for answer in answers} == {"ok"}
    assert [one.num_image_tokens for one in answers] == [int(0.4 * num) for num in before]
