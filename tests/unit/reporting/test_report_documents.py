"""Documents as Markdown and as HTML: what users wrote is never taken for markup."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sseg_nase.reporting import html
from sseg_nase.reporting.document import (
    CENTRE,
    LEFT,
    RIGHT,
    Bold,
    Code,
    Document,
    Facts,
    Heading,
    Items,
    Listing,
    Notice,
    Paragraph,
    Picture,
    Table,
    Text,
)
from sseg_nase.reporting.html import LETTERS, NARROW, as_html
from sseg_nase.reporting.markdown import as_markdown, escaped
from sseg_nase.reporting.rendering import FOLDER

ODD = '<script>alert("x")</script> & a|b *c* d_e `f` [g](http://h) \\'
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags with their attributes, and the text; every tag that opens must close in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data


def assert_alone(page: Page) -> None:
    """Nothing in it runs or is loaded."""
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value)


def whole(folder: Path) -> Document:
    svg, png = folder / "figures" / "a.svg", folder / "figures" / "a.png"
    svg.parent.mkdir(parents=True)
    svg.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    png.write_bytes(PIXEL)
    return Document(
        ODD,
        [
            Heading(2, "Part"),
            Paragraph(("plain ", Bold(ODD), " ", Code(ODD))),
            Heading(2, "Part"),
            Notice(ODD),
            Items([ODD, (Bold("b"), "c")]),
            Facts([(ODD, Code("v"))]),
            Table.of(
                ["name", "mark", "figure"],
                [LEFT, CENTRE, RIGHT],
                [[ODD, "✓", Bold("1")], [Code("a|b"), "–", "2"]],
            ),
            Listing("sseg-nase x=`y` ```\nz"),
            Picture("A figure", ODD, {"svg": svg, "png": png}, width=3.45),
            Picture("Another", "", {}, f"it is missing: {ODD}"),
        ],
    )


def test_html_shows_texts_as_they_are_and_loads_nothing(tmp_path: Path) -> None:
    page = Page(as_html(whole(tmp_path)))
    assert_alone(page)
    assert page.text.count(ODD) == 10
    names = [attributes["id"] for tag, attributes in page.tags if tag == "h2"]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert names == ["part", "part-2"]
    assert links == [f"#{name}" for name in names]
    columns = [attributes.get("class") for tag, attributes in page.tags if tag == "th"]
    assert columns == [None, "mark", "figure"]
    assert dict(page.tags)["html"] == {"lang": "en"}
    metas = [attributes for tag, attributes in page.tags if tag == "meta"]
    policies = [one["content"] for one in metas if "http-equiv" in one]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    (image,) = (attributes for tag, attributes in page.tags if tag == "img")
    kind, _, data = str(image["src"]).partition(";base64,")
    assert (kind, image["alt"]) == ("data:image/svg+xml", "A figure")
    assert image["style"] == "max-width: 27.0rem"  # half a page's: letters look as in others
    assert b"svg" in base64.b64decode(data)


def test_a_phone_shows_tables_of_many_columns_or_letters_as_lists() -> None:
    def page(*line: Text, align: str = LEFT) -> Page:
        names = [f"column {n}" for n in range(len(line))]
        return Page(as_html(Document("t", [Table.of(names, [align] * len(line), [line])])))

    def cards(shown: Page) -> bool:
        (looks,) = (attributes["class"] for tag, attributes in shown.tags if tag == "div")
        return "cards" in str(looks).split()

    many, long, key = page(*"x" * (NARROW + 1)), "x " * LETTERS, (Code("k" * (LETTERS + 1)),)
    assert cards(many)
    assert not cards(page(*"x" * NARROW))
    assert not cards(page(long, "x", "x"))  # between words it breaks
    assert cards(page(long, "x", "x", align=RIGHT))  # figures do not
    assert cards(page(key, "x", "x"))
    assert not cards(page("x", key, "x"))  # not in front it breaks anywhere
    cells = [attributes["data-name"] for tag, attributes in many.tags if tag == "td"]
    assert cells == [f"column {n}" for n in range(NARROW + 1)]
    assert "attr(data-name)" in (FOLDER / "report.css").read_text()


def test_a_large_drawing_is_embedded_as_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "LARGEST_SVG", 10)
    (image,) = (a for tag, a in Page(as_html(whole(tmp_path))).tags if tag == "img")
    kind, _, data = str(image["src"]).partition(";base64,")
    assert kind == "data:image/png"
    assert base64.b64decode(data) == PIXEL


def test_the_style_asks_for_nothing_from_outside() -> None:
    style = (FOLDER / "report.css").read_text()
    assert not re.search(r"url\(|@import|http", style)
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_markdown_of_every_part(tmp_path: Path) -> None:
    text = as_markdown(whole(tmp_path), tmp_path)
    safe = r'\<script>alert("x")\</script> & a\|b \*c\* d\_e \`f\` [g\](http://h) \\'
    assert escaped(ODD) == safe
    assert text.startswith(f"# {safe}\n\n## Part\n\nplain **{safe}** ``{ODD}``\n")
    assert f"\n> {safe}\n" in text
    assert f"\n- {safe}\n- **b**c\n" in text
    assert f"\n- **{safe}**: `v`\n" in text
    assert "| name | mark | figure |\n| --- | :---: | ---: |\n" in text
    assert f"| {safe} | ✓ | **1** |\n| `a\\|b` | – | 2 |\n" in text
    assert "\n````\nsseg-nase x=`y` ```\nz\n````\n" in text
    assert f"![A figure](<figures/a.png>)\n\n**A figure.** {safe}\n" in text
    assert text.endswith(f"> Another: it is missing: {safe}\n")
