"""The page holds every number, stands alone, and no name can break out of its place."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from snnrobust.evaluation.html import VERDICTS, interval, named, percent, render
from snnrobust.evaluation.report import CLEAN, NULL, WORST, RobustnessReport

VOID = {"meta", "link", "img", "br"}
HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=y>"


def row(model: str, chip: str, attack: str, eps: float, accuracy: float, **others: Any) -> dict[str, Any]:
    return {
        "model": model, "chip": chip, "attack": attack, "eps": eps, "n": 200, "accuracy": accuracy,
        "low": max(0.0, accuracy - 0.0432), "high": min(1.0, accuracy + 0.0321), "accuracy_10": accuracy**3,
        "selection_draws": 16, "judge_draws": 64, "forwards": 20216, "gradients": 20199, "seconds": 3.67, **others,
    }  # fmt: skip


def rows(model: str, chip: str, fall: float, **others: Any) -> list[dict[str, Any]]:
    found = [row(model, chip, CLEAN, 0.0, 0.972, **others)]
    for eps in (0.05, 8 / 255):
        for i, attack in enumerate(("pgd", "transfer", WORST, NULL)):
            found.append(row(model, chip, attack, eps, 0.972 * np.exp(-fall * eps) - 0.013 * i, **others))
    return found


def example(model: str, shape: tuple[int, ...], eps: float = 0.05, **others: Any) -> dict[str, Any]:
    clean = np.linspace(0.1, 0.9, int(np.prod(shape))).reshape(shape)
    return {
        "model": model, "chip": "ideal", "eps": eps, "sample": 31, "label": 6, "clean_prediction": 6, "prediction": 1,
        "clean": clean.tolist(), "adversarial": (clean + eps * np.sign(0.5 - clean)).tolist(), **others,
    }  # fmt: skip


def check(status: str, name: str = "the input gradient is alive") -> dict[str, Any]:
    return {"name": name, "status": status, "found": f"found {status}", "meaning": f"meaning of {status}",
            "remedy": f"remedy of {status}", "p_value": None if status == "not run" else 0.0123}  # fmt: skip


def diagnosis(verdict: str, *statuses: str) -> dict[str, Any]:
    settings = {"eps": 0.05, "n": 100, "seed": 0, "draws": 32, "gradient": "Backprop()"}
    return {"verdict": verdict, "settings": settings, "checks": [check(s) for s in statuses]}


def report(*found: list[dict[str, Any]], examples: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    settings = {"n": 200, "seed": 7, "selection_draws": 16, "judge_draws": 64}
    return {"settings": settings, "rows": [r for part in found for r in part], "examples": examples or []}


def full() -> dict[str, Any]:
    epochs = [
        {"epoch": e, "loss": 1 / e, "accuracy": 0.9, "validation_accuracy": 0.8, "seconds": 0.1} for e in (1, 2, 3)
    ]
    fixed = {"judge_draws": 1, "selection_draws": 1}
    return {
        "name": "digits",
        "report": report(
            rows("snn", "ideal", 11), rows("snn", "noisy", 12), rows("ann", "ideal", 14, **fixed), rows("blind", "ideal", 1),
            examples=[example("snn", (1, 8, 8)), example("snn", (1, 8, 8), 8 / 255), example("blind", (1, 8, 8))],
        ),
        "notes": ["A small run."],
        "diagnoses": {
            "snn": diagnosis("consistent", "passed", "not run"),
            "ann": diagnosis("inconclusive", "passed", "inconclusive"),
            "blind": diagnosis("masked", "failed", "passed"),
        },
        "traps": [{"model": "blind", "same_weights_as": "snn", "title": "The trap", "text": "Only the encoder differs."}],
        "histories": {"snn": epochs, "ann": epochs, "blind": []},
        "configuration": "seed = 7\n[data]\nname = 'digits'",
        "versions": {"torch": "2.13.0", "python": "3.11.7"},
    }  # fmt: skip


class Page(HTMLParser):
    """Elements, text and references of a page; unbalanced tags and ids given twice are errors."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []
        ids = [a["id"] for _, a in self.elements if "id" in a]
        assert len(ids) == len(set(ids))
        self.words = " ".join(self.text.replace("\u00a0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/> closes itself outside SVG"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data + ("" if "svg" in self.open else " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag]

    def headings(self) -> list[str | None]:
        return [a["id"] for a in self.all("h2")]


def sections(page: str) -> dict[str, str]:
    """The text of each section, by the id of its heading."""
    return {re.search(r'id="(\w+)"', part)[1]: Page("<section" + part.split("</section>")[0] + "</section>").words
            for part in page.split("<section")[1:]}  # type: ignore[index]  # fmt: skip


def test_the_page_stands_alone() -> None:
    page = render(full())
    parsed = Page(page)
    assert page.startswith("<!DOCTYPE html>")
    assert not {"script", "iframe", "object", "embed", "base"} & {tag for tag, _ in parsed.elements}
    ids = {a["id"] for _, a in parsed.elements if "id" in a}
    for _, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "xlink:href", "data", "action", "srcset"):
            value = attributes.get(name) or "data:"
            assert value.startswith("data:") or value[1:] in ids, value
        for value in attributes.values():
            assert all(target in ids for target in re.findall(r"url\(#([^)]*)\)", value or ""))
    assert not re.search(r"https?://|@import|url\((?!#)", page)


def test_every_number_of_the_rows_is_there() -> None:
    found = full()
    text = sections(render(found))["rows"]
    for r in found["report"]["rows"]:
        numbers = [
            percent(r["accuracy"]),
            interval(r),
            percent(r["accuracy_10"]),
            "200",
            f"{r['selection_draws']} / {r['judge_draws']}",
        ]
        line = " ".join(
            [r["chip"], r["attack"], {0.0: "0", 0.05: "0.05"}.get(r["eps"], "8/255"), *numbers, "20,216 20,199 3.7"]
        )
        assert line.replace("\u00a0", " ") in text


def test_key_numbers_are_the_worst_case_on_the_first_chip() -> None:
    text = sections(render(full()))["key"]
    for fall in (11, 14):
        assert f"{100 * (0.972 * np.exp(-fall * 0.05) - 0.026):.1f} %" in text
    assert f"{100 * (0.972 * np.exp(-12 * 0.05) - 0.026):.1f} %" not in text
    assert "blind" not in text
    assert "consistent inconclusive" in text


def test_sections_come_in_order_and_only_with_their_data() -> None:
    everything = ["key", "curves", "chips", "examples", "diagnosis", "traps", "training", "rows", "reading"]
    everything += ["paragraph", "made"]
    assert Page(render(full())).headings() == everything
    of = {"examples": "examples", "diagnoses": "diagnosis", "traps": "traps", "histories": "training"}
    for key, heading in of.items():
        results = full()
        if key == "examples":
            results["report"]["examples"] = []
        else:
            del results[key]
        assert Page(render(results)).headings() == [h for h in everything if h != heading]
    alone = Page(render({"report": full()["report"]}))
    assert alone.headings() == ["key", "curves", "chips", "examples", "rows", "reading", "paragraph"]
    assert "The gradient was not examined" in alone.words


def test_what_was_measured_is_said() -> None:
    words = Page(render(full())).words
    assert "snn and ann were attacked with pgd and transfer at eps = 8/255 and 0.05." in words
    assert "first 200 samples of the data (seed 7)" in words
    assert (
        "selected on 16 random draws of the model and judged on 64 others. Without randomness one draw decides: ann."
        in words
    )
    assert "n = 200 is small: an illustration, not a claim." in words
    assert "A small run." in words
    large = Page(render({"report": report([r | {"n": 1000} for r in rows("snn", "ideal", 11)])})).words
    assert "first 1,000 samples" in large
    assert "illustration" not in large


def test_different_attacks_are_told_apart() -> None:
    other = [r | {"attack": "from a, b"} if r["attack"] == "transfer" else r for r in rows("ann", "ideal", 12)]
    words = Page(render({"report": report(rows("snn", "ideal", 11), other)})).words
    assert "snn was attacked with pgd and transfer at" in words
    assert "ann was attacked with pgd and “from a, b” at" in words
    assert named(["a", "b and c", "d"]) == "a, “b and c” and d"


def test_the_diagnosis_explains_what_did_not_pass() -> None:
    text = sections(render(full()))["diagnosis"]
    assert "1 of 2 checks passed. Examined with eps 0.05, n 100, seed 0, draws 32, gradient Backprop()." in text
    assert VERDICTS["consistent"] in text
    assert "no proof of robustness" in VERDICTS["consistent"]
    assert "found passed (p = 0.012)" in text
    assert "meaning of passed" not in text
    assert "What a failure would mean meaning of inconclusive What to do remedy of inconclusive" in text
    assert "remedy of not run" in text
    assert "masked" not in text


def test_the_trap_stands_apart() -> None:
    page = render(full())
    found = sections(page)
    assert "The trap Only the encoder differs. blind has the same weights as snn" in found["traps"]
    assert VERDICTS["masked"] in found["traps"]
    assert "What it means meaning of failed" in found["traps"]
    for place in ("key", "curves", "chips", "examples", "diagnosis", "training"):
        assert "blind" not in found[place]
    assert "blind (false result)" in found["rows"]
    assert [a["aria-label"] for a in Page(page).all("svg") if "false: blind" in str(a["aria-label"])]


def test_figures_are_described() -> None:
    figures = Page(render(full())).all("svg")
    assert len(figures) == 2 + 1 + 1 + 2  # curves, chips, trap, training
    assert all(f["role"] == "img" and len(str(f["aria-label"])) > 40 for f in figures)
    assert "at 0.05" in str(figures[0]["aria-label"])


@pytest.mark.parametrize("place", ["model", "chip", "attack"])
def test_hostile_names_are_escaped(place: str) -> None:
    found = rows("snn", "ideal", 11) + rows("snn", "noisy", 12)
    hostile = [r | {place: HOSTILE} if r[place] not in (CLEAN, WORST, NULL, "noisy") else r for r in found]
    examples = [example("snn", (1, 4, 4)) | ({place: HOSTILE} if place != "attack" else {})]
    page = render({"report": report(hostile, examples=examples)})
    parsed = Page(page)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert HOSTILE in parsed.text
    assert all(str(a["src"]).startswith("data:image/png;base64,") for a in parsed.all("img"))


def test_hostile_words_are_escaped_everywhere() -> None:
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {k if k != "torch" else HOSTILE: spoil(v) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(v) for v in value]
        kept = (CLEAN, WORST, NULL, "snn", "ann", "blind", "ideal", "passed")
        return HOSTILE if isinstance(value, str) and value not in kept else value

    page = render(spoil(full()))
    parsed = Page(page)
    assert "<script" not in page
    assert parsed.text.count(HOSTILE) > 10
    assert not [a for _, a in parsed.elements if "onerror" in a]


def test_control_characters_and_lone_surrogates_do_no_harm() -> None:
    found = [r | {"model": "a\x00\x1b\ud800$x$"} for r in rows("", "ideal", 11)]
    page = render({"report": report(found), "name": "\udfff", "configuration": "a = 1\n\x07"})
    assert page.encode().count(b"\xef\xbf\xbd") > 3
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page)
    assert "a = 1\n" in page


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (1, 40, 64), (2, 6, 6), (4, 2, 6, 6)])
def test_images_keep_their_pixels(shape: tuple[int, ...]) -> None:
    from matplotlib.image import imread

    images = Page(render({"report": report(rows("snn", "ideal", 11), examples=[example("snn", shape)])})).all("img")
    assert len(images) == 3
    assert all(i["alt"] for i in images)
    pixels = [imread(io.BytesIO(base64.b64decode(str(i["src"]).partition(",")[2])))[..., :3] for i in images]
    assert all(p.shape == (*shape[-2:], 3) for p in pixels)
    grey = np.ptp(pixels[0], axis=-1).max() < 1e-6
    assert grey == (shape[-3] == 1)
    if shape == (1, 8, 8):
        assert np.allclose(pixels[0][..., 0], np.linspace(0.1, 0.9, 64).reshape(8, 8), atol=0.51 / 255)
        assert np.unique(pixels[1].round(2)).tolist() == [0.0, 1.0]


def test_most_examples_are_folded_away() -> None:
    examples = [example("snn", (1, 4, 4), 0.02, prediction=6)] + [example("snn", (1, 4, 4), sample=i) for i in range(9)]
    page = render({"report": report(rows("snn", "ideal", 11), examples=examples)})
    shown, folded = page.split('<h2 id="examples">')[1].split("</section>")[0].split("<details>")
    assert "snn, chip ideal, eps 0.05" in shown  # at 0.02 none is turned
    assert shown.count("<img") == 3 * 6
    assert "10 times: white is +0.05, black −0.05" in shown
    assert "eps 0.02; the change is amplified 25 times" in folded


def test_one_model_one_chip_one_budget() -> None:
    one = [r for r in rows("snn", "ideal", 11) if r["eps"] in (0.0, 0.05)]
    parsed = Page(render({"report": report(one)}))
    assert parsed.headings() == ["key", "curves", "rows", "reading", "paragraph"]
    assert "snn was attacked with pgd and transfer at eps = 0.05." in parsed.words


def test_too_few_draws_for_ten_tries() -> None:
    found = sections(render({"report": report(rows("snn", "ideal", 11, accuracy_10=None))}))
    assert "ten tries: –" in found["key"]
    assert "200 16 / 64" in found["rows"]
    assert "None" not in " ".join(found.values())


def test_nothing_measured() -> None:
    assert "Nothing has been measured yet." in Page(render({"report": RobustnessReport().to_json()})).words
    clean = Page(render({"report": report(rows("snn", "ideal", 11)[:1])})).words
    assert "snn was measured without attack." in clean


@pytest.mark.parametrize("results", [{}, {"report": None}, {"report": {"settings": {}}}])
def test_not_a_report(results: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"results\['report'\] must be the JSON of a RobustnessReport"):
        render(results)


def test_equal_results_give_equal_bytes() -> None:
    results = full()
    before = json.dumps(results)
    assert render(results) == render(json.loads(before))
    assert json.dumps(results) == before
