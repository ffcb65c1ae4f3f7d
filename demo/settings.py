"""What a training run is asked for."""

from dataclasses import dataclass
from pathlib import Path

from demo.checkpoint import DEMO, Shape

FONTS = Path("/usr/share/fonts")
WORDS = tuple(
    Path(f"/usr/share/dict/scowl/{kind}-words.{size}") for kind in ("english", "american") for size in (10, 20, 35)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """One run. `minutes` is the whole plan: a resumed run goes on in it where the saved one stopped."""

    out: Path
    minutes: float = 20.0
    resume: Path | None = None
    start: Path | None = None  # a checkpoint to start from; its shape must be `shape`
    stop_after: float | None = None  # minutes of this process; the plan's end where None
    most_steps: int | None = None
    fonts: Path = FONTS
    words: tuple[Path, ...] = WORDS
    shape: Shape = DEMO
    tiles_a_batch: int = 600
    peak_rate: float = 1.5e-3
    workers: int = 14
    device: str = "cuda"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.minutes <= 0:
            raise ValueError(f"minutes must be above 0, got {self.minutes}")
        if self.tiles_a_batch < 5:
            raise ValueError(f"tiles_a_batch must be at least 5, the tiles of one picture, got {self.tiles_a_batch}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")
