"""The elements of an HTML page, for the tests of the report."""

from html.parser import HTMLParser

VOID = {'meta', 'link', 'img', 'br', 'col'}


class Page(HTMLParser):
    """Elements with their attributes and texts, as (tag, attributes, text, tags above)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[list] = []
        self.open: list[list] = []
        self.loose: list[tuple[str, list[str]]] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        element = [tag, dict(attrs), '', [above[0] for above in self.open]]
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.elements.append([tag, dict(attrs), '', [above[0] for above in self.open]])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element[2] += data
        self.loose.append((data, [element[0] for element in self.open]))

    def all(self, tag: str) -> list[list]:
        return [element for element in self.elements if element[0] == tag]
