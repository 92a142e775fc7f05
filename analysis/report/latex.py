r"""Tables as LaTeX, for papers: a `tabular` with the rules of booktabs, to be read by \input inside a table environment.

It needs \usepackage{booktabs} and nothing else. Names come from anyone's table, so whatever TeX would act on is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence

from evalengine.analysis.figure import Mark, Table
from evalengine.untrusted import printable

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "−": "$-$",
    "–": "--",
    "…": r"\ldots{}",
    "[": "{[}",  # \\ takes a bracket or a star after it as its own
    "]": "{]}",
    "*": "{*}",
    "-": "{-}",  # two in a row would become a dash, and ?` another letter
    "`": "{`}",
    "'": "{'}",
    **{c: "\\" + c for c in "#$%&_{}"},
}


def escape(text: str) -> str:
    """What LaTeX prints as `text`, on one line."""
    return "".join(SPECIAL.get(c, c) for c in " ".join(printable(text).split()))


def tabular(table: Table) -> str:
    """The table, under its title as a comment. A cell that stands out is in italics."""
    last = "p{0.4\\linewidth}" if table.prose else ""
    columns = "l" * table.texts + "r" * (len(table.columns) - table.texts - table.prose) + last
    blocks = ["\n".join(map(_row, block)) for block in table.blocks if block]
    return "\n".join(
        [
            f"% {escape(table.title)}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _row(table.columns),
            r"\midrule",
            "\n\\midrule\n".join(blocks),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _row(cells: Sequence[str | Mark]) -> str:
    texts = [rf"\emph{{{escape(c.text)}}}" if isinstance(c, Mark) else escape(c) for c in cells]
    return " & ".join(texts) + r" \\"
