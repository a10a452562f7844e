"""Templates to HTML, by jinja2: values are escaped unless they are markup."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

_MISSING = "a page needs jinja2: pip install fedjax-sim[cli]"


def rendered(template: str, **values: Any) -> str:
    """A template of `templates/` with these values.

    Raises:
      ImportError: if jinja2 is missing: which extra has it.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(_MISSING) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedjax_sim.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)


def markup(svg: str, label: str | None = None) -> "Markup":
    """An `<svg>` element as a part of a page, with a label for those who do not see it.

    Raises:
      ImportError: as `rendered`.
    """
    try:
        from markupsafe import Markup  # jinja2 brings it
    except ImportError as error:
        raise ImportError(_MISSING) from error
    if label is None:
        return Markup(svg)
    start = Markup('<svg role="img" aria-label="{}"').format(label)
    return start + Markup(svg.removeprefix("<svg"))
