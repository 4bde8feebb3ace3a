"""A Space is published: the page that loads the published model, and nothing over what is there."""

import pytest

from flexqwen.hub import publisher
from flexqwen.hub.space import FILES, PAGE
from tests.helpers.hub_server import WRITE, HubServer
from tests.helpers.runs import connect


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer() as server:
        connect(server.url, str(tmp_path), WRITE, monkeypatch)
        server.new("model", "org/model", {"config.json": b"{}"})
        server.new("model", "org/empty", {"README.md": b""})
        server.new("space", "org/other", {"app.py": b"print('mine')"})
        yield server


def test_a_space_loads_the_published_model(hub, capsys):
    publisher.main(["--repo", "org/model", "--space", "org/demo"])
    assert f"{hub.url}/spaces/org/demo" in capsys.readouterr().out
    repo = hub.repos["space", "org/demo"]
    assert (
        set(FILES) == repo.files.keys() - {".gitattributes"} == {file.name for file in PAGE.iterdir() if file.is_file()}
    )
    assert b'\nMODEL = "org/model"  #' in repo.files["app.py"] and b"\nmodels: [org/model]\n" in repo.files["README.md"]
    assert repo.files["answers.py"] == (PAGE / "answers.py").read_bytes()
    publisher.main(["--repo", "org/model", "--space", "org/demo"])
    assert len(repo.commits) == 2  # nothing changed, nothing is committed


@pytest.mark.parametrize(
    "options, says",
    [
        (["--repo", "org/empty", "--space", "org/demo"], "has no model at its root"),
        (["--repo", "org/none", "--space", "org/demo"], "has no model at its root"),
        (["--repo", "org/model", "--space", "org/other"], "holds another app"),
        (["--repo", "org/model", "--space", "demo"], "names no repository"),
        (["--repo", "org/model"], "nothing to publish"),
    ],
)
def test_what_cannot_be_published_is_left_alone(hub, options, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        publisher.main(options)
    assert stopped.value.code == 2 and says in capsys.readouterr().err
    assert ("space", "org/demo") not in hub.repos and len(hub.repos["space", "org/other"].commits) == 1
