"""vLLM on the very workloads of `benchmarks.engine`: the same images, questions and forced answer lengths.

    python -m benchmarks.peers write build/peers --workload caption ocr --images 1024     in our environment
    python benchmarks/peers.py vllm build/peers --workload caption ocr                    in vLLM's own, with pyarrow
    python benchmarks/peers.py vllm build/peers --workload caption --quantize fp8
    python benchmarks/peers.py vllm build/peers --workload caption --tensor-parallel 2
    python -m benchmarks.engine --workload caption ocr --images 1024 --rounds 1           ours, beside it

`write` puts a checkpoint of a real shape without weights there, which vLLM fills with its own (`load_format="dummy"`),
and a table a workload. One card, one after the other; images/s count from the encoded images on. The first process of
vLLM compiles; its start is printed apart. The last line of stdout is one JSON object.
"""

# mypy: disable-error-code="import-not-found"
# vLLM lies in an environment of its own, with its own torch: nothing else of this project is imported there.

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

if TYPE_CHECKING:
    import vllm

WARM_UP = 64  # images
LONGEST = 4608  # tokens of prompt and answer
FORMAT = "[INST] <image>\n{} [/INST]"  # llava-v1.6-mistral-7b's


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line names."""
    flags = _flags(arguments)
    if flags.command == "write":
        write(flags.folder, flags.shape, flags.workload, flags.images)
    else:
        sys.stdout.write(json.dumps(run_vllm(flags)) + "\n")


def write(folder: Path, shape: str, workloads: Sequence[str], num_images: int) -> None:
    """Write the checkpoint's folder and the workloads."""
    from benchmarks.random_model import write_model  # here, as vLLM's environment has none of this
    from benchmarks.workload import make_items

    folder.mkdir(parents=True, exist_ok=True)
    model = write_model(shape, folder / "model")
    model.config.architectures = ["LlavaNextForConditionalGeneration"]  # vLLM chooses its own by that
    model.config.save_pretrained(folder / "model")
    for workload in workloads:
        rows = [
            {"image": item.image, "prompt": FORMAT.format(text), "num_new_tokens": item.num_new_tokens}
            for item in make_items(workload, num_images)
            for text in item.texts
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{workload}.parquet")


def run_vllm(flags: argparse.Namespace) -> dict[str, Any]:
    """Answer the workloads with vLLM, and return the rates."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    began = time.perf_counter()
    import vllm

    engine = vllm.LLM(
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
    found: dict[str, Any] = {"vllm": vllm.__version__, "ready_s": time.perf_counter() - began, **_named(flags)}
    _say(f"vLLM {vllm.__version__}, ready after {found['ready_s']:.0f} s")
    for workload in flags.workload:
        rows = pq.read_table(flags.folder / f"{workload}.parquet").to_pylist()
        _generate(engine, rows[:WARM_UP], first=len(rows))
        seconds = _generate(engine, rows)
        found[workload] = {"rows": len(rows), "seconds": seconds, "answers_per_s": len(rows) / seconds}
        _say(f"{workload}: {len(rows)} rows, {seconds:.1f} s, {len(rows) / seconds:.2f} answers/s")
    return found


def _longest(model: Path) -> int:
    """Return the tokens of a row at most: ours, or the network's own limit."""
    config = json.loads((model / "config.json").read_text())
    return min(LONGEST, int(config["text_config"]["max_position_embeddings"]))


def _decode(encoded: bytes, number: int) -> Image.Image:
    """Decode an image, and set one pixel to its number: the workload has few images, and vLLM would know them again."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    image.putpixel((0, 0), (number % 256, number // 256 % 256, number // 65536))
    return image


def _generate(engine: "vllm.LLM", rows: Sequence[dict[str, Any]], first: int = 0) -> float:
    """Return the seconds from encoded images to the last answer."""
    from vllm import SamplingParams

    began = time.perf_counter()
    asked = [
        {"prompt": row["prompt"], "multi_modal_data": {"image": _decode(row["image"], number)}}
        for number, row in enumerate(rows, first)
    ]
    lengths = [row["num_new_tokens"] for row in rows]
    # The random network says any token of the vocabulary, the tokenizer has few: nothing is put into words.
    sampling = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for n in lengths]
    outputs = engine.generate(asked, sampling, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths
    return time.perf_counter() - began


def _named(flags: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(flags, name) for name in ("quantize", "kv_cache_dtype", "tensor_parallel", "prefix_caching")}


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["write", "vllm"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="mistral-7b")
    parser.add_argument("--workload", nargs="+", default=["caption"])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--quantize", help="vLLM's: fp8")
    parser.add_argument("--kv-cache-dtype", default="auto", help="vLLM's: fp8")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--prefix-caching", action="store_true", help="for several questions about an image")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
