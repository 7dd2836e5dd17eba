"""The page of ``torchdcn explain``: one HTML file that holds everything it shows."""

from __future__ import annotations

import base64
import html
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What the network looked at: $image</title>
<style>
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5c6670; --page: #f7f8fa; --card: #fff; --line: #e3e6ea }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a0a8b2; --page: #111417; --card: #1a1e23;
  --line: #2b3138 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: clamp(1.5rem, 5vw, 2.2rem); line-height: 1.15; margin: 0 0 .5rem; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem }
p { margin: .25rem 0 1rem; color: var(--soft); max-width: 46rem }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 12px; overflow-x: auto;
  padding: .6rem }
img { display: block; max-width: 100%; min-width: min(100%, 22rem); height: auto; margin: 0 auto }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 12px }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .5rem .9rem; text-align: right; border-top: 1px solid var(--line); white-space: nowrap }
thead th { border-top: 0; color: var(--soft); font-weight: 500; font-size: .88rem }
th:first-child { text-align: left }
</style>
<main>
<h1>What the network looked at in $image</h1>
<p>$nodes</p>
$sections
<h2>Numbers</h2>
<p>"On the object" is the share of the support inside the mask of what the network itself detects there; "spread" is the
root mean square distance from the support's own middle; an entropy of b bits is that of an even spread over
2<sup>b</sup> pixels.</p>
<div class="scroll"><table><thead><tr><th>network</th><th>picture</th><th>on the object</th><th>spread, px</th>
<th>entropy, bits</th><th>area</th><th>error</th></tr></thead><tbody>$rows</tbody></table></div>
</main>
</html>
""")

_SECTIONS = {
    "sampling": (
        "Effective sampling locations",
        "The places where the network's layers sample, coloured and sized by how strongly the node's response depends "
        "on each place: the length of its derivative by that place. The 400 strongest are drawn.",
    ),
    "receptive-field": (
        "Effective receptive field",
        "How strongly each pixel's colour moves the node's response: the length of the derivative, averaged over a few "
        "neighbours.",
    ),
    "saliency": (
        "Saliency region",
        "The smallest region found that keeps the node's features within the bound of $bound when all other pixels "
        "have the image's mean colour. The rest is shown as the network saw it.",
    ),
}
_KINDS = {"sampling": "sampling locations", "field": "receptive field", "region": "saliency region"}


def report_html(numbers: Mapping[str, Any], names: Sequence[str], pictures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        numbers: What ``explain.json`` holds.
        names: What to call each network.
        pictures: The PNG files of "sampling", "receptive-field" and "saliency".
    """
    sections = []
    for name, (title, text) in _SECTIONS.items():
        data = base64.b64encode(pictures[name]).decode()
        said = text.replace("$bound", f"{numbers['bound']:g}")
        sections.append(
            f'<h2>{title}</h2><p>{said}</p><figure><img alt="{title}" src="data:image/png;base64,{data}"></figure>'
        )
    networks = list(zip(names, numbers["networks"], strict=True))
    rows = [_row(name, network, kind) for name, network in networks for kind in _KINDS]
    nodes = "<br>".join(_node(name, network) for name, network in networks)
    return _PAGE.substitute(
        image=html.escape(str(numbers["image"])), nodes=nodes, sections="\n".join(sections), rows="".join(rows)
    )


def _node(name: str, network: Mapping[str, Any]) -> str:
    node = network["node"]
    if "roi" in node:
        what = "the box " + ", ".join(f"{value:g}" for value in node["roi"])
    else:
        what = f"row {node['y']}, column {node['x']} of {node['layer']}"
    weights = network["weights"] or "random weights"
    found = f"; it detects: {network['object']}" if network["object"] else ""
    return f"<b>{html.escape(name)}</b> ({html.escape(str(weights))}): {html.escape(what + found)}"


def _row(name: str, network: Mapping[str, Any], kind: str) -> str:
    summary = network["summaries"][kind]
    region = network["region"] if kind == "region" else None
    area, error = (f"{region['area']:.2%}", f"{region['error']:.3f}") if region else ("", "")
    if summary is None:
        figures = ["nothing has to be kept" if region else "none", "", ""]
    else:
        inside = "–" if summary["inside"] is None else f"{summary['inside']:.1%}"
        figures = [inside, f"{summary['radius']:.1f}", f"{summary['entropy']:.2f}"]
    cells = [_KINDS[kind], *figures, area, error]
    return f"<tr><th scope=row>{html.escape(name)}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
