"""The templates of docs/how-to/pods: what they start is a run, and two and four processes with a
disk each that they start leave what one process leaves.

The programs of a cluster are replaced by stand-ins on PATH: `srun` sets the variables that SLURM
sets, `ssh` runs its words here, and `jaxloop` runs the small study of these tests.
"""

import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import HERE
from test_stores import SECONDS, restored

from jaxloop import cli, config, studies
from tests.store_servers import free_port

TEMPLATES = Path(__file__).parents[2] / "docs" / "how-to" / "pods"

STUDY = f"""#!/bin/bash
name=${{JAXLOOP_PROCESS:-$SLURM_PROCID}}
export JAXLOOP_CACHE="$DISKS/machine$name"
exec {sys.executable} {HERE / "study.py"} "$STORE" 4 0.1
"""
SRUN = """#!/bin/bash
export SLURM_STEP_NODELIST=127.0.0.1 SLURM_STEP_NUM_NODES=$SLURM_NTASKS SLURM_LOCALID=0
export SLURM_STEP_NUM_TASKS=$SLURM_NTASKS SLURM_STEP_TASKS_PER_NODE="1(x$SLURM_NTASKS)"
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i "$@" & started+=($!); done
for one in "${started[@]}"; do wait $one || code=$?; done
exit ${code:-0}
"""
SSH = """#!/bin/bash
shift
exec bash -c "$*"
"""


def commands():
    """(template, a command line of jaxloop in it)."""
    found = []
    for path in sorted(TEMPLATES.iterdir()):
        text = path.read_text()
        if path.suffix == ".yaml":
            content = yaml.safe_load(text)
            if content.get("kind") == "JobSet":
                for job in content["spec"]["replicatedJobs"]:
                    pod = job["template"]["spec"]["template"]["spec"]
                    found += [(path.name, one["command"]) for one in pod["containers"]]
                continue
            text = content["run"]
        for line in text.replace("\\\n", " ").splitlines():
            if "jaxloop run" in line and not line.startswith("#"):
                words = line[line.index("jaxloop run") :].removesuffix("&")
                found.append((path.name, shlex.split(words.replace("$SLURM_ARRAY_TASK_ID", "3"))))
    return found


def test_every_template_has_a_command():
    assert {name for name, _ in commands()} == {path.name for path in TEMPLATES.iterdir()}


@pytest.mark.parametrize("name, words", commands(), ids=[name for name, _ in commands()])
def test_the_commands_are_valid(name, words):
    command = cli.parse(words)
    assert command.action == "run" and studies.is_address(command.workdir)
    raw = config.read_file(command.config)
    schema = studies.config_of(raw.get("study"))
    config.build(schema, config.override(raw, command.overrides, schema))


@pytest.mark.slow
@pytest.mark.parametrize("name, words", commands(), ids=[name for name, _ in commands()])
def test_the_commands_pass_validate(name, words):
    # The config's own models are on the hub; its smallest variant has those in the box.
    words = [*words, "--validate"]
    words[words.index("ratio_sweep")] = "ratio_sweep:tiny"
    flags = [sys.executable, "-m", "jaxloop.main", "validate", *words[2:-1]]
    done = subprocess.run(flags, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0 and "is valid" in done.stdout, done.stderr


def on_path(folder, programs):
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def run_template(name, tmp_path, variables):
    """Run a template, or what SkyPilot would run of it, on machines that are folders."""
    path = TEMPLATES / name
    text = yaml.safe_load(path.read_text())["run"] if path.suffix == ".yaml" else path.read_text()
    script = tmp_path / "script"
    script.write_text(text.replace(":1234", f":{variables['PORT']}"))
    programs = {"jaxloop": STUDY, "srun": SRUN, "ssh": SSH}
    environment = os.environ | {
        "PATH": on_path(tmp_path / f"bin{len(list(tmp_path.glob('bin*')))}", programs),
        "DISKS": str(tmp_path),
        "STORE": f"file://{tmp_path / 'store'}",
    }
    return subprocess.Popen(
        ["bash", str(script)],
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def sky(process, count):
    return {
        "SKYPILOT_NODE_IPS": "\n".join(["127.0.0.1"] * count),
        "SKYPILOT_NUM_NODES": str(count),
        "SKYPILOT_NODE_RANK": str(process),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, count",
    [("slurm.sh", 2), ("slurm.sh", 4), ("slurm_array.sh", 1), ("ssh.sh", 2), ("ssh.sh", 4)]
    + [("skypilot.yaml", 2)],
)
def test_what_a_template_starts_leaves_what_one_process_leaves(
    tmp_path, whole, monkeypatch, name, count
):
    common = {
        "PORT": str(free_port()),
        "HOSTS": " ".join(f"127.0.0.{i + 1}" for i in range(count)),
        "SLURM_JOB_ID": str(random.SystemRandom().randrange(1, 4000)),
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_NTASKS": str(count),
    }
    if name == "slurm_array.sh":
        # As SLURM sets them for a job of one task without a step.
        common |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    each = [sky(i, count) for i in range(count)] if name == "skypilot.yaml" else [{}]
    started = [run_template(name, tmp_path, common | more) for more in each]
    for one in started:
        said = one.communicate(timeout=SECONDS)[0]
        assert one.returncode == 0, said
    assert len(list(tmp_path.glob("machine*"))) == count
    assert restored(tmp_path, f"file://{tmp_path / 'store'}", monkeypatch) == whole[1]
