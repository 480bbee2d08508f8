"""Loaded by schemathesis: code that can be a job, so that jobs come into being and can be worked on."""

import schemathesis
from hypothesis import strategies

CODE = "class Job{}(CronJobBase):\n    def execute(self):\n        pass\n"

schemathesis.openapi.format("job-code", strategies.integers(0, 99).map(CODE.format))
