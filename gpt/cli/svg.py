"""Pictures of matplotlib as a part of an HTML page, whose colours of text and paper they take on."""

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What changes with a page's light or dark colours. The page defines the variables
COLORS = {
    "#000000": "currentColor",
    "#eaeaea": "var(--grid)",
    "#bfbfbf": "var(--muted)",
    "#0072b2": "var(--blue)",
}
NOT_IN_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def inline_svg(figure: "Figure", prefix: str, description: str) -> str:
    """An <svg> element. All its ids begin with `prefix`, which must differ between the pictures of a page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True)
    root = ElementTree.fromstring(NOT_IN_XML.sub("\ufffd", file.getvalue()))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):  # a style would hold for the whole page
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: adapt(key, value, prefix) for key, value in element.attrib.items()
        }
    root.attrib |= {"role": "img", "aria-label": description}
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def adapt(key: str, value: str, prefix: str) -> str:
    """An attribute's value with the page's colours and with ids of this picture alone."""
    if key == "id":
        return f"{prefix}-{value}"
    if key == "style":
        value = re.sub(r"#[0-9a-f]{6}\b", lambda found: COLORS.get(found[0], found[0]), value)
    return re.sub(r"(^|url\()#", rf"\g<1>#{prefix}-", value)
