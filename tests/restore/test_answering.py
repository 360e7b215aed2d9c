"""Answers that a sweep had when it was interrupted among them are kept, and given to no other sweep."""

import copy
import importlib
import shutil

import numpy as np
import pytest

import krs
from krs import KrsError
from tests.restore.test_checkpoint import _rewritten, _with_changed_column
from tests.tiny import exact_pair, perturbed
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

GREEDY = importlib.import_module("krs.generation.greedy")
PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2], [6, 6], [4, 12, 30], [8, 9, 10, 21], [33, 2, 5], [2, 17]]
SOME = krs.windows.of([[1], [2, 3]])


@pytest.fixture(autouse=True)
def _two_at_a_time(monkeypatch):
    monkeypatch.setattr(GREEDY, "_BATCH", 2)


@pytest.fixture(scope="module")
def models():
    return exact_pair("llama")


def _sweep(v, u, prompts=PROMPTS, **options):
    given = {"windows": SOME, "n_tokens": 5, "progress": False, "settings": ["mlp_coef", "attn_out"]}
    return krs.sweep(v, u, prompts, **(given | options))


def _asked(monkeypatch, stop=None, at=None):
    """Notes the prompts of each batch that is answered; in batch `at` the model stops at its second token."""
    seen, real, step = [], GREEDY._lockstep, GREEDY._Speaker.step

    def lockstep(vanilla, unlearned, restore, prompts, *args):
        seen.append(prompts)
        return real(vanilla, unlearned, restore, prompts, *args)

    def one(self, said):
        if len(seen) - 1 == at and said[0]:
            raise stop
        return step(self, said)

    monkeypatch.setattr(GREEDY, "_lockstep", lockstep)
    monkeypatch.setattr(GREEDY._Speaker, "step", one)
    return seen


def _interrupted(monkeypatch, stop, at, *args, **options):
    """A sweep that stops in a batch of its answers; returns what stopped it."""
    with monkeypatch.context() as patch:
        _asked(patch, stop, at)
        with pytest.raises(type(stop)) as stopped:
            _sweep(*args, **options)
    assert stopped.value is stop
    return stop


def _same(a, b):
    assert a.complete
    assert a.token_ids == b.token_ids
    for name in ("restored", "baseline", "power", "mask"):
        np.testing.assert_array_equal(getattr(a.losses, name), getattr(b.losses, name))
    assert a.krs.equals(b.krs)
    changing = ("time", "parts", "seconds")
    ours, theirs = ({k: v for k, v in r.provenance.items() if k not in changing} for r in (a, b))
    assert ours == theirs


@pytest.fixture
def left(models, tmp_path, monkeypatch):
    """The checkpoint of a sweep that was interrupted in its second batch."""
    _interrupted(monkeypatch, KeyboardInterrupt(), 1, *models, checkpoint=tmp_path / "part.krs")
    return tmp_path / "part.krs"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError, SystemExit])
@pytest.mark.parametrize("options", [{}, {"positions": "each"}, {"scoring": "paper-code"}], ids=str)
def test_an_interruption_in_the_second_batch_keeps_the_first(models, tmp_path, monkeypatch, stop, options):
    file, stop = tmp_path / "part.krs", stop()
    options = options | {"tokenizer": tiny_tokenizer()}
    with monkeypatch.context() as patch:
        batches = _asked(patch)
        whole = _sweep(*models, **options)
        every = list(batches)
    assert [len(batch) for batch in every] == [2, 2, 2, 1]
    _interrupted(monkeypatch, stop, 1, *models, checkpoint=file, **options)
    assert stop.__notes__[-1] == (
        f"what was done, 2 of 7 vanilla answers and no restoration yet, is in {str(file)!r}; the same call goes on "
        "from there"
    )
    partial = stop.partial
    assert partial.token_ids == whole.token_ids[:2]
    assert partial.answers == whole.answers[:2]
    assert not partial.complete
    assert krs.load_result(file).token_ids == partial.token_ids
    with monkeypatch.context() as patch:
        again = _asked(patch)
        resumed = _sweep(*models, checkpoint=file, **options)
    assert again == every[1:]
    _same(resumed, whole)
    _same(krs.load_result(file), whole)


def test_an_interruption_before_anything_new_leaves_what_there_was(models, left, monkeypatch):
    before = krs.load_result(left)
    stop = _interrupted(monkeypatch, KeyboardInterrupt(), 0, *models, checkpoint=left)
    assert "2 of 7 vanilla answers" in stop.__notes__[-1]
    assert krs.load_result(left).token_ids == before.token_ids
    stop = _interrupted(monkeypatch, KeyboardInterrupt(), 2, *models, checkpoint=left)
    assert "6 of 7 vanilla answers" in stop.__notes__[-1]
    assert len(krs.load_result(left).token_ids) == 6


def test_a_process_that_is_killed_has_left_a_file_to_go_on_from(models, tmp_path, monkeypatch):
    """Nothing is done on the way out: what was saved while the model answered is all there is."""
    monkeypatch.setattr("krs.restore.answering.SAVE_EVERY", -1.0)
    file, copies = tmp_path / "part.krs", []
    real = GREEDY._lockstep

    def lockstep(*args):
        if file.exists():
            copies.append(shutil.copy(file, tmp_path / f"{len(copies)}.krs"))
        return real(*args)

    monkeypatch.setattr(GREEDY, "_lockstep", lockstep)
    whole = _sweep(*models, checkpoint=file)
    assert [len(krs.load_result(copy).token_ids) for copy in copies] == [2, 4, 6]
    monkeypatch.undo()
    monkeypatch.setattr(GREEDY, "_BATCH", 2)
    again = _asked(monkeypatch)
    _same(_sweep(*models, checkpoint=copies[1]), whole)
    assert [len(batch) for batch in again] == [2, 1]


def test_without_a_checkpoint_the_exception_has_the_answers(models, monkeypatch):
    stop = _interrupted(monkeypatch, KeyboardInterrupt(), 2, *models)
    assert stop.__notes__ == [
        "what was done, 4 of 7 vanilla answers and no restoration yet, is in the exception's attribute `partial`; "
        "checkpoint= would also save it"
    ]
    assert len(stop.partial.token_ids) == 4


def _other_vanilla(v, u):
    return {"v": _with_changed_column(v, 2, 17).double()}


OTHERS = {
    "vanilla": (_other_vanilla, r"the vanilla model \(weights\)"),
    "unlearned": (lambda v, u: {"u": perturbed(v, seed=9)}, r"the unlearned model \(weights\)"),
    "answered": (
        lambda v, u: {"prompts": [[5, 9, 12], *PROMPTS[1:]]},
        r"the first is prompt 0: \(5, 9, 11\) there, \(5, 9, 12\)",
    ),
    "waiting": (
        lambda v, u: {"prompts": [*PROMPTS[:4], [8, 9, 10, 20], *PROMPTS[5:]]},
        r"the first is prompt 4: \(8, 9, 10, 21\) there, \(8, 9, 10, 20\) here",
    ),
    "fewer": (lambda v, u: {"prompts": PROMPTS[:2]}, r"prompts \(7 there, 2 here\)"),
    "more": (lambda v, u: {"prompts": [*PROMPTS, [5, 5]]}, r"prompts \(7 there, 8 here\)"),
    "longer": (lambda v, u: {"n_tokens": 6}, r"n_tokens \(5 there, 6 here\)"),
    "given": (lambda v, u: {"answers": [[4]] * 7}, r"answers \(the first is the one to prompt 0\)"),
    "plan": (lambda v, u: {"windows": 3}, "windows"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_answers_are_lent_to_no_other_sweep(models, left, monkeypatch, what):
    change, said = OTHERS[what]
    asked = dict(zip("vu", models, strict=True)) | {"prompts": PROMPTS} | change(*models)
    seen, kept = _asked(monkeypatch), left.read_bytes()
    with pytest.raises(KrsError, match=f"holds another sweep. What differs: .*{said}"):
        _sweep(asked.pop("v"), asked.pop("u"), asked.pop("prompts"), checkpoint=left, **asked)
    assert not seen
    assert left.read_bytes() == kept


def test_what_ends_an_answer_and_versions_count_too(models, left):
    v, u = models
    other = copy.deepcopy(v)
    other.generation_config.eos_token_id = [1, 9]
    with pytest.raises(KrsError, match=r"What differs: .*tokens that end an answer"):
        _sweep(other, u, checkpoint=left)
    _rewritten(left, lambda header, _: header["provenance"]["versions"].update(transformers="4.9.0"))
    with pytest.raises(KrsError, match=r"What differs: transformers \(4.9 there"):
        _sweep(v, u, checkpoint=left)


def test_a_template_with_another_date_is_told_for_prompts_that_wait(models, tmp_path, monkeypatch):
    tokenizer, file = tiny_tokenizer(), tmp_path / "part.krs"
    body = tokenizer.chat_template
    words = ["the cat", "a dog", "who", "the moon", "one two"]
    chat = [[{"role": "user", "content": word}] for word in words]
    tokenizer.chat_template = body + "{% if 'moon' in messages[0]['content'] %} one {{ strftime_now('') }}{% endif %}"
    _interrupted(monkeypatch, KeyboardInterrupt(), 1, *models, chat, tokenizer=tokenizer, checkpoint=file)
    tokenizer.chat_template = tokenizer.chat_template.replace(" one ", " two ")
    with pytest.raises(KrsError, match="the first is prompt 3: '.*one' there, '.*two' here; the chat template renders"):
        _sweep(*models, chat, tokenizer=tokenizer, checkpoint=file)


def test_what_is_left_can_be_looked_at_and_has_no_numbers(left):
    found = krs.load_result(left)
    assert found.krs.isna().all(axis=None)
    assert "interrupted" in repr(found)
    assert "5 prompts more had no answer yet when it stopped" in found.notes
    assert found.to_frame(per_prompt=True).krs.isna().all()


@pytest.mark.parametrize(
    "waiting",
    [3, [], {}, {"token_ids": [[1]]}, {"token_ids": [["x"]], "prompts": ["x"]}, {"token_ids": [], "prompts": []}],
)
def test_prompts_that_wait_in_an_odd_form(left, waiting):
    _rewritten(left, lambda header, _: header["provenance"].update(waiting=waiting))
    with pytest.raises(KrsError, match=r"is not a result that krs saved \('waiting' in its provenance"):
        krs.load_result(left)


def test_an_error_of_the_call_leaves_no_file(models, tmp_path):
    """The same call would come to it again."""
    v, u = models
    broken = copy.deepcopy(v)
    broken.get_input_embeddings().weight.data[33] = float("nan")
    with pytest.raises(KrsError, match=r"NaN"):
        _sweep(broken, u, checkpoint=tmp_path / "part.krs")
    assert not list(tmp_path.iterdir())
