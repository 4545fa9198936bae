"""Conditions on rows that a caller gives a Milvus server."""

from __future__ import annotations

from ...utils.display import display_name
from ...utils.errors import RegionDHError

__all__ = ["check_condition"]


def check_condition(where: str) -> None:
    """Check that a condition can be put in parentheses, so that nothing in it ends them.

    Otherwise ``a) or (b`` would reach removed rows, and those of the index's own state.

    Args:
        where: a boolean expression of Milvus; its text may be in single or double quotes, with
            backslashes.

    Raises:
        RegionDHError: it is no text, or a parenthesis or a quote has no other half.
    """
    if not isinstance(where, str):
        raise RegionDHError(f"where must be a boolean expression as text, not {where!r}")
    depth, quote, escaped = 0, "", False
    for character in where:
        if escaped:
            escaped = False
        elif quote:
            escaped = character == "\\"
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if depth < 0:
                break
    if depth or quote:
        what = "a quote" if quote else "a parenthesis"
        raise RegionDHError(f"where is {display_name(where)}: {what} has no other half")
