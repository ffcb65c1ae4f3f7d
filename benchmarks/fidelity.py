"""What fewer bits cost the bundled model's answers to its held-out pictures, product by product.

    python -m benchmarks.fidelity                                   on a GPU, in bfloat16
    python -m benchmarks.fidelity --device cpu --every 30           a try without one

Every variant beside the whole network in the same dtype: `changed` is the share of answers that are another text,
`nats` how far the mean log-probability of a token moved where they are not, `right` the share of answers to questions
that are exactly the truth, `CER` the character error rate of readings. The same in float32 shows what the dtype alone
changes. The last line of stdout is one JSON object.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import get_args

import torch

from demo.heldout import Item, read_items
from demo.score import MODEL, character_error_rate, to_samples
from pipeline.engine.engine import Engine
from pipeline.engine.kernels.linear import Fp8Linear
from pipeline.engine.network.load import load_model
from schemas.answer import Answer
from schemas.engine import Dtype, EngineSettings, KvCacheDtype
from schemas.sample import Sample

PRODUCTS = ("qkv", "out", "gate_up", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Which numbers are in fewer bits."""

    name: str
    fp8: tuple[str, ...] = ()  # of PRODUCTS
    kv_cache_dtype: KvCacheDtype | None = None


WHOLE = Variant(name="whole")
VARIANTS = (
    *(Variant(name=f"fp8 {product}", fp8=(product,)) for product in PRODUCTS),
    Variant(name="fp8", fp8=PRODUCTS),
    Variant(name="int8 keys, values", kv_cache_dtype="int8"),
    Variant(name="both", fp8=PRODUCTS, kv_cache_dtype="int8"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a variant changed; shares from 0 to 1."""

    variant: str
    changed: float
    nats: float
    right: float
    character_error_rate: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask all variants the same questions."""
    flags = _flags(arguments)
    items = read_items()[:: flags.every]
    samples = to_samples(MODEL, items)
    settings = EngineSettings(dtype=flags.dtype, device=flags.device, batch_size=32)
    exact = ask(Variant(name="float32"), replace(settings, dtype="float32"), samples)
    whole = ask(WHOLE, settings, samples)
    costs = [compare("float32", items, exact, whole), compare(WHOLE.name, items, whole, whole)]
    for variant in VARIANTS:
        costs.append(compare(variant.name, items, ask(variant, settings, samples), whole))
        sys.stderr.write(f"{costs[-1]}\n")
    sys.stderr.write("\n".join(table(costs)) + "\n")
    summary = {"dtype": flags.dtype, "items": len(items), "costs": [asdict(cost) for cost in costs]}
    sys.stdout.write(json.dumps(summary) + "\n")


def ask(variant: Variant, settings: EngineSettings, samples: Sequence[Sample]) -> list[Answer]:
    """Return the variant's answers, in the order of the samples."""
    settings = replace(settings, kv_cache_dtype=variant.kv_cache_dtype)
    model = load_model(str(MODEL), settings)
    for block in model.decoder.blocks:
        for product in variant.fp8:
            setattr(block, product, Fp8Linear(getattr(block, product)))
    engine = Engine(model, settings)
    try:
        return list(engine.generate(samples))
    finally:
        engine.close()


def compare(name: str, items: Sequence[Item], found: Sequence[Answer], whole: Sequence[Answer]) -> Cost:
    """Compare answers with those of the whole network, and with the truth."""
    pairs = list(zip(found, whole, strict=True))
    same = [abs((a.mean_logprob or 0) - (b.mean_logprob or 0)) for a, b in pairs if a.text == b.text]
    told = list(zip(items, found, strict=True))
    questions = [item.truth == a.text for item, a in told if not item.kind.startswith("read")]
    return Cost(
        variant=name,
        changed=1 - len(same) / len(pairs),
        nats=statistics.mean(same) if same else float("nan"),
        right=sum(questions) / max(1, len(questions)),
        character_error_rate=character_error_rate([(i.truth, a.text or "") for i, a in told if i.kind == "read"]),
    )


def table(costs: Sequence[Cost]) -> list[str]:
    """Write a line a variant."""
    lines = [f"{'':18} changed     nats   right     CER"]
    for cost in costs:
        lines.append(
            f"{cost.variant:18} {cost.changed:7.1%} {cost.nats:8.4f} {cost.right:7.1%} {cost.character_error_rate:7.2%}"
        )
    return lines


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth of the 300 items")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
