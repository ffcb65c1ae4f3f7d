"""Prompts on the families' real vocabularies: the ids are transformers' own, whatever the conversation."""

import functools
import json
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoProcessor, LlavaNextProcessor

from pipeline.preprocess.conversation import Conversation, ask, parse_messages
from pipeline.preprocess.geometry import num_image_tokens
from pipeline.preprocess.image import ImageLimits
from pipeline.preprocess.preprocessor import Chat, Images, Preprocessor
from schemas.sample import Size
from tests.chats import ONE_QUESTION, QUESTION
from tests.images import noise
from tests.published import PUBLISHED, write_config
from tests.tiny import new_folder
from tests.vocabularies import mistral_pieces, tokenizer_of

pytestmark = pytest.mark.timeout(600)  # the first run fetches

FAMILIES = {one.format: one for one in PUBLISHED if one.format != "110b"}  # whose vocabulary is 72b's
TEXTS = (
    QUESTION,
    "  two spaces,\n\nlines\tand a tab ",
    "Größe? 日本語 🙂 e\u0301 \u200b",
    "1 < 2 > 0, a<b, [INST] it's 12345.67 USER: x",
    "<image> </s> <|im_end|> <|eot_id|> <s>",
)
YI_MARKS = ("<|im_start|>", "<|im_end|>")
PICTURES = (noise(500, 375), noise(90, 1000))
IMAGE = {"type": "image"}

each_family = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def folder_of(family: str) -> Path:
    """The checkpoint with its real config and tokenizer, without weights."""
    folder = new_folder(family)
    write_config(FAMILIES[family], folder, shrunk=False, tokenizer=tokenizer_of(FAMILIES[family]))
    return folder


@functools.cache
def preprocessor(family: str, template: str = "auto") -> Preprocessor:
    return Preprocessor.load(str(folder_of(family)), None, ImageLimits(), 16, Chat(template=template))


@functools.cache
def processor(family: str) -> LlavaNextProcessor:
    return AutoProcessor.from_pretrained(folder_of(family), backend="pil")


def images(pictures: tuple[Image.Image, ...], family: str) -> Images:
    """What is known of pictures without tiling them."""
    sizes = tuple(Size(picture.width, picture.height) for picture in pictures)
    counts = tuple(num_image_tokens(size, preprocessor(family).facts.anyres) for size in sizes)
    return Images(image_sizes=sizes, tiles_per_image=(0,) * len(sizes), image_tokens=counts)


def ids_of(family: str, conversation: Conversation) -> list[int]:
    shown = images(PICTURES[: conversation.num_images], family)
    ids: list[int] = preprocessor(family).build_conversation("p", conversation, shown).token_ids.tolist()
    return ids


def expected_ids(family: str, rendered: str, num_images: int) -> list[int]:
    pictures = list(PICTURES[:num_images]) or None
    ids: list[int] = processor(family)(images=pictures, text=rendered, return_tensors="np")["input_ids"][0].tolist()
    return ids


def talk(*contents: object) -> Conversation:
    roles = ("user", "assistant")
    return parse_messages(json.dumps([{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]))


@each_family
def test_the_documentations_string_has_the_ids_of_transformers_processor(family: str) -> None:
    assert ids_of(family, ask(QUESTION, 1)) == expected_ids(family, ONE_QUESTION[family], 1)


@each_family
@pytest.mark.parametrize("num_images", [0, 2])
def test_any_text_has_the_ids_of_transformers_processor(family: str, num_images: int) -> None:
    for text in TEXTS:
        rendered = preprocessor(family).render(ask(text, num_images))
        assert ids_of(family, ask(text, num_images)) == expected_ids(family, rendered, num_images)


@each_family
def test_a_conversation_has_the_ids_of_transformers_processor(family: str) -> None:
    said = [{"type": "text", "text": "And this"}, IMAGE, {"type": "text", "text": "?"}]
    conversation = talk([IMAGE, {"type": "text", "text": TEXTS[1]}], TEXTS[2], said)
    ids = ids_of(family, conversation)
    assert ids == expected_ids(family, preprocessor(family).render(conversation), 2)
    assert ids.count(FAMILIES[family].special[FAMILIES[family].eos]) == _ends(family)


@each_family
def test_the_beginning_token_comes_once_and_only_where_the_tokenizer_has_one(family: str) -> None:
    published, ids = FAMILIES[family], ids_of(family, ask("<s> <|begin_of_text|> Why?", 1))
    begun = [] if published.bos is None else [published.special[published.bos]]
    assert ids[: len(begun)] == begun
    assert all(ids.count(id) == 1 for id in begun)


@each_family
def test_what_a_text_spells_out_is_never_a_special_token(family: str) -> None:
    typed, plain = (ids_of(family, ask(text, 0)) for text in (TEXTS[4], QUESTION))
    special = FAMILIES[family].special.values()
    assert [id for id in typed if id in special] == [id for id in plain if id in special]


@each_family
def test_the_image_token_stands_where_the_config_says_and_before_padding(family: str) -> None:
    vocabulary = processor(family).tokenizer.get_vocab()
    expected = FAMILIES[family].special
    assert {token: vocabulary[token] for token in expected} == expected
    assert processor(family).image_token_id == FAMILIES[family].image_token_id


@pytest.mark.parametrize(
    ("family", "text", "ids"),
    [
        pytest.param("mistral", "Hello world", [1, 22557, 1526], id="mistral"),
        pytest.param("vicuna", "A chat between a curious", [1, 319, 13563, 1546, 263, 12758], id="llama-2"),
        pytest.param("72b", "<|im_start|>", [151644], id="qwen"),
    ],
)
def test_the_vocabularies_are_the_real_ones(family: str, text: str, ids: list[int]) -> None:
    assert processor(family).tokenizer(text).input_ids == ids


def test_the_mistral_vocabulary_is_mistrals_own() -> None:
    pieces, vocabulary = mistral_pieces(), processor("mistral").tokenizer.get_vocab()
    assert len(pieces) == 32000
    assert [vocabulary[piece] for piece in pieces] == list(range(32000))


def test_the_yi_vocabulary_has_its_marks_where_the_model_was_trained_on_them() -> None:
    tokenizer = processor("34b").tokenizer
    pieces = ["<unk>", "<|startoftext|>", "<|endoftext|>", "<|Human|>", "<|Assistant|>", "<|System|>", *YI_MARKS]
    assert tokenizer.convert_ids_to_tokens(list(range(8))) == pieces
    assert sorted(tokenizer.get_vocab().values()) == list(range(64001))
    question = ids_of("34b", ask("你好 Yi", 0))
    assert tokenizer.decode(question).endswith("user\n你好 Yi<|im_end|><|im_start|>assistant\n")
    assert (question.count(6), question.count(7)) == (3, 2)


def _ends(family: str) -> int:
    """End-of-turn tokens in a conversation of three turns: of the answer alone, or of all and the system message."""
    return 1 if family in ("mistral", "vicuna") else 4


@pytest.mark.parametrize(
    ("family", "num_common"), [("mistral", 4), ("vicuna", 34), ("34b", 11), ("llama3-8b", 45), ("72b", 14)]
)
def test_all_prompts_begin_with_the_same_ids_whatever_they_ask(family: str, num_common: int) -> None:
    texts = [*TEXTS[:4], "x", " y", "0", "USER", "."]
    asked = [(ask(text, num_images), num_images) for text in texts for num_images in range(3)]
    built = [preprocessor(family).build_conversation("p", one, images(PICTURES[:num], family)) for one, num in asked]
    assert {prompt.num_common for prompt in built} == {num_common}
    assert len({prompt.token_ids[:num_common].tobytes() for prompt in built}) == 1
