"""Rows take pages by their own need: none is ever promised twice, and where they are shows in no answer."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.engine.engine import Engine
from pipeline.engine.kernels.pages import EMPTY, IDLE, NUM_SPARE, PAGE, Allocation, Allocator, num_pages
from pipeline.engine.kernels.stored import Stored
from pipeline.engine.kernels.torch_attention import paged
from pipeline.engine.model_runner import ModelRunner
from pipeline.engine.prefill_group import group_sequences
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.shapes import resolve_shapes
from schemas.engine import BLOCK, EngineSettings
from tests.engine import prefixes
from tests.engine.groups import sequence_of
from tests.engine.oracle import FP32, Question, mixed_questions, picture
from tests.engine.prefixes import TEXTS, exact

ROOMY = EngineSettings(slots=6, prefill_tokens=1024, bucket=32, tiles_per_call=8, look_ahead=64)  # 96 pages
TIGHT = replace(ROOMY, pages=22)  # the longest prompts below need 16 of them
LONG = Question(id="long", texts=("Why? " * 190,), max_new_tokens=(40,))


def samples_of(oracle):
    """Rows of one prompt and of three, of 1 to 16 pages."""
    questions = mixed_questions(max_new_tokens=(9,))
    questions += [replace(q, id=f"{q.id}-thrice", texts=TEXTS, max_new_tokens=(70,)) for q in questions[:4]]
    return [oracle.sample(question) for question in [*questions[:5], LONG, *questions[5:]]]


@pytest.mark.parametrize(("tokens", "pages"), [(1, 1), (PAGE, 1), (PAGE + 1, 2), (5 * PAGE, 5)])
def test_a_row_takes_the_pages_that_its_tokens_fill(tokens, pages) -> None:
    allocator = Allocator(num_slots=2, num_pages=8)
    assert len(allocator.allocate(tokens).pages) == num_pages(tokens) == pages
    assert (allocator.num_free_slots, allocator.num_free_pages) == (1, 8 - pages)


@pytest.mark.parametrize("seed", range(10))
def test_no_page_is_two_rows_at_once_and_all_come_back(seed) -> None:
    draw, taken = random.Random(seed), []
    allocator = Allocator(num_slots=20, num_pages=40)
    for _ in range(200):
        tokens = draw.randint(1, 600)
        if allocator.num_free_slots and num_pages(tokens) <= allocator.num_free_pages:
            taken.append(allocator.allocate(tokens))
        elif taken:
            allocator.free([taken.pop(draw.randrange(len(taken)))])
        pages = [page for one in taken for page in one.pages]
        assert len(set(pages)) == len(pages) == 40 - allocator.num_free_pages
        assert all(NUM_SPARE <= page < NUM_SPARE + 40 for page in pages)
        assert len({one.slot for one in taken}) == len(taken) == 20 - allocator.num_free_slots
    allocator.free(taken)
    assert (allocator.num_free_slots, allocator.num_free_pages) == (20, 40)


def test_pages_far_apart_serve_a_long_row_as_well_as_neighbours() -> None:
    allocator = Allocator(num_slots=11, num_pages=10)
    short = [allocator.allocate(PAGE) for _ in range(10)]
    allocator.free(short[::2])
    long = allocator.allocate(5 * PAGE)
    assert sorted(long.pages) == sorted(page for one in short[::2] for page in one.pages)
    assert allocator.num_free_pages == 0


def test_cache_indices_follow_the_pages_in_their_order() -> None:
    own = Allocation(slot=0, pages=(7, 3, 9))
    assert own.cache_indices(PAGE - 2, PAGE + 2).tolist() == [8 * PAGE - 2, 8 * PAGE - 1, 3 * PAGE, 3 * PAGE + 1]
    assert own.page_table(5).tolist() == [7, 3, 9, EMPTY, EMPTY]
    held = torch.arange(10 * PAGE, dtype=torch.float32)[None, :, None]
    found = paged(Stored(numbers=held), torch.from_numpy(own.page_table(3)), torch.float32)
    assert found.flatten().tolist() == own.cache_indices(0, 3 * PAGE).tolist()


@pytest.fixture(scope="module")
def expected(oracle):
    return exact(Engine(oracle.model, ROOMY), samples_of(oracle))


def test_with_few_pages_every_row_has_its_answer_and_its_numbers(oracle, expected) -> None:
    engine = Engine(oracle.model, TIGHT)
    assert exact(engine, samples_of(oracle)) == expected
    assert exact(engine, samples_of(oracle)[::-1]) == expected  # in pages that others have had
    found = engine.statistics()
    assert found.num_busy_slot_steps / found.num_decode_steps < 5 < TIGHT.slots


def test_a_long_row_beside_short_ones_is_the_row_alone(oracle, expected) -> None:
    (alone,) = exact(Engine(oracle.model, TIGHT), [oracle.sample(LONG)]).items()
    assert expected[alone[0]] == alone[1]
    assert len(oracle.sample(LONG).prompts[0].token_ids) > 14 * PAGE


def test_a_row_ends_within_its_last_page_and_writes_into_no_other(oracle) -> None:
    """Rows of every length round a page's end, side by side in neighbouring pages."""
    prompt = oracle.sample(Question(id="a")).prompts[0].token_ids
    limits = range(2 * PAGE - len(prompt) - 3, 2 * PAGE - len(prompt) + 4)
    questions = [Question(id=str(n), max_new_tokens=(n,)) for n in limits]
    answers = list(Engine(oracle.model, replace(FP32, slots=7)).generate(map(oracle.sample, questions)))
    assert [a.num_generated_tokens for a in answers] == list(limits)
    assert [a.text for a in answers] == [oracle.spelled(q) for q in questions]


def test_behind_a_prefix_few_pages_change_no_bit(oracle) -> None:
    samples = prefixes.mixed_samples(oracle)
    tight = Engine(oracle.model, replace(TIGHT, bucket=BLOCK))
    assert exact(tight, samples) == exact(
        Engine(oracle.model, replace(ROOMY, bucket=BLOCK)), prefixes.unshared(samples)
    )


def test_prompts_about_one_image_that_do_not_fit_together_are_answered_one_after_the_other(oracle) -> None:
    question = Question(id="a", images=(picture((100, 80)),), texts=("What?", "Where?", "Why?", "Who?"))
    pages = 2 * num_pages(len(oracle.sample(question).prompts[0].token_ids) + 12)
    engine = Engine(oracle.model, replace(FP32, slots=4, pages=pages, capacity=pages * PAGE, prefill_tokens=2048))
    assert [a.text for a in engine.generate([oracle.sample(question)])] == [
        oracle.spelled(question, i) for i in range(4)
    ]
    assert (engine.statistics().num_prefills, engine.statistics().num_images) == (2, 1)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_running_sequences_never_hold_more_than_there_is_and_give_all_of_it_back(oracle, on_gpu) -> None:
    shapes = resolve_shapes(oracle.model, TIGHT)
    scheduler, sequences = Scheduler(ModelRunner(oracle.model, TIGHT.sampling, shapes), shapes, on_gpu=on_gpu), []
    for sample in map(oracle.sample, mixed_questions(max_new_tokens=(20,)) * 3 + [LONG]):
        sequences.append(sequence_of(sample, sample.prompts[0], oracle.model))
        scheduler.add(group_sequences(sequences[-1:], 3, oracle.model.image_token_id))
    most = 0
    while not scheduler.is_idle:
        scheduler.step(more_to_come=False)
        pages = Counter(page for one in scheduler.running for page in one.allocation.pages)
        most = max(most, pages.total())
        assert all(count == 1 for count in pages.values())
        assert pages.total() + scheduler.num_free_pages == shapes.pages
    assert all(sequence.is_done for sequence in sequences)
    assert shapes.pages // 2 < most <= shapes.pages
    assert scheduler.num_free_pages == shapes.pages


def test_idle_slots_leave_every_page_that_a_row_can_have_as_it_is(oracle) -> None:
    shapes = resolve_shapes(oracle.model, TIGHT)
    runner = ModelRunner(oracle.model, TIGHT.sampling, shapes)
    for _ in range(2):
        runner.decode({}, 0, read_due=lambda: None)
    changed = {
        page
        for layer in range(oracle.model.decoder.shape.layers)
        for held in runner.cache.of(layer)
        for page in np.flatnonzero(held.numbers.unflatten(1, (-1, PAGE)).abs().sum((0, 2, 3)).numpy())
    }
    assert changed == {IDLE}


@pytest.mark.parametrize("pages", [1, 15])
def test_pages_that_hold_no_row_are_refused(oracle, pages) -> None:
    with pytest.raises(
        ValueError, match=f"pages must be at least 16, which hold the 1024 tokens of a row, got {pages}"
    ):
        resolve_shapes(oracle.model, replace(FP32, pages=pages))


def test_pages_beyond_what_the_slots_can_need_are_not_had(oracle) -> None:
    assert resolve_shapes(oracle.model, replace(FP32, slots=3, capacity=100, pages=500)).pages == 3 * 2
