"""One page of HTML that compares results folders; it needs nothing but itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_sim.core.files import reason, replace_file
from fedjax_sim.plots import canvas, words
from fedjax_sim.report import cards, facts, tables
from fedjax_sim.report.reading import Folder
from fedjax_sim.report.reading import load as load
from fedjax_sim.results import SUMMARY, Mean, configurations, ranked
from fedjax_sim.results.columns import on_test

_SAME = ("fedjax-sim", "jax", "jaxlib")  # versions that change numbers


_SUFFIXES = (".html", ".htm")


def write(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    mixed: bool = False,
    overwrite: bool = False,
) -> Path:
    """Writes a page that compares results folders.

    Args:
      folders: as `Results.save` writes them; a run's baselines, in folders below it, come along.
      out: the page's file, .html or .htm; its folder is made.
      mixed: compare folders made by different versions all the same, and say so on the page.
      overwrite: replace the file, whatever it is; a page that this made is replaced in any case.

    Raises:
      ValueError: for no folder, one named twice, or one that cannot be read; for folders made by
        different versions of fedjax-sim, jax or jaxlib; for a file of another ending, one that is
        there already and no such page, or that cannot be written. Nothing is written then.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ValueError("folders must be at least one results folder; got none")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"folders must differ; got {', '.join(map(str, paths))}")
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"out must be a file; {out} is a folder")
    if out.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"out must end in {' or '.join(_SUFFIXES)}, for it is a page; got {out}")
    if out.exists() and not overwrite and not _is_page(out):
        raise ValueError(
            f"out {out} is there already, and is no such page; name another file, or give "
            "overwrite (--overwrite)"
        )
    found = _found(paths)
    apart = _apart(found)
    if apart and not mixed:
        raise ValueError(
            f"folders were made by different versions: {'; '.join(apart)}; numbers may differ for "
            "that alone. Give mixed (--mixed) to compare them all the same"
        )
    text = page(found, apart)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, lambda file: file.write(text.encode("utf-8", "replace")))
    except OSError as error:
        raise ValueError(f"out {out} cannot be written: {reason(error)}") from error
    return out


def page(folders: Mapping[str, Folder], apart: Sequence[str] = ()) -> str:
    """The page's HTML.

    Args:
      folders: name -> what it holds.
      apart: how the versions differ, to be said.
    """
    title = ", ".join(folders)
    parts = [f"<h1>{tables.text(title)}</h1>"]
    if apart:
        parts.append(
            '<p class="warn"><strong>Made by different versions.</strong> Numbers may differ for '
            f"that alone: {tables.text('; '.join(apart))}.</p>"
        )
    parts.append(f'<div class="heads">{"".join(_head(*item) for item in folders.items())}</div>')
    if len(folders) > 1:
        parts.append(facts.differences(folders))
    parts += _figures(folders)
    parts.append(tables.table(folders))
    return _PAGE.format(
        made_by=_MADE_BY, title=tables.text(title),
        light=cards.colours(False), dark=cards.colours(True),
        style=_STYLE, body="\n".join(parts),
    )  # fmt: skip


def _head(name: str, folder: Folder) -> str:
    """What a folder is."""
    runs = folder.results.runs
    state = '<span class="tag good">complete</span>'
    if folder.summary.get("complete") is not True:
        done, asked = sum(run.done == run.num_rounds for run in runs), len(runs)
        asked = max(asked, _whole(folder.summary.get("num_runs")))
        said = f": {done} of {_count(asked, 'run')} whole" if asked > 1 else ""
        state = f'<span class="tag bad">interrupted{said}</span>'
    by, best = cards.score(folder), ""
    if by is not None:
        means = folder.results.mean(by)
        top = means[ranked(means, canvas.lowest_is_best(by))[0]]
        if top.competes:
            names = [x for x in configurations.varying(folder.results) if x in top.configuration]
            where = f" with {words.label(top.configuration, names)}" if names else ""
            best = (
                f"<p>{'Best final' if names else 'Final'} {tables.text(by)} "
                f"<strong>{tables.text(tables.interval(top))}</strong>{tables.text(where)}"
                f"{tables.text(_on_test(folder, by, top))}</p>"
            )
    made = facts.described(facts.versions(folder))
    return (
        f'<article class="card">{facts.title(name, folder)}'
        f"<p>{tables.text(facts.counts(folder))} {state}</p>{best}"
        + facts.described(facts.entries(folder))
        + (f"<details><summary>made by</summary>{made}</details>" if made else "")
        + "</article>"
    )


def _on_test(folder: Folder, by: str, top: Mean) -> str:
    """What the configuration that the validation set chose has on the test set."""
    metric = on_test(by)
    if metric not in folder.results.metrics:
        return ""
    (mean,) = [
        mean for mean in folder.results.mean(metric) if mean.configuration == top.configuration
    ]
    return f"; its {metric} is {tables.interval(mean)}"


def _figures(folders: Mapping[str, Folder]) -> list[str]:
    scores: dict[str, list[tuple[str, Any]]] = {}
    for name, folder in folders.items():
        by = cards.score(folder)
        if by is not None:
            scores.setdefault(by, []).append((name, folder.results))
    parts, number = [], 0
    for by, some in scores.items():
        made, shown = [], cards.cards(some, by)
        shared = cards.take_shared_legend(shown)
        for place, card in enumerate(shown):
            if shared is not None and place == shared.place:
                made.append(_legend(shared, f"k{number}"))
            number += 1
            drawn = cards.inline(card.figure, f"f{number}")
            label = f'role="img" aria-label="{tables.text(card.title)}"'
            made.append(
                f'<figure class="card"><figcaption>{tables.text(card.title)}</figcaption>'
                f"{drawn.replace('<svg', f'<svg {label}', 1)}</figure>"
            )
        if made:
            of = f" of {', '.join(name for name, _ in some)}" if len(scores) > 1 else ""
            note = cards.deal(some, by)[1]
            parts.append(
                f"<h2>Figures{tables.text(of)}</h2>"
                + (f"<p>{tables.text(note)}</p>" if note else "")
            )
            parts.append(f'<div class="grid">{"".join(made)}</div>')
    return parts


def _legend(shared: cards.Legend, prefix: str) -> str:
    """The legend that the figures behind it have in common."""
    keys = "".join(
        f"<li>{cards.inline(cards.key_figure(style), f'{prefix}-{i}')}{tables.text(label)}</li>"
        for i, (label, style) in enumerate(shared.lines)
    )
    note = f"<p>{tables.text(shared.note)}</p>" if shared.note else ""
    return f'<div class="card keys"><ul>{keys}</ul>{note}</div>'


def _found(paths: Sequence[Path]) -> dict[str, Folder]:
    """Name -> folder, each run's baselines behind it."""
    folders: dict[Path, Folder] = {}
    named = {path.resolve() for path in paths}
    for path in paths:
        folders[path] = load(path)
        names = folders[path].configuration.get("baselines")
        for name in names if isinstance(names, list) else ():
            below = path / str(name)
            if (below / SUMMARY).is_file() and below.resolve() not in named:
                folders[below] = load(below)
    return dict(zip(_names([*folders]), folders.values(), strict=True))


def _names(paths: Sequence[Path]) -> list[str]:
    """What folders are called: their last parts, as many as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for many in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-many:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _apart(folders: Mapping[str, Folder]) -> list[str]:
    """How the versions that change numbers differ."""
    found = []
    for package in _SAME:
        said: dict[str, list[str]] = {}
        for name, folder in folders.items():
            said.setdefault(str(folder.versions.get(package, "unknown")), []).append(name)
        if len(said) > 1:
            which = " and ".join(f"{v} in {', '.join(names)}" for v, names in said.items())
            found.append(f"{package} is {which}")
    return found


def _is_page(path: Path) -> bool:
    """Whether a file is a page that this module made: it can be made again."""
    with path.open("rb") as file:
        return _MADE_BY.encode() in file.read(2000)


def _whole(value: Any) -> int:
    return value if type(value) is int else 0


def _count(many: int, word: str) -> str:
    return f"{many} {word}{'' if many == 1 else 's'}"


_MADE_BY = '<meta name="generator" content="fedjax-sim report">'

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
{made_by}
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
:root{{{light}}}
@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}
{style}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root{--ground:#f6f6f4;--card:#fff;--text:#1b1b1b;--soft:#5c5c5c;--edge:#dcdcd8;--best:#eef4fb;
--good:#0a5c36;--goodon:#dff3e7;--bad:#8f1d0f;--badon:#fbe3df;--warn:#6b4a00;--warnon:#fbeecb}
@media screen and (prefers-color-scheme:dark){:root{--ground:#141618;--card:#1d2023;--text:#e9e9e9;
--soft:#a9adb2;--edge:#373b40;--best:#1c2b3a;--good:#8fe0b3;--goodon:#173526;--bad:#ffb0a3;
--badon:#48201a;--warn:#f5d58a;--warnon:#40320f}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--text);
font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1200px;margin:0 auto;padding:20px 16px 48px}
h1{font-size:1.5rem;line-height:1.2;margin:0 0 12px;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:28px 0 8px;overflow-wrap:anywhere}
p{margin:0 0 8px;overflow-wrap:anywhere}
small{font-weight:400;color:var(--soft)}
.card,.box{background:var(--card);border:1px solid var(--edge);border-radius:8px}
.heads,.grid{display:grid;gap:16px;align-items:start;
grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr))}
.grid{grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr))}
.heads{align-items:stretch}
article{padding:12px 14px}
article h2{margin:0 0 4px}
dl{margin:8px 0 0;font-size:13px;display:grid;column-gap:20px;
grid-template-columns:repeat(auto-fill,minmax(min(100%,190px),1fr))}
dl div{display:flex;gap:8px;justify-content:space-between;align-items:baseline;
border-bottom:1px dotted var(--edge)}
dl .wide{grid-column:1/-1}
dt{color:var(--soft);overflow-wrap:anywhere}
dd{margin:0;text-align:right;overflow-wrap:anywhere}
summary{margin-top:8px;cursor:pointer;font-size:13px;color:var(--soft)}
figure{margin:0;padding:10px 10px 8px;min-width:0}
figcaption{font-weight:600;margin:0 2px 6px;overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto;overflow:visible;font-family:inherit}
svg *{stroke-linejoin:round;stroke-linecap:butt}
.keys{grid-column:1/-1;padding:8px 14px;font-size:13.5px}
.keys ul{display:flex;flex-wrap:wrap;gap:2px 22px;list-style:none;margin:0;padding:0}
.keys li{display:flex;gap:8px;align-items:center;overflow-wrap:anywhere}
.keys svg{width:44px;flex:none}
.keys p{margin:4px 0 0;color:var(--soft)}
.box{overflow:auto;max-width:100%}
.tall{max-height:min(80vh,720px)}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums;min-width:100%}
th,td{padding:4px 10px;text-align:left;white-space:nowrap;border-bottom:1px solid var(--edge)}
thead th{position:sticky;top:0;background:var(--card);box-shadow:inset 0 -1px var(--edge);
border:0;z-index:1;vertical-align:bottom}
tbody th{font-weight:400;color:var(--soft)}
tbody tr:last-child>*{border-bottom:0}
.wraps td{white-space:normal;overflow-wrap:anywhere;min-width:9em}
th.n,td.n{text-align:right}
tr.best{background:var(--best)}
.tag{display:inline-block;font-size:11.5px;line-height:1;padding:3px 6px;border-radius:9px;
white-space:nowrap}
.good{color:var(--good);background:var(--goodon)}
.bad{color:var(--bad);background:var(--badon)}
.warn{color:var(--warn);background:var(--warnon)}
p.warn{padding:10px 14px;border-radius:8px;margin-bottom:12px}
@media (max-width:480px){main{padding:14px 10px 32px}figure{padding:8px 6px}}
@media print{.tall{max-height:none}}
"""
