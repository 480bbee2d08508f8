"""What `--json` prints where no view tells it whole: the shapes of the JSON API. A test compares the two."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..store.models import CronJob, KyteCronJobVersion
from ..views import jobs, versions
from ..views.standing import Standing

if TYPE_CHECKING:
    from ..services.transfer import Change

Shape = dict[str, Any]


def job_detail(
    row: CronJob, parents: list[int], current: KyteCronJobVersion | None, warnings: list[str]
) -> Shape:
    """A job with its current version."""
    info = None if current is None else versions.view(current).for_programs()
    return jobs.for_programs(row, parents) | {"version_info": info, "warnings": warnings}


def stats(found: Standing) -> Shape:
    """How everything stands."""
    today = found.numbers.today
    more = {"total": today.total, "success_rate": today.success_rate}
    return found.for_programs() | {"today": asdict(today) | more}


def change(found: Change) -> Shape:
    """What an import does to one job."""
    return {
        "name": found.name,
        "job_id": found.job_id,
        "action": found.action,
        "fields": {
            name: {"before": both["from"], "after": both["to"]} for name, both in found.fields().items()
        },
        "code_diff": found.code_diff(),
    }
