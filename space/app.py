"""A page on which people try a FlexQwen: one text in both modes, filled, continued, compared with another.

    python space/app.py --model <folder, or repository of the Hub> [--port 7860]

Portuguese at /, English at /en. What is asked stands in the page's address after `#`, which no server sees.
"""

import argparse
import gc
import html
import json
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest import mock

import yaml

if __name__ == "__main__":
    gc.disable()  # until the model is loaded: what is imported is no garbage, and looking for some takes a second
with mock.patch("inspect.getfile", side_effect=OSError):
    import gradio as gr  # else it writes stubs of its components for editors, each time, for two seconds

HERE = Path(__file__).parent
MODEL = "runs/quickstart/hybrid-shift-256/best"  # `python -m flexqwen publish --space` writes the published one
TEXTS = yaml.safe_load((HERE / "texts.yaml").read_text(encoding="utf-8"))
EXAMPLES = {tab: texts["examples"] for tab, texts in TEXTS["pt"]["tabs"].items()}
WRITTEN = 40  # tokens, unless told otherwise
# The fields of each tab: their names in texts.yaml and in the page's address, and their values at first.
FIELDS = {
    "modes": {"text": EXAMPLES["modes"][0][0]},
    "fill": {"text": EXAMPLES["fill"][0][0]},
    "write": {"prompt": EXAMPLES["write"][0][0], "prefix": 0, "tokens": WRITTEN, "temperature": 0.8, "seed": 1},
    "likelier": dict(zip(("one", "other"), EXAMPLES["likelier"][0], strict=True)),
}
RANGES = {"prefix": (0, 1, 1), "tokens": (1, 200, 1), "temperature": (0, 2, 0.1), "seed": (0, 2**31 - 1, 1)}
HIDDEN = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 2}

# Run when a button is pressed: the address tells what was asked. Spaces show the page in a frame of their own page.
REMEMBER = """(...fields) => {
  const names = %s, hash = new URLSearchParams([["tab", "%s"], ...names.map((name, i) => [name, fields[i]])]);
  history.replaceState(null, "", location.pathname + location.search + "#" + hash);  // "#" alone is the page at /
  if (parent !== window) parent.postMessage({queryString: "", hash: "#" + hash}, "https://huggingface.co");
  return fields;
}"""
# Run when the page has come: what the address asks for. A link to the other language keeps it.
RECALL = """() => {
  document.documentElement.lang = "%s";
  document.addEventListener("click", event => {
    const link = event.target.closest("a");
    if (link && link.origin === location.origin && !link.hash) link.hash = location.hash;
  }, true);
  return [JSON.stringify(Object.fromEntries(new URLSearchParams(location.hash.slice(1))))];
}"""


def line(text: str) -> str:
    """One line that says why there is no answer, or not yet; screen readers read it out."""
    return f'<p class="line" role="alert">{html.escape(text)}</p>'


def load(model: str, dataset: Path | None, place: Path | None):
    """The checkpoint; its `index` is that of the dataset in which to look for what it writes, if there is one."""
    from answers import Checkpoint  # here, not above: the page comes seconds before torch has been imported

    checkpoint = Checkpoint(model)
    checkpoint.index = None
    if dataset:
        sys.path.append(str(HERE.parent))  # the library lies beside this folder; a page that was published has none
        from flexqwen.data.trace import Index

        checkpoint.index = Index(dataset, place)
    return checkpoint


def write(checkpoint, texts, prompt, prefix, tokens, temperature, seed):
    """Yields the answer of the tab that writes, a token longer each time."""
    from answers import find_copies, show_written

    prompt = prompt.strip()
    yield show_written(prompt, "", texts)
    written = ""
    for written in checkpoint.write(prompt, bool(prefix), int(tokens), temperature, int(seed or 0)):
        yield show_written(prompt, written, texts)
    yield show_written(prompt, written, texts, find_copies(checkpoint.index, written))


def answer(tab: str, loading: Future, texts: dict, *fields):
    """Yields the answer of a tab; where there is none, one line says why."""
    if not loading.done():
        yield line(texts["loading"])
    try:
        checkpoint = loading.result()
    except Exception as error:  # foreign files raise anything; whoever serves the page reads why
        print(f"error: the model could not be loaded: {error}")
        yield line(texts["failed"])
        return
    import answers

    try:
        found = (write if tab == "write" else getattr(answers, f"show_{tab}"))(checkpoint, texts, *fields)
        if isinstance(found, str):
            yield found
        else:
            yield from found
    except answers.Refused as refused:
        values = {name: texts["units"].get(value, value) for name, value in refused.values.items()}
        yield line(texts[refused.reason].format(**values))
    except AttributeError as error:  # the code of an older checkpoint lacks `fill`
        print(f"error: {error}")
        yield line(texts["lacking"])


def read_address(address: str) -> tuple[str, dict[str, dict]]:
    """The tab that an address asks for, and the fields of all tabs; what is not there, or no value, is as at first."""
    try:
        asked = dict(json.loads(address))
    except (ValueError, TypeError):
        asked = {}
    tab = asked.get("tab") if asked.get("tab") in FIELDS else "modes"
    fields = {name: dict(first) for name, first in FIELDS.items()}
    for name, first in FIELDS[tab].items():
        with suppress(ValueError, TypeError, OverflowError, KeyError):
            value = type(first)(asked[name])
            low, high, _ = RANGES.get(name, ("", value, None))
            if low <= value <= high:  # not NaN either
                fields[tab][name] = value
    return tab, fields


def recall(loading: Future, texts: dict, address: str):
    """Yields what an address asks for: first the tab and the value of each field, then the tab's answer as a whole.

    As a whole, since parts of it that are under way would come in between where somebody presses the button meanwhile.
    """
    tab, fields = read_address(address)
    first = [gr.Tabs(selected=tab), *(value for values in fields.values() for value in values.values())]
    waiting = gr.skip() if loading.done() else line(texts["loading"])
    yield [*first, *(waiting if name == tab else gr.skip() for name in FIELDS)]
    *_, shown = answer(tab, loading, texts, *fields[tab].values())
    yield [*(gr.skip() for _ in first), *(shown if name == tab else gr.skip() for name in FIELDS)]


def field(name: str, value, texts: dict) -> gr.components.Component:
    """The component of a field."""
    if name == "prefix":
        choices = [(choice, place) for place, choice in enumerate(texts["prefixes"])]
        return gr.Radio(choices, value=value, label=texts[name])
    if name in ("tokens", "temperature"):
        low, high, step = RANGES[name]
        return gr.Slider(low, high, value, step=step, label=texts[name])
    if name == "seed":
        low, high, _ = RANGES[name]
        return gr.Number(value, label=texts[name], precision=0, minimum=low, maximum=high)
    return gr.Textbox(value, label=texts[name], max_lines=6)  # Enter asks, Shift+Enter breaks the line


def build(page: gr.Blocks, language: str, model: str, loading: Future) -> None:
    """Puts the page of a language into `page`."""
    texts = TEXTS[language]
    gr.Navbar(main_page_name="Português")
    gr.Markdown(f"# {texts['title']}\n{texts['intro'].format(model=model)}", elem_id="intro")
    fields, boxes, buttons, answers = {}, {}, {}, {}
    with gr.Tabs() as tabs:
        for tab, first in FIELDS.items():
            says = texts["tabs"][tab]
            with gr.Tab(says["name"], id=tab, elem_id=f"panel-{tab}", render_children=True):
                gr.Markdown(says["about"])
                fields[tab] = [field(name, value, texts) for name, value in first.items()]
                boxes[tab] = [each for each in fields[tab] if isinstance(each, gr.Textbox)]
                with gr.Row():
                    buttons[tab] = gr.Button(says["button"], variant="primary", elem_id=f"go-{tab}")
                    if tab == "write":
                        stop = gr.Button(texts["stop"], elem_id="stop")
                answers[tab] = gr.HTML(elem_id=f"answer-{tab}", elem_classes="answer")
                gr.Examples(EXAMPLES[tab], boxes[tab], label=texts["examples"], api_visibility="private")
    gr.Markdown(texts["privacy"])
    address = gr.Textbox(visible=False)
    outputs = [tabs, *(each for several in fields.values() for each in several), *answers.values()]
    show = partial(recall, loading, texts)
    recalled = page.load(show, address, outputs, js=RECALL % texts["lang"], **HIDDEN)
    for tab, first in FIELDS.items():
        ask, js = partial(answer, tab, loading, texts), REMEMBER % (json.dumps(list(first)), tab)
        triggers = [buttons[tab].click, *(box.submit for box in boxes[tab])]
        asked = gr.on(triggers, ask, fields[tab], answers[tab], js=js, cancels=[recalled], **HIDDEN)
        if tab == "write":
            stop.click(None, cancels=[asked, recalled], **HIDDEN)


class Iterators(dict):
    """Gradio's answers under way. Its own raises where two presses of a button end the same one, and shows an error."""

    def __delitem__(self, key: str) -> None:
        self.pop(key, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL, help="a folder, or a repository of the Hub")
    parser.add_argument("--port", type=int, help="7860 by default, or the next one that is free")
    parser.add_argument("--dataset", type=Path, help="mark what the model copies from it when it writes")
    parser.add_argument("--trace_index", type=Path, help="where the index of that is; <dataset>.trace by default")
    args = parser.parse_args()
    loading = ThreadPoolExecutor(1).submit(load, args.model, args.dataset, args.trace_index)
    loading.add_done_callback(lambda _: gc.enable())
    with gr.Blocks(title="FlexQwen", analytics_enabled=False) as page:
        build(page, "pt", args.model, loading)
    with page.route("English", "/en"):
        build(page, "en", args.model, loading)
    # The history of runs would keep what people write in their browsers.
    look = {"css_paths": HERE / "style.css", "footer_links": ["gradio"]}
    app, *_ = page.launch(server_port=args.port, run_history=False, ssr_mode=False, prevent_thread_lock=True, **look)
    app.iterators = Iterators(app.iterators)
    page.block_thread()
    sys.stdout.flush()
    os._exit(0)  # Ctrl-C ends the page at once, though the model may still be loading


if __name__ == "__main__":
    main()
