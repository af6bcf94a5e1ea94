"""One HTML page with every table and figure of a report, pictures inside it: opens anywhere, fetches nothing."""

import base64
import html

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #333; vertical-align: bottom; }
td.incomplete { color: #a33; font-style: italic; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; }
figcaption, .legend { color: #555; font-size: 13px; }
"""


def table(header: list[str], body: list[list[str]]) -> str:
    """A table; cells marked by `bold_html` come out bold, incomplete ones in another colour."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = "".join("<tr>" + "".join(_cell(cell) for cell in line) + "</tr>\n" for line in body)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody></table></div>'


def _cell(text: str) -> str:
    kind = ' class="incomplete"' if text.startswith("incomplete") else ""
    return f"<td{kind}>{html.escape(text).replace(chr(1), '<b>').replace(chr(2), '</b>')}</td>"


def bold_html(text: str) -> str:
    """Marked for <b>; `table` makes the tags."""
    return f"\x01{text}\x02"


def picture(png: bytes, caption: str) -> str:
    """A figure with the picture inside the page."""
    data = base64.b64encode(png).decode()
    alternative = html.escape(caption, quote=True)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{alternative}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def page(title: str, sections: list[tuple[str, str]]) -> str:
    """The whole page; sections are (heading, HTML)."""
    parts = "\n".join(
        f"<h2>{html.escape(heading)}</h2>\n{content}" for heading, content in sections
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{parts}\n</body>\n</html>\n"
    )


def paragraphs(lines: list[str]) -> str:
    """Notes, one under the other."""
    return "\n".join(f'<p class="legend">{html.escape(line)}</p>' for line in lines)
