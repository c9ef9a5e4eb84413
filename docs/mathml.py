"""An mkdocs hook: equations become MathML when the site is built, so that no page loads scripts from elsewhere."""

import html
import re

from latex2mathml.converter import convert

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: object) -> str:
    """Converts what the Markdown extension `pymdownx.arithmatex` found between dollar signs."""

    def mathml(found: re.Match) -> str:
        display = "block" if found[1] == "div" else "inline"
        return convert(html.unescape(found[2]), display=display)

    return EQUATION.sub(mathml, content)
