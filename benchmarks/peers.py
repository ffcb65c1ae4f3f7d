"""vLLM and lmdeploy on the very workloads of `benchmarks.engine`: the same images, questions and forced answer lengths.

    python -m benchmarks.peers write build/peers --workload caption ocr --images 1024     in our environment
    python benchmarks/peers.py vllm build/peers --workload caption ocr                    in vLLM's own, with pyarrow
    python benchmarks/peers.py vllm build/peers --workload caption --quantize fp8
    python benchmarks/peers.py vllm build/peers --workload caption --tensor-parallel 2
    python -m benchmarks.peers write build/peers --workload caption ocr --weights         for lmdeploy: on the card
    python benchmarks/peers.py lmdeploy build/peers --workload caption ocr                in lmdeploy's own, likewise
    python -m benchmarks.engine --workload caption ocr --images 1024 --rounds 1           ours, beside it

`write` puts a checkpoint of a real shape without weights there, which vLLM fills with its own (`load_format="dummy"`),
and a table a workload; with `--weights` random ones too (15 GB for mistral-7b's shape), as lmdeploy can only load some.
One card, one after the other; images/s count from the encoded images on. The first process of vLLM and of lmdeploy
compiles; its start is printed apart. The last line of stdout is one JSON object.

lmdeploy 0.18 cannot prepare an image for LLaVA-NeXT with any transformers that it admits (it builds a network as 4.51
has it, to count an image's tokens): those two methods give way to transformers' own processor, in lmdeploy's threads.
"""

# mypy: disable-error-code="import-not-found"
# Each engine lies in an environment of its own, with its own torch: nothing else of this project is imported there.

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

if TYPE_CHECKING:
    from lmdeploy.vl.model.llava_next import LlavaNextVisionModel
    from transformers import LlavaNextConfig

WARM_UP = 64  # images
LONGEST = 4608  # tokens of prompt and answer
FORMAT = "[INST] <image>\n{} [/INST]"  # llava-v1.6-mistral-7b's
PUBLISHED = (  # how the names of weights begin in transformers' network of today, and in a checkpoint
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", ""),
)
Row = dict[str, Any]


class Peer(Protocol):
    """An engine that has started."""

    version: str

    def generate(self, rows: Sequence[Row], images: Sequence[Image.Image]) -> list[int]:
        """Answer the rows, and return the number of tokens of each answer."""
        ...


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line names."""
    flags = _flags(arguments)
    if flags.command == "write":
        write(flags)
    else:
        sys.stdout.write(json.dumps(measure(flags)) + "\n")


def write(flags: argparse.Namespace) -> None:
    """Write the checkpoint's folder and the workloads."""
    from benchmarks.random_model import write_model  # here, as the peers' environments have none of this
    from benchmarks.workload import make_items

    flags.folder.mkdir(parents=True, exist_ok=True)
    model = write_model(flags.shape, flags.folder / "model")
    inner = model.config.get_text_config()
    model.config.architectures = ["LlavaNextForConditionalGeneration"]  # the peers choose their own by these
    inner.architectures = [type(inner).__name__.replace("Config", "ForCausalLM")]
    model.config.save_pretrained(flags.folder / "model")
    if flags.weights:
        _write_weights(model.config, flags.folder / "model")
    for workload in flags.workload:
        rows = [
            {"image": item.image, "prompt": FORMAT.format(text), "num_new_tokens": item.num_new_tokens}
            for item in make_items(workload, flags.images)
            for text in item.texts
        ]
        pq.write_table(pa.Table.from_pylist(rows), flags.folder / f"{workload}.parquet")


def _write_weights(config: "LlavaNextConfig", folder: Path) -> None:
    """Write random weights under the names of the published checkpoints, the only ones that lmdeploy knows."""
    import torch
    from safetensors.torch import save_file

    from benchmarks.random_model import build_random
    from schemas.engine import EngineSettings

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = build_random(config, EngineSettings(dtype="bfloat16", device=device))
    save_file({published(name): tensor for name, tensor in network.state_dict().items()}, folder / "model.safetensors")


def published(name: str) -> str:
    """Return what a weight is called in the published checkpoints."""
    today, then = next(pair for pair in PUBLISHED if name.startswith(pair[0]))
    return then + name.removeprefix(today)


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Answer the workloads with a peer, and return the rates."""
    began = time.perf_counter()
    peer: Peer = Vllm(flags) if flags.command == "vllm" else Lmdeploy(flags)
    found: dict[str, Any] = {flags.command: peer.version, "ready_s": time.perf_counter() - began, **_named(flags)}
    _say(f"{flags.command} {peer.version}, ready after {found['ready_s']:.0f} s")
    for workload in flags.workload:
        rows = pq.read_table(flags.folder / f"{workload}.parquet").to_pylist()
        _answer(peer, rows[:WARM_UP], first=len(rows))
        seconds = _answer(peer, rows)
        found[workload] = {"rows": len(rows), "seconds": seconds, "answers_per_s": len(rows) / seconds}
        _say(f"{workload}: {len(rows)} rows, {seconds:.1f} s, {len(rows) / seconds:.2f} answers/s")
    return found


def _answer(peer: Peer, rows: Sequence[Row], first: int = 0) -> float:
    """Return the seconds from encoded images to the last answer."""
    began = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(_decode, [row["image"] for row in rows], range(first, first + len(rows))))
    lengths = peer.generate(rows, images)
    assert lengths == [row["num_new_tokens"] for row in rows]
    return time.perf_counter() - began


def _longest(model: Path) -> int:
    """Return the tokens of a row at most: ours, or the network's own limit."""
    config = json.loads((model / "config.json").read_text())
    return min(LONGEST, int(config["text_config"]["max_position_embeddings"]))


def _decode(encoded: bytes, number: int) -> Image.Image:
    """Decode an image, and set one pixel to its number: the workload has few images, and vLLM would know them again."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    image.putpixel((0, 0), (number % 256, number // 256 % 256, number // 65536))
    return image


class Vllm:
    """vLLM's engine for many prompts at once."""

    def __init__(self, flags: argparse.Namespace) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        import vllm

        self.version: str = vllm.__version__
        self.engine: vllm.LLM = vllm.LLM(
            model=str(flags.folder / "model"),
            load_format="dummy",
            dtype="bfloat16",
            quantization=flags.quantize,
            kv_cache_dtype=flags.kv_cache_dtype,
            tensor_parallel_size=flags.tensor_parallel,
            max_model_len=_longest(flags.folder / "model"),
            gpu_memory_utilization=0.9,
            enable_prefix_caching=flags.prefix_caching,
            limit_mm_per_prompt={"image": 1},
            mm_processor_cache_gb=24,
            seed=0,
        )

    def generate(self, rows: Sequence[Row], images: Sequence[Image.Image]) -> list[int]:
        """Answer the rows, and return the number of tokens of each answer."""
        from vllm import SamplingParams

        asked = [
            {"prompt": row["prompt"], "multi_modal_data": {"image": image}}
            for row, image in zip(rows, images, strict=True)
        ]
        lengths = [row["num_new_tokens"] for row in rows]
        # The random network says any token of the vocabulary, the tokenizer has few: nothing is put into words.
        sampling = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for n in lengths]
        return [len(one.outputs[0].token_ids) for one in self.engine.generate(asked, sampling, use_tqdm=False)]


class Lmdeploy:
    """lmdeploy's PyTorch engine behind its pipeline."""

    def __init__(self, flags: argparse.Namespace) -> None:
        import lmdeploy

        _mend_front_end()
        self.version: str = lmdeploy.__version__
        self.engine: lmdeploy.Pipeline = lmdeploy.pipeline(
            str(flags.folder / "model"),
            backend_config=lmdeploy.PytorchEngineConfig(
                dtype="bfloat16",
                model_format=flags.quantize,
                quant_policy=16 if flags.kv_cache_dtype == "fp8" else 0,
                tp=flags.tensor_parallel,
                session_len=_longest(flags.folder / "model"),
                max_batch_size=flags.batch,
                max_prefill_token_num=flags.prefill_tokens,
                cache_max_entry_count=0.9,
                enable_prefix_caching=flags.prefix_caching,
                enable_metrics=False,
            ),
            chat_template_config=lmdeploy.ChatTemplateConfig("mistral"),
        )
        self.engine.async_engine.vl_encoder.executor = ThreadPoolExecutor(flags.threads)
        # Nothing is put into words here either.
        self.engine.async_engine.tokenizer.detokenize_incrementally = lambda _ids, state, **_: ("", state)

    def generate(self, rows: Sequence[Row], images: Sequence[Image.Image]) -> list[int]:
        """Answer the rows, and return the number of tokens of each answer."""
        from lmdeploy import GenerationConfig

        before, after = FORMAT.split("{}")  # the template puts them there again
        texts = [row["prompt"].removeprefix(before).removesuffix(after) for row in rows]
        settings = [GenerationConfig(max_new_tokens=row["num_new_tokens"], ignore_eos=True) for row in rows]
        answers = self.engine.infer(list(zip(texts, images, strict=True)), gen_config=settings)
        failed = next((one.error_message for one in answers if one.finish_reason == "error"), None)
        assert failed is None, failed
        return [one.generate_token_len for one in answers]


def _mend_front_end() -> None:
    """Let lmdeploy 0.18 prepare an image with transformers 5."""
    from lmdeploy.vl.model.llava_next import LlavaNextVisionModel

    LlavaNextVisionModel.build_preprocessor = _build_front_end
    LlavaNextVisionModel.preprocess = _preprocess


def _build_front_end(front_end: "LlavaNextVisionModel", trust_remote_code: bool = False) -> None:
    from transformers import AutoProcessor

    front_end.processor = AutoProcessor.from_pretrained(front_end.model_path, trust_remote_code=trust_remote_code)


def _preprocess(front_end: "LlavaNextVisionModel", messages: list[Row]) -> list[Row]:
    items = front_end.collect_multimodal_items(messages)
    return [*messages, {"role": "preprocess", "content": [_prepare(front_end, image) for _, image, _ in items]}]


def _prepare(front_end: "LlavaNextVisionModel", image: Image.Image) -> Row:
    """Return an image's tiles and the number of its tokens, as lmdeploy's engine takes them."""
    found = front_end.processor(text="<image>", images=image, return_tensors="pt")
    return {
        "pixel_values": found["pixel_values"].to(front_end.mm_feature_dtype),
        "image_sizes": found["image_sizes"],
        "image_tokens": int((found["input_ids"] == front_end.processor.image_token_id).sum()),
        "image_token_id": front_end.image_token_id,
    }


def _named(flags: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(flags, name) for name in ("quantize", "kv_cache_dtype", "tensor_parallel", "prefix_caching")}


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["write", "vllm", "lmdeploy"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="mistral-7b")
    parser.add_argument("--workload", nargs="+", default=["caption"])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--weights", action="store_true", help="write random weights too")
    parser.add_argument("--quantize", help="the peer's: fp8")
    parser.add_argument("--kv-cache-dtype", default="auto", help="the peer's: fp8")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--prefix-caching", action="store_true", help="for several questions about an image")
    parser.add_argument("--batch", type=int, default=256, help="lmdeploy's largest batch")
    parser.add_argument("--prefill-tokens", type=int, default=8192, help="of one prefill of lmdeploy's")
    parser.add_argument(
        "--threads", type=int, default=8, help="that prepare images in lmdeploy, which has 1 of its own"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
