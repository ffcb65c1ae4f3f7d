import pytest

from pipeline.execution.executor import ErrorBudgetSpent, check_budget
from pipeline.run_folder.units import Counts, ErrorType
from schemas.job import JobSettings


def settings(**changes: object) -> JobSettings:
    return JobSettings.model_validate({"input": ("a",), "output": "o", **changes})


def counts(fetch: int, decode: int, rows: int = 200) -> Counts:
    types = (
        ErrorType(stage="decode", type="NotAnImage", rows=decode),
        ErrorType(stage="fetch", type="Gone", rows=fetch),
    )
    return Counts(rows=rows, errors=fetch + decode, by_type=types)


@pytest.mark.parametrize(
    ("fetch", "decode", "rates", "flag"),
    [
        pytest.param(1, 1, {}, None, id="both within one budget"),
        pytest.param(2, 1, {}, "--max-error-rate 0.01", id="both over one budget"),
        pytest.param(60, 2, {"max_fetch_error_rate": 0.3}, None, id="each within its own"),
        pytest.param(61, 0, {"max_fetch_error_rate": 0.3}, "--max-fetch-error-rate 0.3", id="dead URLs over theirs"),
        pytest.param(0, 3, {"max_fetch_error_rate": 0.3}, "--max-error-rate 0.01", id="the others over theirs"),
        pytest.param(1, 0, {"max_fetch_error_rate": 0.0, "max_error_rate": 1.0}, "--max-fetch-error-rate 0", id="none"),
    ],
)
def test_failures_of_fetching_can_have_a_budget_of_their_own(
    fetch: int, decode: int, rates: dict[str, float], flag: str | None
) -> None:
    if flag is None:
        check_budget(counts(fetch, decode), settings(**rates))
        return
    with pytest.raises(ErrorBudgetSpent, match=f"answers failed, more than {flag} allows: "):
        check_budget(counts(fetch, decode), settings(**rates))


def test_no_budget_is_spent_before_a_hundred_rows() -> None:
    check_budget(counts(99, 0, rows=99), settings(max_fetch_error_rate=0.0))
