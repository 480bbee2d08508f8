"""Versions of jobs' code, and the contents they share."""

from __future__ import annotations

from ..core.choices import Role
from ..services.versions import CronVersionControl, read_job
from ..store import queries
from ..views import versions
from . import shapes
from .inputs import CompareQuery, ContentsQuery, ListQuery, PruneBody
from .routing import Call, route


@route("GET /jobs/{job_id}/versions", role=Role.VIEWER)
def list_versions(call: Call, job_id: int, query: ListQuery) -> shapes.Page[shapes.Version]:
    """List the versions of a job's code, the newest first."""
    read_job(call.session, job_id)
    page = queries.versions(call.session, job_id, cursor=query.cursor, limit=query.limit)
    return shapes.Page[shapes.Version](
        items=[shapes.Version.of(one) for one in versions.views(page.items)], next_cursor=page.next
    )


@route("GET /jobs/{job_id}/versions/{version}", role=Role.VIEWER)
def read_version(call: Call, job_id: int, version: int) -> shapes.VersionDetail:
    """Read what a version changed, when and by whom."""
    read_job(call.session, job_id)
    return shapes.VersionDetail.of_detail(_versions(call).get(job_id, version))


@route("GET /jobs/{job_id}/versions/{version}/code", role=Role.VIEWER)
def read_code(call: Call, job_id: int, version: int) -> str:
    """Read the source of a version."""
    read_job(call.session, job_id)
    return _versions(call).code(job_id, version)


@route("GET /jobs/{job_id}/versions/compare", role=Role.VIEWER)
def compare_versions(call: Call, job_id: int, query: CompareQuery) -> shapes.Comparison:
    """Compare two versions side by side."""
    read_job(call.session, job_id)
    found = _versions(call).compare(job_id, query.from_version, query.to_version, query.context)
    return shapes.Comparison.of(query.from_version, query.to_version, found)


@route("POST /jobs/{job_id}/versions/prune", role=Role.EDITOR)
def prune_versions(call: Call, job_id: int, body: PruneBody) -> shapes.Pruned:
    """Remove old versions, all but the newest, the current one and those that waiting runs ask for."""
    return shapes.Pruned(removed=_versions(call).prune(job_id, body.keep))


@route("GET /contents/stats", role=Role.VIEWER)
def content_stats(call: Call) -> shapes.ContentStats:
    """What is stored, and what sharing and compression save."""
    return shapes.ContentStats.model_validate(_versions(call).content_stats())


@route("GET /contents", role=Role.VIEWER)
def find_contents(call: Call, query: ContentsQuery) -> shapes.Contents:
    """Find stored sources by the first digits of their SHA-256."""
    found = _versions(call).find_content(query.hash, query.limit)
    return shapes.Contents(items=[shapes.Content.of(row) for row in found])


@route("GET /contents/orphaned", role=Role.VIEWER)
def orphaned_contents(call: Call) -> shapes.Contents:
    """List stored sources that no version points at. There are none unless somebody changed tables by hand."""
    return shapes.Contents(items=[shapes.Content.of(row) for row in _versions(call).orphaned()])


def _versions(call: Call) -> CronVersionControl:
    return CronVersionControl(call.session, call.actor)
