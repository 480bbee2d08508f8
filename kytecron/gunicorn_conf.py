"""How gunicorn serves kytecron; `gunicorn.conf.py` beside wsgi.py is this, and flags go before it.

Nothing here says where to listen: that is `--bind`.
"""

from __future__ import annotations

from typing import Any

from gunicorn.glogging import Logger

from .config import Settings
from .core.errors import Invalid
from .logs import configure_logging
from .services.seats import waiting_seats

try:
    _settings = Settings.load()
except Invalid as error:
    raise SystemExit("\n".join(error.fields.values())) from None

workers = _settings.web_processes
threads = _settings.web_threads
worker_class = "kytecron.webserver.Worker"
# Below the 1024 descriptors that a process may have by default.
worker_connections = 500
sendfile = False  # it would know of no deadline
control_socket_disable = True  # it would lie in the home directory, one for all

# Only the app knows how many proxies there are (KYTECRON_TRUSTED_PROXIES), so gunicorn believes nobody: by default it
# lets whoever connects from this machine say how it was reached and what SCRIPT_NAME is.
forwarded_allow_ips = ""
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""


class logger_class(Logger):  # noqa: N801
    """gunicorn's own messages among those of the application, in its format; its access log is left to that."""

    def setup(self, cfg: Any) -> None:
        """Called when gunicorn begins to log."""
        super().setup(cfg)
        configure_logging(_settings)


def post_worker_init(worker: Any) -> None:
    """Tell the app how many threads it really has, whatever flags said."""
    worker.wsgi.extensions["kytecron.seats"] = waiting_seats(worker.cfg.threads)
