"""What all commands say when they are called wrongly."""

import pytest

import carolina_originality
import eval as evaluation
import train
from flexqwen import __main__ as verbs


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (evaluation.main, ["--model", "x", "--task", "wsc_pt"], "did you mean '--tasks'?"),
        (carolina_originality.main, ["build", "--corpus", "x", "--measur", "ngram"], "did you mean '--measure'?"),
        (verbs.main, ["tokenizer", "--vocab-sizes", "9"], "did you mean '--vocab_size'?"),
        (verbs.main, ["study", "run", "x.yaml", "--worker", "2"], "did you mean '--workers'?"),
        (train.main, ["--learningrate", "1"], "did you mean 'learning_rate'?"),
        (train.main, [], "usage: train.py <config.yaml>"),
        (carolina_originality.main, ["bild"], "did you mean 'build'?"),
        (evaluation.main, ["--model", "x", "--tasks", "minimal_pair"], "did you mean 'minimal_pairs'?"),
        (evaluation.main, ["--model", "x", "--modes", "casual"], "did you mean 'causal'?"),
        (verbs.main, [], "the following arguments are required: verb"),
    ],
)
def test_a_wrong_call_is_one_line_with_the_remedy(main, words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and said in error
