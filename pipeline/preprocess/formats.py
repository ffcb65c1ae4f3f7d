"""Formats: how each published checkpoint was trained to see a conversation, and which format a checkpoint has."""

from dataclasses import dataclass

from pipeline.preprocess.conversation import Conversation, Part

IMAGE = "<image>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """The strings around what is said, `{}` in each being where it stands."""

    system: str  # the system message, where there is one
    user: str
    answer: str  # an earlier answer, with the token that ends it
    answer_start: str  # what the model's own answer follows; `answer` goes on from it
    default_system: str = ""
    system_inside: bool = False  # the system message opens the first user turn
    markers: tuple[str, ...] = ()  # tokens of their own, which the vocabulary must have

    @property
    def end(self) -> str:
        """Return the token that ends an answer, which is the last of the markers."""
        return self.markers[-1]


_VICUNA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_LLAMA3_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
# LLaVA-NeXT's documentation opens the llama3 user turn with <|start_header_id|> twice. Llama-3 was never trained on
# that, neither was the checkpoint: ours has it once.
_LLAMA3 = ChatFormat(
    system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
    answer="{}<|eot_id|>",
    answer_start="<|start_header_id|>assistant<|end_header_id|>\n\n",
    default_system=_LLAMA3_SYSTEM,
    markers=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)
_QWEN = ChatFormat(
    system="<|im_start|>system\n{}<|im_end|>\n",
    user="<|im_start|>user\n{}<|im_end|>\n",
    answer="{}<|im_end|>\n",
    answer_start="<|im_start|>assistant\n",
    default_system="You are a helpful assistant.",
    markers=("<|im_start|>", "<|im_end|>"),
)

FORMATS: dict[str, ChatFormat] = {
    "mistral": ChatFormat(
        system="<<SYS>>\n{}\n<</SYS>>\n\n",
        user="[INST] {} [/INST]",
        answer=" {}</s> ",
        answer_start="",
        system_inside=True,
        markers=("</s>",),
    ),
    "vicuna": ChatFormat(
        system="{} ",
        user="USER: {} ",
        answer=" {}</s>",
        answer_start="ASSISTANT:",
        default_system=_VICUNA_SYSTEM,
        markers=("</s>",),
    ),
    "34b": ChatFormat(  # no line break after <|im_end|>, other than Qwen's: so it was trained
        system="<|im_start|>system\n{}<|im_end|>",
        user="<|im_start|>user\n{}<|im_end|>",
        answer="{}<|im_end|>",
        answer_start="<|im_start|>assistant\n",
        default_system="Answer the questions.",
        markers=("<|im_start|>", "<|im_end|>"),
    ),
    "llama3-8b": _LLAMA3,
    "72b": _QWEN,
    "110b": _QWEN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFacts:
    """Return what tells the text backbones of the published checkpoints apart."""

    backbone: str  # model_type of the text config: mistral, llama, qwen2, ...
    width: int
    layers: int
    vocabulary: int  # rows of the embedding table, padding included


# Backbone, width, layers, thousands of embeddings (the tables are padded to one multiple or another) -> format. All
# seven differ in them, and nothing smaller or larger that calls itself llava_next has been seen with the same.
_PUBLISHED = {
    ("mistral", 4096, 32, 32): "mistral",
    ("llama", 4096, 32, 32): "vicuna",  # 7b
    ("llama", 5120, 40, 32): "vicuna",  # 13b
    ("llama", 7168, 60, 64): "34b",
    ("llama", 4096, 32, 128): "llama3-8b",
    ("qwen2", 8192, 80, 152): "72b",  # 110b too, which is wider only where it does not show here
}


def published_format(text: TextFacts) -> str | None:
    """Return the format of the published checkpoint with this backbone; None where there is none."""
    return _PUBLISHED.get((text.backbone, text.width, text.layers, text.vocabulary // 1000))


def render_format(format: ChatFormat, conversation: Conversation) -> str:
    """Return the conversation as one string, up to where the answer starts."""
    system = format.default_system if conversation.system is None else conversation.system
    opening = _put(format.system, system) if system else ""
    rendered = "" if format.system_inside else opening
    for number, turn in enumerate(conversation.turns):
        said = join_parts(turn.parts)
        if turn.role == "user":
            inside = opening if format.system_inside and number == 0 else ""
            rendered += _put(format.user, inside + said) + format.answer_start
        else:
            rendered += _put(format.answer, said)
    return rendered


def join_parts(parts: tuple[Part, ...]) -> str:
    """Return texts and images in their order, a line for each image: `<image>`, line break, question."""
    joined = ""
    for number, part in enumerate(parts):
        after_image = number > 0 and parts[number - 1] is None
        breaks = after_image or (part is None and joined != "" and not joined.endswith("\n"))
        joined += ("\n" if breaks else "") + (IMAGE if part is None else part)
    return joined


def _put(pattern: str, text: str) -> str:
    before, _, after = pattern.partition("{}")
    return before + text + after
