"""The job that trains on a rented machine: killed and started on another one, it resumes and publishes."""

import os
import re
import runpy
import signal
import subprocess
import sys
import time

import pytest
import yaml

import carolina_originality
from tests.helpers.hub_server import WRITE, HubServer
from tests.helpers.runs import CONFIG, ROOT, connect

STEPS = {"max_steps": 40, "save_steps": 10, "eval_steps": 20, "logging_steps": 10}


def start(hub, place, config):
    place.mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(place / "home"), "HF_TOKEN": WRITE, "HF_HUB_DISABLE_XET": "1"}
    own |= {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}  # compilers take a minute
    words = ["--code", ROOT, "--dataset", "org/carolina", "--repo", "org/model", "--vocab_size", "400", config]
    command = [sys.executable, ROOT / "jobs/train.py", *map(str, words)]
    return subprocess.Popen(
        command, cwd=place, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def test_a_job_that_is_killed_resumes_on_another_machine(built, tmp_path, monkeypatch):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, **STEPS}))
    with HubServer() as hub:
        with monkeypatch.context() as patch:
            connect(hub.url, str(tmp_path / "home"), WRITE, patch)
            carolina_originality.main(["push", str(built), "--repo", "org/carolina"])
        first = start(hub, tmp_path / "one", config)
        run, model = "hybrid-shift-64", ("model", "org/model")
        while first.poll() is None and not (
            model in hub.repos and f"{run}/step_000010/model.safetensors" in hub.repos[model].files
        ):
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)  # with all its processes, as a machine is lost
        printed = first.communicate()[0]
        assert first.returncode == -signal.SIGKILL, printed
        second = start(hub, tmp_path / "two", config)
        again = second.communicate(timeout=240)[0]
        assert second.returncode == 0, again
        assert "fastest here" in printed and "fastest here" not in again and "resum" in again
        assert {f"{run}/step_000040/model.safetensors", "model.safetensors"} <= set(hub.repos[model].files)


def test_a_job_has_the_tested_versions():
    wanted = set(re.findall(r'"([\w-]+==[\w.]+)"', (ROOT / "jobs/train.py").read_text().split("# ///")[1]))
    tested = set(re.findall(r"^[\w-]+==[\w.]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert len((ROOT / "jobs/train.py").read_text().splitlines()) <= 60
    assert wanted <= tested and {pin.split("==")[0] for pin in tested - wanted} == {"pytest-xdist", "ruff"}


def test_a_job_takes_no_token_from_its_command(monkeypatch):
    words = ["--code", str(ROOT), "--dataset", "a/b", "--repo", "c/d", "tiny.yaml", "--hub-token", "hf_secret"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    with pytest.raises(SystemExit, match=r"^give the token as a secret: -s HF_TOKEN$"):
        runpy.run_path(str(ROOT / "jobs/train.py"))
