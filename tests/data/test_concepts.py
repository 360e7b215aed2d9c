import json
from pathlib import Path

import pytest

from krs import KrsError
from krs.data import concepts, load_concept
from krs.data.concepts import as_chat
from krs.prompts import encode

RELEASED = Path(__file__).parents[3] / "shared" / "data" / "llama2-7b_concepts.json"


@pytest.mark.parametrize("name", concepts())
def test_concepts_are_whole_and_their_sets_do_not_overlap(name):
    concept = load_concept(name)
    assert len(concept.questions) == 10
    assert len(concept.unrelated_questions) == 10
    sets = [set(concept.questions), set(concept.retain_questions), set(concept.unrelated_questions)]
    assert len(set.union(*sets)) == sum(map(len, sets))
    assert all(len(p) > 100 for p in concept.paragraphs)


def test_an_unknown_concept_lists_those_there_are():
    with pytest.raises(KrsError, match="no concept 'spam' comes with krs: there are harry_potter"):
        load_concept("spam")


@pytest.mark.real
@pytest.mark.skipif(not RELEASED.exists(), reason="the paper's released concept file is not beside the checkout")
def test_the_papers_questions_are_prompts_as_they_are(smollm2):
    questions = json.loads(RELEASED.read_text(encoding="utf-8"))[3]["QA"]
    ids = encode([f"Question: {q}\n Answer:" for q in questions], smollm2[1])
    assert len(ids) == 10
    assert len(encode(as_chat(tuple(questions)), smollm2[1])) == 10
