"""A page of HTML: its look, and text and pictures in it. Nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable

from cifar_dist.errors import printable
from cifar_dist.report.style import Picture

_CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d9dee3; --paper: #ffffff; --card: #f6f8fa;
  --accent: #33628f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4ae; --line: #343b43; --paper: #14181c;
  --card: #1d2329; --accent: #8cbbe8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 80px; }
a { color: var(--accent); }
h1 { font-size: 20px; font-weight: 600; margin: 0; color: var(--soft); letter-spacing: .01em; overflow-wrap: anywhere; }
h2 { font-size: 21px; margin: 56px 0 16px; padding-top: 16px; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; }
code { overflow-wrap: anywhere; }
h3 { font-size: 16px; margin: 28px 0 8px; overflow-wrap: anywhere; }
.headline { display: flex; flex-wrap: wrap; gap: 12px 40px; align-items: baseline; margin: 8px 0 4px; }
.figure { font-size: 76px; font-weight: 700; letter-spacing: -.03em; line-height: 1.05; color: var(--accent); }
.figure small { font-size: 34px; font-weight: 600; }
.beside { color: var(--soft); font-size: 17px; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(190px, 45%), 1fr)); gap: 12px;
  margin: 28px 0 0; }
.facts div { background: var(--card); border-radius: 10px; padding: 12px 16px; }
.facts dt { color: var(--soft); font-size: 13px; }
.facts dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
dl { margin: 0; }
img { display: block; max-width: 100%; height: auto; margin-bottom: 16px; background: #fff;
  border-radius: 10px; border: 1px solid var(--line); }
.pictures { columns: 440px; column-gap: 16px; }
.pictures img { break-inside: avoid; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14.5px; }
th, td { text-align: right; padding: 6px 12px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; }
td.text, th.text { text-align: left; white-space: normal; }
td.time { text-align: left; }
.soft { color: var(--soft); margin: 0 0 12px; }
tr.best td { font-weight: 700; color: var(--accent); }
pre { background: var(--card); border-radius: 10px; padding: 16px; overflow-x: auto; font-size: 13.5px; }
details summary { cursor: pointer; color: var(--soft); margin: 12px 0; }
footer { margin-top: 64px; color: var(--soft); font-size: 14px; }
@media print {  /* paper neither scrolls nor unfolds */
  .scroll, pre { overflow: visible; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  table { font-size: 12px; }
  th, td { padding: 4px 6px; }
  tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  details::details-content { content-visibility: visible !important; block-size: auto !important; display: block; }
}
"""


def page(title: str, body: str, css: str = "") -> str:
    """Wrap the HTML of a body into a self-contained page; ``css`` is the look of its own parts."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_CSS}{css}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, body: str) -> str:
    """Give a part of a page its heading, which is HTML; empty if it is."""
    return f"<h2>{title}</h2>\n{body}\n" if body else ""


def embed(columns: Iterable[Picture] = (), wide: Iterable[Picture] = ()) -> str:
    """Embed pictures: ``wide`` ones over the full width of the page, then others in columns."""
    beside = "".join(map(_picture, columns))
    return "".join(map(_picture, wide)) + (f'<div class="pictures">{beside}</div>' if beside else "")


def _picture(picture: Picture) -> str:
    return f'<img alt="{escape(picture.text)}" src="{png_url(picture.path.read_bytes())}">'


def png_url(content: bytes) -> str:
    """Return an address that holds a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def escape(text: str) -> str:
    """Escape what HTML would interpret, and characters that would rearrange or break the page."""
    return "\n".join(html.escape(printable(line)) for line in text.split("\n"))


def isolate(text: str) -> str:
    """Escape a name within a line; one in Hebrew or Arabic would rearrange the numbers and names beside it."""
    return f"<bdi>{escape(text)}</bdi>"


def isolate_in_attribute(text: str) -> str:
    """Escape a name within the value of an attribute, as :func:`isolate` does in text."""
    return f"\u2068{escape(text)}\u2069"
