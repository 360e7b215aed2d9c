"""A page as a reader's tools see it: tables, figures and scripts, by the standard library's parser."""

import json
from html.parser import HTMLParser

LOADING = ("src", "href", "srcset", "data", "action", "poster")


class Seen(HTMLParser):
    """Tables as rows of texts by caption, scripts, headings, and attributes. End tags of cells may be left out."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.scripts, self.headings = {}, [], []
        self.loads, self.attributes, self.labels, self.ids = [], [], [], []
        self.policy, self._rows, self._into = "", [], None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.attributes += [name for name, _ in attributes]
        self.loads += [(tag, name, value) for name, value in attributes if name in LOADING]
        self.ids += [found["id"]] if "id" in found else []
        self.labels += [(tag, found.get("role", ""), found["aria-label"])] if "aria-label" in found else []
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._into = []
            self._rows[-1].append(self._into)
        elif tag == "caption":
            self._into = self._caption = []
        elif tag == "script":
            self._into = []
            self.scripts.append((found.get("type", ""), self._into))
        elif tag in ("h1", "h2", "h3", "h4"):
            self._into = []
            self.headings.append((int(tag[1]), self._into))

    def handle_endtag(self, tag):
        if tag in ("caption", "thead", "tbody", "script", "h1", "h2", "h3", "h4"):
            self._into = None
        if tag == "table":
            self.tables["".join(self._caption)] = [["".join(cell) for cell in row] for row in self._rows]

    def handle_data(self, data):
        if self._into is not None:
            self._into.append(data)

    @property
    def running(self):
        """The scripts that run."""
        return ["".join(text) for kind, text in self.scripts if not kind]

    @property
    def data(self):
        """What the page's script draws."""
        (found,) = ["".join(text) for kind, text in self.scripts if kind == "application/json"]
        return json.loads(found)
