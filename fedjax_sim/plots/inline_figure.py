"""A matplotlib figure that a notebook shows without being told to (`%matplotlib inline`)."""

import io

from matplotlib.figure import Figure


class InlineFigure(Figure):
    """A figure made without pyplot, which shows itself as a PNG on white."""

    def _repr_png_(self) -> bytes:
        # IPython calls this method unless a matplotlib backend has registered its own formatter.
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110, facecolor="white")
        return file.getvalue()
