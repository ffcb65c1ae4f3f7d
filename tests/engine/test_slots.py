"""What makes the engine fast, counted: refilled slots, shared prefills, little padding."""

import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.engine.engine import Engine
from pipeline.engine.model_runner import ModelRunner
from pipeline.engine.network.memory import PREFILL_TOKENS
from pipeline.engine.prefill_group import PrefillGroup, group_sequences
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.sequence import Status
from pipeline.engine.shapes import resolve_shapes
from pipeline.engine.waiting import WaitingQueue
from pipeline.preprocess.geometry import Anyres, num_image_tokens
from schemas.engine import EngineSettings
from schemas.sample import Prompt, Sample, Size
from tests.engine.groups import sequence_of
from tests.engine.oracle import FP32, Question, mixed_questions, picture

TEXTS = ("What is this?", "Where is it?", "How many of them are there, and of which colour?", "Why?")
CAPTION_SIZES = (
    *((640, 480), (640, 480), (640, 427), (480, 640), (500, 375), (1024, 768), (1200, 630), (800, 800)),
    *((427, 640), (336, 336), (1600, 400), (300, 900)),
)
GRIDS = tuple(Size(336 * w, 336 * h) for h, w in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)))


def test_a_slot_is_taken_again_as_soon_as_its_row_has_ended(oracle) -> None:
    limits = (1, 12, 2, 11, 3, 10, 4, 12, 1, 9)
    questions = [Question(id=str(i), max_new_tokens=(n,)) for i, n in enumerate(limits)]
    engine = oracle.engine(replace(FP32, slots=2))
    answers = list(engine.generate(oracle.sample(q) for q in questions))
    assert [a.num_generated_tokens for a in answers] == list(limits)
    assert [a.text for a in answers] == [oracle.spelled(q) for q in questions]
    in_pairs = sum(max(pair) for pair in zip(limits[::2], limits[1::2], strict=True))
    steps = engine.statistics().num_decode_steps
    assert sum(limits) / 2 - len(limits) <= steps < in_pairs - len(limits)


def test_prompts_about_one_image_cost_one_prefill_of_it(each_oracle) -> None:
    settings = replace(FP32, slots=4, prefill_tokens=2048)
    together = Question(id="a", images=(picture((100, 80)),), texts=TEXTS)
    engine = each_oracle.engine(settings)
    answers = list(engine.generate([each_oracle.sample(together)]))
    assert [a.text for a in answers] == [each_oracle.spelled(together, i) for i in range(4)]
    statistics = engine.statistics()
    assert (statistics.num_prefills, statistics.num_images, statistics.num_rows) == (1, 1, 4)


def test_prompts_that_share_nothing_share_the_image_features(oracle) -> None:
    sample = oracle.sample(Question(id="a", images=(picture((100, 80)),), texts=TEXTS[:2]))
    engine = oracle.engine(replace(FP32, slots=1))
    assert len(list(engine.generate([sample]))) == 2
    assert (engine.statistics().num_prefills, engine.statistics().num_images) == (2, 1)


def test_reading_tokens_a_step_late_as_on_a_gpu_changes_no_answer(oracle) -> None:
    questions = [replace(q, max_new_tokens=(3 + i,)) for i, q in enumerate(mixed_questions())]
    settings = replace(FP32, slots=3)
    shapes = resolve_shapes(oracle.model, settings)
    scheduler = Scheduler(ModelRunner(oracle.model, settings.sampling, shapes), shapes, on_gpu=True)
    sequences = []
    for sample in map(oracle.sample, questions):
        (prompt,) = sample.prompts
        sequences.append(sequence_of(sample, prompt, oracle.model))
        scheduler.add(group_sequences(sequences[-1:], 3, oracle.model.image_token_id))
    while not scheduler.is_idle:
        scheduler.step(more_to_come=False)
    assert {sequence.status for sequence in sequences} == {Status.FINISHED}
    assert [sequence.answer().text for sequence in sequences] == [oracle.spelled(q) for q in questions]


def test_statistics_add_up(oracle) -> None:
    questions = mixed_questions(max_new_tokens=(5,))
    samples = [oracle.sample(q) for q in questions]
    engine = oracle.engine(replace(FP32, slots=3, tiles_per_call=4, prefill_tokens=600))
    answers = list(engine.generate(samples))
    found = engine.statistics()
    assert found.num_rows == len(answers)
    assert found.num_images == len(samples)
    assert found.num_prompt_tokens == sum(a.num_prompt_tokens for a in answers)
    assert found.num_answer_tokens == sum(a.num_generated_tokens for a in answers)
    assert found.num_out_of_memory == 0
    assert 0 < found.prefill_padding < 1
    assert 0 <= found.tile_padding < 1
    assert found.slot_use == pytest.approx((found.num_answer_tokens - 7) / (3 * found.num_decode_steps))
    assert min(found.vision_s, found.prefill_s, found.decode_s) > 0
    assert found.waiting_s >= 0


def test_an_engine_that_did_nothing_counts_nothing(oracle) -> None:
    found = oracle.engine().statistics()
    assert (found.num_rows, found.prefill_padding, found.slot_use, found.decode_s) == (0, 0, 0, 0)


def caption_group(i: int, rng: np.random.Generator, anyres: Anyres) -> PrefillGroup:
    size = Size(*CAPTION_SIZES[rng.integers(len(CAPTION_SIZES))])
    ids = np.ones(num_image_tokens(size, anyres) + 18, np.int32)
    prompt = Prompt(id="p", text="?", token_ids=ids, max_new_tokens=98)
    (group,) = group_sequences([sequence_of(Sample(id=str(i), prompts=(prompt,)), prompt)], 1, 0)
    return group


def test_the_caption_workload_wastes_less_than_a_percent_of_its_prefill() -> None:
    """Real lengths of 2,000 images through the look-ahead window, a GPU's prefill size."""
    rng, anyres = np.random.default_rng(0), Anyres(tile=336, patch=14, grids=GRIDS)
    bucket = EngineSettings().bucket
    queue = WaitingQueue(num_padded_tokens=PREFILL_TOKENS, bucket=bucket, tiles_per_call=40, max_sequences=64)
    used = padded = read = 0
    while read < 2000 or len(queue):
        while read < 2000 and len(queue) < EngineSettings().look_ahead - 256:
            queue.add([caption_group(read, rng, anyres)])
            read += 1
        taken = queue.take(256, short=True)
        assert taken is not None
        used += sum(group.num_shared for group in taken)
        padded += PREFILL_TOKENS
    assert 0 < 1 - used / padded < 0.01


def test_an_error_of_the_device_reaches_every_caller_and_ends_the_engine(oracle) -> None:
    calls = Counter[str]()

    def fail(module, inputs):
        calls["asked"] += 1
        raise ZeroDivisionError("a broken kernel")

    engine, seen = oracle.engine(), []

    def ask() -> None:
        try:
            list(engine.generate([oracle.sample(Question(id="a"))]))
        except RuntimeError as error:
            seen.append(error)

    handle = oracle.model.decoder.blocks[0].before_attention.register_forward_pre_hook(fail)
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.remove()
    ask()
    assert calls["asked"] == 1
    assert [type(error.__cause__) for error in seen] == [ZeroDivisionError] * 4


def test_closing_wakes_those_who_wait(oracle) -> None:
    engine = oracle.engine()
    entered = threading.Event()

    def endless():
        yield oracle.sample(Question(id="a", max_new_tokens=(1,)))
        entered.set()
        while True:
            yield oracle.sample(Question(id="b", max_new_tokens=(200,)))

    errors = []

    def ask() -> None:
        try:
            for _ in engine.generate(endless()):
                pass
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    entered.wait()
    engine.close()
    thread.join()
    assert errors == ["the engine answers nothing any more: the engine is closed"]
    engine.close()
    assert engine.statistics().num_out_of_memory == 0  # what was counted outlives the weights


def test_a_caller_that_goes_away_leaves_the_slots_to_others(oracle) -> None:
    engine = oracle.engine(replace(FP32, slots=2, look_ahead=4))
    abandoned = engine.generate([oracle.sample(Question(id=str(i), max_new_tokens=(1 + 300 * i,))) for i in range(3)])
    next(abandoned)
    abandoned.close()
    question = Question(id="a")
    assert [a.text for a in engine.generate([oracle.sample(question)])] == [oracle.spelled(question)]
    assert engine.statistics().num_rows <= 2


def test_overflow_in_one_row_spoils_no_later_row_of_its_slot(oracle) -> None:
    """Its keys are not finite either: masked entries of a page are multiplied by zero, which a NaN survives."""
    question, spoiled = Question(id="a", max_new_tokens=(20,)), []

    def spoil(module, inputs, output):
        if not spoiled:
            spoiled.append(True)
            return output * torch.nan
        return output

    engine = Engine(oracle.model, replace(FP32, slots=1, capacity=512))
    handle = oracle.model.decoder.blocks[0].before_attention.register_forward_hook(spoil)
    long = oracle.sample(Question(id="long", texts=("Why? " * 40,), max_new_tokens=(3,)))
    answers = list(engine.generate([long, oracle.sample(question)]))
    handle.remove()
    assert [(a.status, a.error_type) for a in answers] == [("error", "NotFinite"), ("ok", None)]
    assert answers[1].text == oracle.spelled(question)
