"""Reading: how a checkpoint is asked for the text in a picture, in words that it was trained on."""

from pipeline.preprocess.facts import read_facts
from pipeline.preprocess.formats import published_format
from pipeline.weights.hub import locate

DEMO = "What does the text say?"
# The question above the synthetic pages (SynthDoG, English) in the instruction data of LLaVA-NeXT. What they answered
# there has no line breaks.
SYNTHDOG = (
    "OCR this image section by section, from top to bottom, and left to right. Do not insert line breaks in the output "
    "text. If a word is split due to a line break in the image, use a space instead."
)
OTHER = "Transcribe all the text in this image, line by line from top to bottom, and answer with nothing else."


def reading_prompt(model: str, revision: str | None) -> str:
    """Return the question for text of a model: the demo, a published checkpoint or one trained from it, or any
    other."""
    if model == "demo":
        return DEMO
    return SYNTHDOG if published_format(read_facts(locate(model), revision).text) else OTHER
