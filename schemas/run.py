"""Run: the keys of run.json and manifest.json, so that a damaged or foreign one is named before anything trusts it."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

STATE = ".run"  # the folder within a run's in which all is kept that is not an answer


class _Checked(BaseModel):
    """Keys that a later release adds are nobody's mistake; those that are read must be there, in their types."""

    model_config = ConfigDict(extra="allow", strict=True)


class _TypeCount(_Checked):
    stage: str
    type: str
    rows: int = Field(ge=0)


class _AnswerFile(_Checked):
    path: str = Field(pattern=r"^answers/[^/]+\.parquet$")  # below the folder, whatever the file says
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Retry(_Checked):
    history: str = Field(pattern=r"^(attempts/retry-[0-9]+\.parquet|\.run/attempts/retry-[0-9]+\.pq)$")
    rows: int = Field(ge=0)
    sha256: str | None = None  # of the history; the first release did not state it


class _Change(_Checked):
    """Settings that a run or a retry has gone on with instead of those it began with."""

    fingerprint_before: str | None = None
    retry: int | None = None
    settings: dict[str, Any] = {}


class _Scores(_Checked):
    path: str = Field(pattern=r"^(scores\.parquet|\.run/scores\.pq)$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rows: int = Field(ge=0)
    errors: int = Field(ge=0)
    without_truth: int = Field(ge=0)
    normalisation: str
    cer: float | None
    wer: float | None


class _Timings(_Checked):
    seconds: float = Field(0, ge=0, allow_inf_nan=False)


class _Mended(_Checked):
    files: list[str]
    rows: int = Field(ge=0)


class RunState(_Checked):
    """run.json: what was asked, and the name that everything in the folder carries."""

    run: str = Field(min_length=1)
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    identity: dict[str, Any]
    settings: dict[str, Any]
    changes: list[_Change]
    settled: dict[str, str] = {}
    units_sealed: bool = True


class ManifestState(_Checked):
    """manifest.json: what is in a complete folder."""

    run: str = Field(min_length=1)
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    rows: int = Field(ge=0)
    ok: int = Field(ge=0)
    errors: int = Field(ge=0)
    errors_by_type: list[_TypeCount]
    files: list[_AnswerFile]
    retries: list[_Retry]
    timings: _Timings = _Timings()
    mended: list[_Mended] = []
    scores: _Scores | None = None
