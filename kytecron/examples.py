"""Jobs that a first `make run` creates, so that a visitor sees real runs at once. One of each schedule type."""

from __future__ import annotations

from typing import Any

HELLO = '''class Hello(CronJobBase):
    """The smallest job: it says hello."""

    def execute(self):
        self.log(f"Hello from {self.job.name}, version {self.job.version}")
'''

PROGRESS = '''import time


class Import(CronJobBase):
    """A job that takes a while and tells how far it is."""

    def execute(self):
        total = 20
        for number in range(1, total + 1):
            time.sleep(0.4)
            self.log(f"batch {number} of {total} imported")
            self.progress(100 * number / total, f"batch {number} of {total}")
        return {"batches": total}
'''

FLAKY = '''class Flaky(CronJobBase):
    """Fails twice and then succeeds: see the attempts of its executions."""

    def execute(self):
        self.log(f"attempt {self.execution.attempt}")
        if self.execution.attempt < 3:
            raise ConnectionError("the payment service did not answer")
        self.log("the payment service answered")
'''

COUNTER = '''class Counter(CronJobBase):
    """Remembers a number from one run to the next."""

    def execute(self):
        self.state["runs"] = self.state.get("runs", 0) + 1
        print(f"this is run number {self.state['runs']}")
        return self.state["runs"]
'''

REPORT = '''import json
import os
import platform
import shutil


class DiskReport(CronJobBase):
    """Reports on the disk of the server it runs on; the return value is kept as the run's result."""

    def execute(self):
        usage = shutil.disk_usage("/")
        report = {
            "host": platform.node(),
            "free_gb": round(usage.free / 1e9, 1),
            "used_percent": round(100 * usage.used / usage.total, 1),
            "load": os.getloadavg()[0],
        }
        print(json.dumps(report, indent=2))
        if report["used_percent"] > self.job.parameters.get("limit_percent", 95):
            raise RuntimeError(f"the disk is {report['used_percent']} % full")
        return report
'''

PARAMETERS = '''class Greet(CronJobBase):
    """Runs by hand only. Trigger it with parameters such as {"name": "Ada"}."""

    def execute(self):
        name = self.job.parameters.get("name", "world")
        self.log(f"Hello, {name}")
        return f"greeted {name}"
'''

EXAMPLES: list[dict[str, Any]] = [
    {
        "name": "Example: hello every 10 seconds",
        "description": "An interval: slots lie on the moment of creation plus 10, 20, 30 ... seconds.",
        "schedule_type": "interval",
        "interval_seconds": 10,
        "tags": ["example"],
        "code": HELLO,
    },
    {
        "name": "Example: import with progress",
        "description": "Runs for eight seconds: open its running execution to follow the log live.",
        "schedule_type": "interval",
        "interval_seconds": 60,
        "tags": ["example", "etl"],
        "code": PROGRESS,
    },
    {
        "name": "Example: fails and is retried",
        "description": "Its first two attempts fail; the retries follow after 5 and 10 seconds.",
        "schedule_type": "interval",
        "interval_seconds": 120,
        "retry_delay_seconds": 5,
        "tags": ["example"],
        "code": FLAKY,
    },
    {
        "name": "Example: counter every minute",
        "description": "A cron expression, and state that is kept between runs.",
        "schedule_type": "cron",
        "cron_expression": "* * * * *",
        "tags": ["example"],
        "code": COUNTER,
    },
    {
        "name": "Example: nightly disk report",
        "description": "Daily at 02:30 in Berlin, daylight saving included.",
        "schedule_type": "daily",
        "time_of_day": "02:30",
        "timezone": "Europe/Berlin",
        "parameters": {"limit_percent": 95},
        "tags": ["example", "ops"],
        "code": REPORT,
    },
    {
        "name": "Example: Monday morning",
        "description": "Weekly, at nine in New York.",
        "schedule_type": "weekly",
        "day_of_week": 1,
        "time_of_day": "09:00",
        "timezone": "America/New_York",
        "tags": ["example"],
        "code": HELLO,
    },
    {
        "name": "Example: end of the month",
        "description": "Monthly on the 31st, which falls back to the month's last day.",
        "schedule_type": "monthly",
        "day_of_month": 31,
        "time_of_day": "03:00",
        "tags": ["example", "ops"],
        "code": HELLO,
    },
    {
        "name": "Example: greet by hand",
        "description": "Manual: runs when somebody triggers it, with the parameters they give.",
        "schedule_type": "manual",
        "parameters": {"name": "world"},
        "tags": ["example"],
        "code": PARAMETERS,
    },
]
