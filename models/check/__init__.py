"""``int8d-make check``: a model and the source that it was imported from, side by side."""

from models.check.compare import Agreement
from models.check.report import Report, as_text
from models.check.run import check

__all__ = ["Agreement", "Report", "as_text", "check"]
