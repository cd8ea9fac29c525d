"""Forms of one model measured against each other, in the back ends that serve them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_deploy.bundle import Servable
from mlflow_deploy.conversion.attempt import Case
from mlflow_deploy.conversion.evidence import line
from mlflow_deploy.conversion.latency import BATCHES, Answering, Latency, Opener, measure, request_body
from mlflow_deploy.conversion.native import example_rows, quiet
from mlflow_deploy.conversion.rows import count, take

if TYPE_CHECKING:
    from mlflow_deploy.conversion.rows import Rows


def race(
    case: Case,
    places: Mapping[str, tuple[Servable, Path]],
    signature: Mapping[str, Any] | None,
    opener: Opener,
) -> dict[str, Latency]:
    """Measured latencies by form; a form that cannot be measured has none, and progress says why.

    Args:
        places: servable and folder of its files by form, those that are expected to be fast first.
    """
    rows = _rows(case)
    if rows is None:
        return {}
    batches = (case.native.rows_at_once,) if case.native.rows_at_once else BATCHES
    answering: dict[str, Answering] = {}
    # What a native model prints for each call, such as a bar, would stand in the output of a command.
    with quiet():
        for form, (servable, content) in places.items():
            case.progress(f"measuring {form}")
            try:
                call = opener(servable, content, signature)
                for batch in batches:
                    call(request_body(take(rows, [index % count(rows) for index in range(batch)])))
                answering[form] = call
            except Exception as error:  # noqa: BLE001 - any library may fail to load or to run; the form is not measured
                case.progress(f"{form} could not be measured: {line(error)}")
        return measure(answering, rows, batches) if answering else {}


def _rows(case: Case) -> Rows | None:
    """Rows that the native model answers; where nothing was compared, its example."""
    if case.rows is not None:
        return case.rows
    try:
        return example_rows(case.native)
    except Exception as error:  # noqa: BLE001 - an example in any form can fail in any way; nothing is measured then
        case.progress(f"nothing could be measured: {line(error)}")
        return None
