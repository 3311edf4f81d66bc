"""A layout as a picture: `svg(plan)` shows which byte, lane or bank holds which element, and which bits of a byte.

plan = plan_named(named("marlin"), shape=(16, 64))
Path("marlin.svg").write_text(svg(plan))
"""

from .places import Plan, Span, plan_named, plan_text, spans, total_bytes
from .svg import svg

__all__ = ["Plan", "Span", "plan_named", "plan_text", "spans", "svg", "total_bytes"]
