"""The look of all figures: colours, fonts, formats, and axes of a fixed size.

Axes have a size in inches and saving crops to what was drawn, so labels of any length fit. Colours are those of
report.css; on the page they become its variables and follow the light and the dark scheme.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from evalengine.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing
    from matplotlib.transforms import Bbox

PAPER, INK, SOFT, RULE, BAND = "#ffffff", "#1d2329", "#5d6770", "#d9dee3", "#eef1f4"
POSITIVE, NEGATIVE = "#0b6bb0", "#c2610c"
SERIES = ("#0072b2", "#d55e00", "#00795a", "#a34f85")  # Okabe & Ito, told apart by all common colour visions
VARIABLES = {"paper": PAPER, "ink": INK, "soft": SOFT, "rule": RULE, "band": BAND}
VARIABLES |= {"pos": POSITIVE, "neg": NEGATIVE}
VARIABLES |= {f"s{k}": colour for k, colour in enumerate(SERIES)}
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "text.parse_math": False,  # names come from anyone's table, and may hold dollar signs
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.labelcolor": SOFT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "xtick.color": SOFT,
    "ytick.color": INK,
    "legend.frameon": False,
    "path.simplify": False,  # it would drop the dots of a scatter
    "pdf.fonttype": 42,
    "savefig.dpi": 160,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "evalengine",
}
FORMATS: dict[str, dict[str, Any]] = {  # and the metadata that keep dates and versions out
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
}

MARGIN = 0.04  # inches around a drawing
PRINT = 6.5  # points, of small print
LETTER = 0.62 / 72  # width of a letter of one point, an upper bound for most
LONGEST = 26  # characters of a label before it is shortened in the middle


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Drawing and saving look the same, whatever the user's matplotlib is set to. Raises UserError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("the report draws with matplotlib: pip install 'evalengine[report]'") from None
    with matplotlib.rc_context(STYLE):
        yield


def short(text: str, most: int = LONGEST) -> str:
    """A label that fits."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def canvas(
    count: int, columns: int, size: tuple[float, float], gap: tuple[float, float]
) -> tuple[Drawing, list[Axes]]:
    """Axes of one size, row by row. The canvas is one inch square, so that its coordinates are inches."""
    from matplotlib.figure import Figure as Drawing

    (width, height), (between, below) = size, gap
    drawing = Drawing(figsize=(1, 1))
    places = [(k % columns * (width + between), -(k // columns) * (height + below)) for k in range(count)]
    return drawing, [drawing.add_axes((x, y, width, height)) for x, y in places]


def paragraphs(drawing: Drawing, texts: Sequence[str], left: float, top: float, width: float) -> None:
    """Small print in lines of at most `width` inches, each text on a line of its own, below y = `top`."""
    letters = int(width / (LETTER * PRINT))
    lines = [line for text in texts for line in textwrap.wrap(text, letters, break_on_hyphens=False)]
    for k, line in enumerate(lines):
        drawing.text(left, top - 0.13 * k, line, size=PRINT, color=SOFT, va="center")


def extent(drawing: Drawing) -> Bbox:
    """What is drawn, in inches, with a margin: what to save of it. Saved "tight", every format would be laid out three times."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    return drawing.get_tightbbox(FigureCanvasAgg(drawing).get_renderer()).padded(MARGIN)
