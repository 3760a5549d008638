"""How the pages are made: `sphinx-build -W docs docs/_build/html`."""

import re

import dagnn

project = "dagnn"
version = release = dagnn.__version__
copyright = "the dagnn authors"

extensions = ["sphinx.ext.autodoc", "myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "dagnn"
html_show_sphinx = False
html_copy_source = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource", "exclude-members": "__new__"}
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True


# Our docstrings are plain text: a heading underlined with dashes, `code` in backticks, "name : what it is",
# indented lines as they are, examples. The rest of this file makes reStructuredText of that.


def as_rst(lines):
    """The lines of a docstring as reStructuredText."""
    out = []
    for block in blocks(lines):
        first = block[0]
        if first.lstrip().startswith(">>>"):
            out += block
        elif first.startswith(" "):
            out += ["::", "", *("   " + line for line in block)]
        elif len(block) > 1 and re.fullmatch(r"-{3,}", block[1]):
            out += [f"**{first}**", "", *definitions(block[2:])]
        elif first.startswith("- "):
            out += [marked(line) for line in block]
        elif re.match(r"[\w, ]+ : ", first):
            out += definitions(block)
        else:
            out += [marked(line) for line in block]
        out.append("")
    return out


def blocks(lines):
    """Runs of lines without an empty one, cut also where an example begins."""
    block = []
    for line in lines:
        if block and (not line.strip() or (line.startswith(">>>") and not block[0].startswith(">>>"))):
            yield block
            block = []
        if line.strip():
            block.append(line)
    if block:
        yield block


def definitions(lines):
    """"name : what it is", which may go on in indented lines, as a definition list; other text as it is."""
    out = []
    for line in lines:
        name, colon, text = line.partition(" : ")
        if colon and not line.startswith(" "):
            out += [", ".join(f"``{part}``" for part in name.split(", ")), "   " + marked(text)]
        elif line.startswith(" "):
            out.append("   " + marked(line.strip()))
        else:
            out.append(marked(line))
    return out


def marked(line):
    """Backticks become code, and everything else what it looks like."""
    parts = line.split("`")
    if len(parts) % 2 == 0:
        return escaped(line)
    return "".join(f"``{part}``\\ " if i % 2 else escaped(part) for i, part in enumerate(parts)).rstrip("\\ ")


def escaped(text):
    return re.sub(r"([*|_\\])", r"\\\1", text)


def process(app, what, name, obj, options, lines):
    lines[:] = as_rst(list(lines))


def trim(app, name, source):
    """Doctest wants an empty line at the end of an example; readers don't."""
    source[0] = source[0].replace("\n\n```\n", "\n```\n")


def setup(app):
    app.connect("autodoc-process-docstring", process)
    app.connect("source-read", trim)
