"""Transfer without blocks, beside that within them: what a study that ignores its design would report."""

from __future__ import annotations

import operator
from html import escape

from evalengine.analysis import page, transfer
from evalengine.analysis.figure import Table
from evalengine.analysis.protocol import Protocol, Study
from evalengine.analysis.results import Results, with_interval
from evalengine.analysis.tables import Row


def rows(study: Study) -> list[Row]:
    """The rows of `transfer` with all mixtures exchangeable; none where there are no blocks."""
    return transfer.rows(study.across) if study.across else []


def section(results: Results) -> str:
    across = results.rows("across_blocks")
    if not across:
        return ""
    key = operator.attrgetter("protocol", "quantity", "scale", "category", "name")
    within = {key(row): row for row in results.rows("transfer")}
    factor = results.method["block"]["factor"]
    table = [
        [
            f"{row.category} ({row.name})" if row.protocol == "category_transfer" else row.name,
            row.quantity,
            row.scale,
            with_interval(within.get(key(row))),
            with_interval(row),
            page.p_value(row.p),
            str(row.n),
        ]
        for row in sorted(across, key=lambda row: row.protocol != "category_transfer")
    ]
    columns = ["", "quantity", "scale", f"r within {factor}", "plain r", "p of the plain r", "n"]
    return page.section(
        f"Across {factor}",
        f"The plain r takes all mixtures as exchangeable. It includes the differences across {escape(factor)}, and its interval "
        f"and p ignore that mixtures of the same {escape(factor)} are alike. It is here to be compared with published figures.",
        page.details("Transfer with and without blocks", page.show(Table("", columns, [table], texts=3))),
    )


PROTOCOL = Protocol("across_blocks", rows, section)
