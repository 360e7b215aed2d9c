"""The format in which the paper's concept files were released."""

from __future__ import annotations

import re
from typing import Any

from krs.data.entries import Entry

_HEADING = re.compile(r"(=+)[^=].*?\1$")
_BACK_MATTER = {
    "bibliography", "citations", "external links", "footnotes", "further reading", "notes", "references", "see also",
    "sources", "works cited",
}  # fmt: skip
_SHORTEST = 100


def is_paper_format(fields: dict[str, Any]) -> bool:
    """Whether an object is a concept as the paper's files have it, told by its keys.

    >>> is_paper_format({"Concept": "Emma", "QA": []}), is_paper_format({"name": "Emma", "questions": []})
    (True, False)
    """
    return "Concept" in fields or "QA" in fields


def from_paper_format(entry: Entry) -> dict[str, Any]:
    """The fields of a `krs.data.Concept`, from one object of the paper's files.

    Those files have a space before most questions and a newline after them: both are taken off. `unrelated_QA` may
    have a question more than once and is kept as it is. `id` may be missing; OLMo's has it as `ID` (where both are
    there, `id` counts). Fields that are not known are passed over.
    """
    entry.require("Concept", "a string")
    entry.require("QA", "a list of strings")
    questions = entry.texts("QA", distinct=True)
    if not questions:
        raise entry.error("'QA' has no questions: give at least one")
    answers = entry.texts("QA_with_answers")
    entry.match("QA_with_answers", len(questions), "QA")
    tokens = entry.numbers("answers_tokens_num")
    entry.match("answers_tokens_num", len(questions), "QA")
    return {
        "name": entry.text("Concept"),
        "questions": questions,
        "retain_questions": (),
        "unrelated_questions": entry.texts("unrelated_QA"),
        "paragraphs": paragraphs_of(entry.text("wikipedia_content")),
        "completions": entry.pairs("text_completion", ("First_half", "Second_half")),
        "answers": tuple(_answer(entry, i, text) for i, text in enumerate(answers, 1)),
        "answer_tokens": tokens,
        "id": entry.number("id", "ID"),
        "layer": entry.number("Layer"),
        "unit": entry.number("Dim"),
    }


def paragraphs_of(article: str) -> tuple[str, ...]:
    """The paragraphs of a Wikipedia article that was saved as text.

    A line is a paragraph. Headings (`== Plot ==`) are left out, and so are lines of fewer than 100 characters (items
    of lists, titles, captions) and whole sections of notes and references.

    >>> line = "A sentence that is meant to fill a line. " * 3
    >>> article = f"{line}\\n\\n== Plot ==\\nShort.\\n{line}\\n== References ==\\n{line}"
    >>> len(paragraphs_of(article))
    2
    """
    found, depth = [], 0  # depth: of the heading whose section is being left out
    for line in map(str.strip, article.split("\n")):
        heading = _HEADING.match(line)
        if heading:
            level = len(heading[1])
            if not depth or level <= depth:
                depth = level if line.strip("= ").lower() in _BACK_MATTER else 0
        elif not depth and len(line) >= _SHORTEST:
            found.append(line)
    return tuple(found)


def _answer(entry: Entry, i: int, text: str) -> str:
    """What stands behind the first `Answer:`, which is all that the model said in 30 tokens."""
    _, mark, answer = text.partition("Answer:")
    if not mark or not answer.strip():
        raise entry.error(f"'QA_with_answers' item {i} has nothing behind 'Answer:': write 'Question: … Answer: …'")
    return answer.strip()
