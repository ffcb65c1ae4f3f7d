"""Placement: how many actors each pool has on a cluster as it is, and what is said while there are fewer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from schemas.errors import Refused
from schemas.job import JobSettings
from schemas.wording import counted

_MOST_SLOTS = 256  # of an engine whose slots are what a card's memory holds
_TWO_PREFILLS = 32  # prompts with a picture
_FEWEST_UNITS = 3  # one is read back while the last rows of another are generated
MOST_UNITS = 32  # threads of an actor


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Numbers of actors that the pools begin with; 0 models on GPUs is one on the CPU."""

    preprocess_workers: int
    models: int
    gpus_per_model: int
    grows: bool = True  # whether preprocessing gets more actors where engines wait for it, as long as there are CPUs
    follows: bool = True  # whether there is a model for all GPUs that come, or for those that were asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Amount of work: the prompts of a unit on average say how many units keep an engine busy."""

    units: int
    prompts: int


def share_out(
    machines: Sequence[dict[str, float]], settings: JobSettings, load: Load, *, may_grow: bool = False
) -> Placement:
    """Return the pools' sizes to begin with: models as set, or on every GPU of the machines.

    Raises Refused for what these machines cannot give, unless there may be more of them.
    """
    on_machine = [int(machine.get("GPU", 0)) for machine in machines]
    wanted, each = settings.gpus, settings.gpus_per_model
    if wanted is None and 0 < max(on_machine) < each:
        raise Refused(f"gpus_per_model must be at most the {max(on_machine)} GPUs of the largest machine, got {each}")
    models = models_on(machines, each) if wanted is None else wanted // each
    cpus = sum(machine.get("CPU", 0) for machine in machines)
    first = max(1, min(models, int(cpus) - 1, load.units))  # one core feeds several GPUs
    placement = Placement(
        models=models,
        gpus_per_model=each,
        preprocess_workers=settings.preprocess_workers or first,
        grows=settings.preprocess_workers is None,
        follows=wanted is None,
    )
    if not may_grow:
        _check_machines(on_machine, cpus, placement)
    return placement


def models_on(machines: Sequence[dict[str, float]], gpus_per_model: int) -> int:
    """Return how many models the machines have the GPUs for, each on one of them."""
    return sum(int(machine.get("GPU", 0)) // gpus_per_model for machine in machines)


def models_wanted(machines: Sequence[dict[str, float]], placement: Placement) -> int:
    """Return how many models there should be by now; one at least, which waits for a machine."""
    if not placement.follows or not placement.models:
        return max(1, placement.models)
    return max(1, models_on(machines, placement.gpus_per_model))


def units_at_once(settings: JobSettings, load: Load, models: int, slots: int | None = None) -> int:
    """Return how many units an actor works on at once, so that its engine, of so many slots, always has rows to choose
    from.

    A unit leaves with its last row, so that units at work hold about twice the prompts that still run: twice the slots
    are asked for, and two prefills' worth that wait. No actor takes more than its share, which the first to be ready
    would take from the others.
    """
    if not models:  # a CPU's few slots are never short of rows
        return _FEWEST_UNITS
    slots = slots or settings.slots or _MOST_SLOTS
    enough = ceil((2 * slots + _TWO_PREFILLS) * load.units / max(1, load.prompts))
    share = ceil(load.units / models)
    return max(_FEWEST_UNITS, min(enough, share, MOST_UNITS))


def _check_machines(on_machine: Sequence[int], cpus: float, placement: Placement) -> None:
    """Raise Refused for what a job would wait for in vain."""
    models, each = placement.models, placement.gpus_per_model
    if models > sum(gpus // each for gpus in on_machine):
        of = f", {each} of one machine for each model" if each > 1 else ""
        raise Refused(f"gpus must be at most the {sum(on_machine)} GPUs of the cluster{of}, got {models * each}")
    if cpus < 1:
        raise Refused(
            f"a job needs a CPU of its cluster, to preprocess; there are {cpus:g}: add some (ray start --num-cpus 1), "
            "or unset RAY_ADDRESS for a Ray of the job's own"
        )


def describe_wait(placement: Placement, there: Mapping[str, float], free: Mapping[str, float]) -> str:
    """Return what is asked for, what is there, what of it nobody has."""
    asked = {"CPU": placement.preprocess_workers, "GPU": placement.models * placement.gpus_per_model}
    parts = [
        f"{counted(asked[name], name)} asked for, {there.get(name, 0):g} there, {free.get(name, 0):g} free"
        for name in ("GPU", "CPU")
        if asked[name]
    ]
    lacking = any(there.get(name, 0) < asked[name] for name in asked)
    return f"waiting for {'machines' if lacking else 'the workers'}: {'; '.join(parts)}"
