"""How our objects show themselves in a notebook: small tables, everything in them escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

__all__ = ["html_pairs", "html_table"]


def html_pairs(title: str, rows: Mapping[str, object]) -> str:
    """Names and values below a title."""
    left = 'style="text-align: left"'
    cells = "".join(
        f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(str(value))}</td></tr>" for name, value in rows.items()
    )
    return f"<table><caption>{escape(title)}</caption><tbody>{cells}</tbody></table>"


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows below the names of their columns."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
