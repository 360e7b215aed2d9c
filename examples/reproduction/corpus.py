"""Text for MEMIT's statistics: the articles of the paper's released concept file, a paragraph a line."""

import json
import sys
from pathlib import Path

from krs.data import load_concepts

given = Path(sys.argv[1])
lines = [json.dumps({"text": text}) + "\n" for concept in load_concepts(given) for text in concept.paragraphs]
Path(__file__).with_name("corpus.jsonl").write_text("".join(lines), encoding="utf-8")
print(f"{len(lines)} paragraphs")
