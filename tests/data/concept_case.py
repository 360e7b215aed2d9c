"""What the tests of concepts share: a concept in our format, one in the paper's."""

EMMA = {"name": "Emma", "questions": ["Who wrote Emma?", "Where does Emma live?"]}
PAPER = {
    "id": 7,
    "Concept": "Emma",
    "Layer": 3,
    "Dim": 41,
    "QA": [" Who wrote Emma?\n", " Where does Emma live?"],
    "text_completion": [{"First_half": "Emma Woodhouse is", "Second_half": "handsome, clever and rich"}],
    "unrelated_QA": [" What is tea?\n", " What is tea?\n"],
    "wikipedia_content": "Emma is a novel. " * 7 + "\n\n\n== Plot ==\n\nToo short.\n" + "Emma lives in Highbury. " * 5,
    "QA_with_answers": [
        "Question: Who wrote Emma?\n Answer: Jane Austen.\n\nQuestion: And Ulysses? Answer: James",
        "Question: Where does Emma live?\n\n Answer: In Highbury.",
    ],
    "answers_tokens_num": [20, 7],
}


def without(fields, name):
    return {k: v for k, v in fields.items() if k != name}
