"""The page in headless Chromium: each tab used, its values, its address, a phone, the keyboard, what is refused.

`make test-space` runs this. SCREENSHOTS=<folder> keeps a picture of each tab; MODEL=<folder> serves another model than
a tiny one, which has learnt nothing but one passage of the dataset.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

pytest.importorskip("gradio", reason="make test-space has gradio")
api = pytest.importorskip("playwright.sync_api", reason="make test-space has Playwright")

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline  # noqa: E402

from flexqwen.evaluation import likelihood  # noqa: E402
from space.answers import Checkpoint  # noqa: E402
from tests.helpers.datasets import read_split  # noqa: E402
from tests.helpers.tiny import make_model  # noqa: E402

ROOT = Path(__file__).parents[2]
SENTENCE, PATIENCE = "Havia algumas portas modernas na praça, e o vento chegava devagar.", 120_000


# Presses the button that stops three times as soon as the first words have come.
STOP = """() => {
  const answer = document.querySelector("#answer-write");
  new MutationObserver((_, observer) => {
    if (!/O museu./.test(answer.textContent)) return;
    observer.disconnect();
    for (let i = 0; i < 3; i++) document.querySelector("#stop").click();
  }).observe(answer, {childList: true, subtree: true, characterData: true});
}"""


@pytest.fixture(scope="module")
def copied(built):
    """A row of the dataset; its first words."""
    row = read_split(built, "gold").to_pylist()[0]
    return row, " ".join(row["text"].split()[:25])


@pytest.fixture(scope="module")
def model(tokenizer, copied, tmp_path_factory):
    if folder := os.environ.get("MODEL"):
        return folder
    folder = tmp_path_factory.mktemp("space") / "model"
    model = make_model(vocab_size=len(tokenizer), max_position_embeddings=256)
    ids = tokenizer(copied[1], return_tensors="pt").input_ids
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(100):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def scorer(model):
    return likelihood.load(model)


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def address(model, browser, built, tmp_path_factory):
    """Where the page is served; it says how long the first answer took."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "log"
    began = time.monotonic()
    with open(log, "w") as file:
        command = [sys.executable, "space/app.py", "--model", model, "--port", str(port), "--dataset", str(built)]
        command += ["--trace_index", str(log.with_name("index"))]
        server = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    while time.monotonic() - began < 120 and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.2)
    assert server.poll() is None, log.read_text()
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("#answer-modes figure", timeout=PATIENCE)
    print(f"first answer after {time.monotonic() - began:.1f} s")
    page.close()
    yield url
    server.terminate()
    server.wait(30)
    assert SENTENCE not in log.read_text()  # nothing that people write is kept


@pytest.fixture
def page(address, browser):
    found = browser.new_page(viewport={"width": 1000, "height": 900})
    found.set_default_timeout(PATIENCE)
    found.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    found.errors = []
    found.on("pageerror", lambda error: found.errors.append(str(error)))
    yield found
    assert not found.errors
    found.close()


def visit(page, address, tab="modes", language="", **fields):
    """Opens a tab by its address; `modes` and others answer at once."""
    page.goto("about:blank")
    page.goto(f"{address}/{language}#{urlencode({'tab': tab, **fields})}")
    answer = page.locator(f"#answer-{tab}")
    answer.locator("p").first.wait_for()
    return answer


def ask(page, tab, **fields):
    """Fills the text fields of a tab, in order, and presses its button."""
    for place, text in enumerate(fields.values()):
        page.locator(f"#panel-{tab} textarea, #panel-{tab} input[type=text]").nth(place).fill(text)
    page.locator(f"#go-{tab}").click()


def numbers(answer, name):
    """The bits that the tokens of the strips of a mode say when pointed at."""
    found = answer.locator(f"figure.{name} span").evaluate_all("all => all.map(one => one.dataset.bits)")
    return [float(re.sub(" bits", "", each).replace(",", ".").replace("−", "-")) for each in found]


def bits(scorer, text, mode):
    return -scorer.score([text], mode)[0] / torch.log(torch.tensor(2.0)).item()


def keep(page, name):
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(500)
        place = page.locator(".answer:visible").first.bounding_box()
        size = {**page.viewport_size, **({} if name == "phone" else {"height": place["y"] + place["height"] + 16})}
        page.screenshot(path=f"{folder}/space-{name}.png", full_page=True, clip={"x": 0, "y": 0, **size})


def test_both_modes(page, address, scorer):
    answer = visit(page, address, text="Sim.")
    ask(page, "modes", text=SENTENCE)
    api.expect(answer).to_contain_text("devagar")
    found = {name: numbers(answer, name) for name in ("causal", "masked", "difference")}
    for mode in ("causal", "masked"):
        assert sum(found[mode]) == pytest.approx(bits(scorer, SENTENCE, mode), abs=0.2)
    differences = [one - other for one, other in zip(found["causal"], found["masked"], strict=True)]
    assert found["difference"] == pytest.approx(differences, abs=0.011)
    assert answer.locator("tr").count() == 1 + len(differences)
    answer.locator("figure.causal span").nth(2).hover()
    keep(page, "modes")


def test_fill(page, address, model):
    answer = visit(page, address, "fill", "en", text="O museu publicava os ___ sobre a ___.")
    assert answer.locator("mark").count() == 2 and answer.locator("tr").count() == 3
    keep(page, "fill")
    ask(page, "fill", text="A professora ___ os livros.")
    api.expect(answer.locator("mark")).to_have_count(1)
    stock = pipeline("fill-mask", model, trust_remote_code=True)("A professora <mask> os livros.")
    shown = [float(text.rstrip(" %")) for text in answer.locator("small").all_inner_texts()]
    assert shown == pytest.approx([each["score"] * 100 for each in stock], abs=0.006)


@pytest.mark.parametrize("prefix", [0, 1])
def test_write(page, address, model, prefix):
    fields = {"prompt": "Havia um rio", "prefix": prefix, "tokens": 30, "temperature": 0, "seed": 1}
    answer = visit(page, address, "write", **fields)
    inputs = AutoTokenizer.from_pretrained(model)(fields["prompt"], return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    options = {"prefix_length": torch.tensor([length])} if prefix else {}
    options |= {"do_sample": False, "max_new_tokens": 30, "bad_words_ids": [[0], [1], [3]]}
    ids = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=True).generate(**inputs, **options)[0]
    expected = AutoTokenizer.from_pretrained(model).decode(ids, skip_special_tokens=True)
    page.wait_for_function(
        "text => document.querySelector('#answer-write').textContent.trim() === text", arg=expected.strip()
    )
    assert answer.locator("b").inner_text() == fields["prompt"]
    keep(page, "write")


@pytest.mark.skipif("MODEL" in os.environ, reason="another model copies nothing")
def test_what_is_copied_is_marked(page, address, copied):
    row, text = copied
    words = text.split()
    answer = visit(page, address, "write", "en", prompt=" ".join(words[:5]), tokens=len(text), temperature=0)
    mark = answer.locator("mark").first
    api.expect(mark).to_contain_text(" ".join(words[5:20]))
    assert mark.get_attribute("title") == f"{row['source']}; {row['license']}"
    api.expect(answer).to_contain_text("Copied word for word from")
    api.expect(answer.locator("li").first).to_have_text(f"{row['source']} ({row['license']})")
    mark.focus()
    keep(page, "copied")


def test_writing_stops(page, address, model):
    answer = visit(page, address, "write", prompt="O", tokens=200, temperature=2)
    page.evaluate(STOP)
    ask(page, "write", prompt="O museu")
    api.expect(answer).to_contain_text("O museu")
    last, stopped = None, answer.inner_text()
    while stopped != last:  # the last words may still be on their way
        page.wait_for_timeout(1500)
        last, stopped = stopped, answer.inner_text()
        assert "Error" not in stopped
    *_, whole = Checkpoint(model).write("O museu", False, 200, 2.0, 1)
    assert len(stopped) < len("O museu" + whole) * 0.9


def test_which_is_likelier(page, address, scorer):
    sentences = "Hoje eu li o livro.", "Hoje eu leu o livro."
    answer = visit(page, address, "likelier", "en", one=sentences[0], other=sentences[1])
    rows = answer.locator("tr").all_inner_texts()[1:]
    for mode, row in zip(("causal", "masked", "fused"), rows, strict=True):
        shown = [float(each) for each in re.findall(r"\d+\.\d+", row)]
        one, other = (bits(scorer, sentence, mode) for sentence in sentences)
        assert shown == pytest.approx([one, other, abs(one - other)], abs=0.011)
        assert ("the first" in row) == (one < other)
    keep(page, "likelier")


def test_the_address_is_the_state(page, address, browser):
    answer = visit(page, address, text="Sim.")
    ask(page, "modes", text="O mar & o céu?")
    api.expect(answer).to_contain_text("céu")
    said = parse_qs(urlsplit(page.url).fragment)
    assert said == {"tab": ["modes"], "text": ["O mar & o céu?"]}
    again = browser.new_page()
    again.goto(page.url)
    api.expect(again.locator("#answer-modes")).to_contain_text("céu", timeout=PATIENCE)
    assert again.locator("#answer-modes").inner_text() == answer.inner_text()
    again.get_by_text("English", exact=True).first.click()  # the other language takes the text along
    api.expect(again.locator("#answer-modes")).to_contain_text("Masked", timeout=PATIENCE)
    api.expect(again.locator("#answer-modes")).to_contain_text("céu")
    assert again.locator("html").get_attribute("lang") == "en"
    ask(again, "modes", text="O sol?")
    api.expect(again.locator("#answer-modes")).to_contain_text("sol", timeout=PATIENCE)
    assert again.url == f"{address}/en#tab=modes&text=O+sol%3F"
    again.close()
    visit(
        page, address, "write", tokens="many", temperature="nan", seed=-5, prompt="O"
    )  # what makes no sense is left out


def test_what_people_write_is_text(page, address):
    evil = '<script>alert(1)</script><img src=x onerror="alert(2)"> {{value}} ${alert(3)}'
    for tab, fields in {
        "modes": {"text": evil},
        "fill": {"text": evil + " ___"},
        "write": {"prompt": evil},
        "likelier": {"one": evil, "other": "Sim."},
    }.items():
        answer = visit(page, address, tab, **fields)
        api.expect(answer).to_contain_text("onerror")
        text = re.sub(r"[\s␣]", "", answer.text_content())
        assert "<script>alert(1)</script>" in text and "{{value}}${alert(3)}" in text
        assert answer.locator("script, img").count() == 0


@pytest.mark.parametrize("text, line", [("", "vazio"), ("   ", "vazio"), ("a b " * 25_000, "longo demais")])
def test_what_is_refused_is_refused_in_one_line(page, address, text, line):
    for tab in ("modes", "fill", "write"):
        answer = visit(page, address, tab, text="Sim ___.", prompt="Sim.")
        ask(page, tab, text=text)
        api.expect(answer.get_by_role("alert")).to_contain_text(line)
        assert answer.locator("p").count() == 1


def test_ten_clicks_at_once_and_ten_visitors(page, address, browser, scorer):
    answer = visit(page, address, text="Sim.")
    page.locator("#panel-modes textarea").fill(SENTENCE)
    page.evaluate("() => { for (let i = 0; i < 10; i++) document.querySelector('#go-modes').click() }")
    api.expect(answer).to_contain_text("devagar")
    visitors = [browser.new_page() for _ in range(10)]
    for number, visitor in enumerate(visitors):
        visitor.goto(f"{address}/#tab=modes&text=Havia+{number}+casas.", wait_until="commit")
    for number, visitor in enumerate(visitors):
        api.expect(visitor.locator("#answer-modes")).to_contain_text(f" {number} casas", timeout=PATIENCE)
        found = sum(numbers(visitor.locator("#answer-modes"), "causal"))
        assert found == pytest.approx(bits(scorer, f"Havia {number} casas.", "causal"), abs=0.1)
        visitor.close()


def test_an_answer_comes_soon(page, address):
    answer, waits = visit(page, address, text="Sim."), []
    for number in range(5):
        page.locator("#panel-modes textarea").fill(f"{SENTENCE} {number}")
        began = time.monotonic()
        page.locator("#go-modes").click()
        api.expect(answer.locator("figure.causal")).to_contain_text(f" {number}")
        waits.append(time.monotonic() - began)
    print("an answer after", *(f"{wait * 1000:.0f}" for wait in waits), "ms")
    assert min(waits) < 2


def test_on_a_phone(address, browser):
    phone = browser.new_page(viewport={"width": 375, "height": 740}, is_mobile=True, has_touch=True)
    phone.set_default_timeout(PATIENCE)
    for tab in ("modes", "fill", "likelier"):
        visit(phone, address, tab)
        assert phone.evaluate("document.documentElement.scrollWidth") <= 375, tab
    visit(phone, address, "modes")
    keep(phone, "phone")
    phone.close()


def test_by_keyboard(page, address):
    visit(page, address, "fill")
    box = page.locator("#panel-fill textarea")
    box.focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("O Brasil ___ grande.")
    for _ in range(6):  # to the button
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "go-fill":
            break
    page.keyboard.press("Enter")
    api.expect(page.locator("#answer-fill")).to_contain_text("grande")
    page.get_by_role("tab").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#panel-modes").is_visible()


def test_a_model_of_older_code_says_what_it_lacks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "space"))
    import app

    loading = Future()
    loading.set_result(object())
    assert "older" in [*app.answer("fill", loading, app.TEXTS["en"], "O ___ é grande.")][-1]
