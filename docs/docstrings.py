"""A griffe extension: docstrings here have no blank line above Args, Returns and Raises, but griffe looks for one."""

import re

import griffe

SECTION = re.compile(r"\n(?=(Args|Attributes|Returns|Raises):\n)")


class Sections(griffe.Extension):
    """Puts the blank lines in before the docstrings are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub("\n\n", obj.docstring.value)
