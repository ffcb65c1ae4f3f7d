import functools
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoProcessor, PreTrainedTokenizerFast

from pipeline.preprocess.conversation import ask
from pipeline.preprocess.facts import read_facts
from pipeline.preprocess.files import load_processor
from pipeline.preprocess.own import render_jinja
from pipeline.preprocess.parts import parts_of
from pipeline.preprocess.prompt import PromptBuilder, TokenLimits, expand
from schemas.errors import RowError
from tests.images import noise
from tests.tiny import checkpoint

BACKBONES = ("llama", "mistral", "qwen2")
TEXTS = [
    "Describe the image in more details.",
    "  two spaces,\n\nlines\tand a tab ",
    "Größe? 日本語 🙂 e\u0301 \u200b",
    "1 < 2 > 0 and a<b [INST] <unknown> </ s>",
    "x",
]
IMAGE = 2  # the id of <image> in the tiny checkpoints
BOS = 0


@functools.cache
def builder(backbone: str = "llama") -> PromptBuilder:
    return load(checkpoint(backbone))


def load(folder: Path) -> PromptBuilder:
    return PromptBuilder.of(parts_of(load_processor(str(folder), None), read_facts(str(folder), None)))


def ids_of(prompts: PromptBuilder, text: str, image_tokens: list[int], max_new_tokens: int = 1) -> np.ndarray:
    return prompts.token_ids(ask(text, len(image_tokens)), image_tokens, max_new_tokens)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("text", TEXTS)
def test_the_ids_are_those_of_transformers_processor(backbone, text) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint(backbone), backend="pil")
    for images in ([], [noise(90, 60)], [noise(90, 60), noise(30, 200)]):
        rendered = builder(backbone).render(ask(text, len(images)))
        expected = processor(images=images or None, text=rendered, return_tensors="np")["input_ids"][0]
        counts = [processor._get_number_of_features(image.height, image.width, 56, 56) - 1 for image in images]
        assert ids_of(builder(backbone), text, counts).tolist() == expected.tolist()


def test_the_checkpoints_chat_template_is_rendered_up_to_the_answer() -> None:
    assert builder().render(ask("What is this?", 2)) == "<user><image>\n<image>\nWhat is this?<assistant>"
    assert builder().render(ask("What is this?", 0)) == "<user>What is this?<assistant>"


def test_what_every_row_asks_is_tokenised_once_and_has_each_rows_own_images() -> None:
    known = load(checkpoint())
    for counts in ([3], [5], [], [2, 4], [3]):
        ids = ids_of(known, "What is it?", counts)
        assert ids.tolist() == ids_of(load(checkpoint()), "What is it?", counts).tolist()
        ids[:] = 0  # it is the caller's


def test_every_image_is_as_long_as_its_count() -> None:
    ids = ids_of(builder(), "x", [3, 5])
    runs = "".join("i" if id == IMAGE else "." for id in ids)
    assert runs == "..iii.iiiii..."
    assert ids.dtype == np.int32


@pytest.mark.parametrize(
    ("typed", "broken"),
    [
        ("a <image> b", "a < image> b"),
        ("</s><s>", "< /s>< s>"),
        ("<<image>image>", "<< image>image>"),
        ("<ima<image>ge>", "<ima< image>ge>"),
        ("<user>hi<assistant>", "< user>hi< assistant>"),
    ],
)
def test_a_special_token_that_somebody_typed_is_broken(typed, broken) -> None:
    assert builder().render(ask(typed, 1)) == f"<user><image>\n{broken}<assistant>"
    ids = ids_of(builder(), typed, [7])
    special = [id for id in ids.tolist() if id < 6]
    assert special == [BOS, 4, *[IMAGE] * 7, 5]


def test_a_special_token_that_only_normalising_brings_out_fails_the_row() -> None:
    with pytest.raises(RowError, match="SpecialTokenInPrompt: .* it does with <image>"):
        ids_of(word_builder(), "see ＜image＞", [4])


def test_an_unknown_letter_does_not_fail_the_row() -> None:
    ids = ids_of(word_builder(), "see 日本", [4])
    assert ids.tolist().count(IMAGE) == 4


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_tokenizer_that_marks_word_starts_gives_the_ids_of_the_repeated_literal(scheme) -> None:
    words = word_builder(scheme=scheme)
    rendered = words.render(ask("see the image", 2)).replace("<image>", "<image>" * 3)
    assert ids_of(words, "see the image", [3, 3]).tolist() == word_tokenizer(scheme)(rendered).input_ids


def test_the_beginning_token_comes_once_even_if_the_template_writes_it() -> None:
    words = word_builder(template="<s>USER: {% for p in messages[0].content %}{{ p.text or '<image>' }}{% endfor %}")
    assert ids_of(words, "see", [2]).tolist().count(BOS) == 1
    assert ids_of(builder(), "see", [2]).tolist().count(BOS) == 1


def test_a_prompt_must_fit_the_context_with_its_answer() -> None:
    fits = 1024 - len(ids_of(builder(), "x", [900]))
    ids_of(builder(), "x", [900], fits)
    message = f"PromptTooLong: 5 text tokens \\+ 900 image tokens \\+ {fits + 1} new tokens = 1025 tokens, .* is 1024"
    with pytest.raises(RowError, match=message):
        ids_of(builder(), "x", [900], fits + 1)


@pytest.mark.parametrize("text", ["", "  ", "\n\t", "\u3000"])
def test_a_blank_prompt_fails_the_row(text) -> None:
    with pytest.raises(RowError, match="EmptyPrompt"):
        ids_of(builder(), text, [7])


def test_a_template_that_does_not_show_every_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must write one image token \(id 2\) an image, got 1 for 0 images"):
        word_builder(template="<image>{{ messages[0].content[-1].text }}")


def test_a_checkpoint_without_a_chat_template_is_refused(tmp_path) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint(), backend="pil")
    processor.chat_template = processor.tokenizer.chat_template = None
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must have a chat template"):
        PromptBuilder.of(parts_of(load_processor(str(tmp_path), None), read_facts(str(checkpoint()), None)))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="must have a tokenizer and a processor config"):
        load_processor(str(tmp_path), None)


def test_expanding_repeats_the_kth_image_to_the_kth_count() -> None:
    ids = np.array([5, 9, 9, 6, 9], np.int32)
    assert expand(ids, 9, [1, 3, 2]).tolist() == [5, 9, 9, 9, 9, 6, 9, 9]


def word_tokenizer(scheme: str = "first") -> PreTrainedTokenizerFast:
    """A tokenizer that marks where words start, as SentencePiece does; what it does not know becomes <unk>."""
    pieces = ["<s>", "</s>", "<image>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyzUSER:", "▁see", "▁the"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(len(pieces[0]))) for piece in pieces], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=True) for token in ("<s>", "</s>", "<image>", "<unk>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", additional_special_tokens=[]
    )


def word_builder(
    scheme: str = "first",
    template: str = "USER: {% for p in messages[0].content %}{{ p.text or '<image>' }}{% endfor %} ASSISTANT:",
) -> PromptBuilder:
    tokenizer = word_tokenizer(scheme)
    return PromptBuilder(
        tokenizer=tokenizer,
        limits=TokenLimits(image_token_id=IMAGE, context=1024, rows=len(tokenizer)),
        render=lambda conversation: render_jinja(tokenizer, template, conversation),
    )
