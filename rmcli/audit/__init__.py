"""`rmcli audit`: what a practitioner should know of a prepared folder before training on it. See docs/audit.md."""

from rmcli.audit.figures import run
from rmcli.audit.page import check_plots, write_page
from rmcli.audit.screen import show

__all__ = ["check_plots", "run", "show", "write_page"]
