"""Loaded by schemathesis: code that can be a job, so that jobs come into being and can be worked on."""

import schemathesis
from hypothesis import strategies

CODE = "class Job{}(CronJobBase):\n    def execute(self):\n        pass\n"

schemathesis.openapi.format("job-code", strategies.integers(0, 99).map(CODE.format))


@schemathesis.hook
def filter_case(context, case):
    """A header is text whatever its type: what counts as one of another type is a good key all the same."""
    mutated = getattr(getattr(case.meta, "phase", None), "data", None)
    wrong_type = "type" in str(getattr(mutated, "description", ""))
    return not (wrong_type and getattr(mutated, "parameter", None) == "Idempotency-Key")
