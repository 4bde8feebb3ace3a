"""Figures show what the results say."""

from flexqwen.evaluation import figures
from tests.helpers.results import result


def test_a_line_of_a_figure_is_one_metric_of_one_subset(monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.setdefault(path.stem, figure.axes[0]))
    rows = [result([0.0, 1.0], mode=mode) for mode in ("causal", "masked")]
    for subset in ("rte", "sts"):
        for metric in ("accuracy", "macro_f1", "mse"):
            fields = {"task": "u", "mode": "finetuned", "subset": subset, "metric": metric}
            rows.append(result([0.0, 0.6, 1.0], **fields, baseline_name=f"of {metric}"))
    paths = figures.draw_evaluation(rows, tmp_path)
    assert [path.stem for path in paths] == list(drawn) == ["u", "tasks"]
    lines = ["rte, accuracy (n = 3)", "rte, macro f1 (n = 3)", "sts, accuracy (n = 3)", "sts, macro f1 (n = 3)"]
    assert [tick.get_text() for tick in drawn["u"].get_yticklabels()][::-1] == lines
    lines = ["t, accuracy (n = 2)", *(f"u, {line}" for line in lines)]
    assert [tick.get_text() for tick in drawn["tasks"].get_yticklabels()][::-1] == lines
    assert [text.get_text() for text in drawn["u"].get_legend().get_texts()] == ["finetuned", "baseline"]
    assert drawn["u"].get_xlabel() == "value (higher is better)"
