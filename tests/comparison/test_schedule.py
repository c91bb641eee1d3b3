# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Jobs run in order, in parallel, once; failures stay where they are; Ctrl-C reaches the children."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dacal_med.comparison.schedule import Job, run_jobs
from dacal_med.io.errors import InputError

# Notes its start and end beside its folder, so that overlaps can be counted.
WRITE = """
import pathlib, time
folder = pathlib.Path({folder!r})
events = folder.parent / "events.txt"
def note(what):
    with events.open("a") as file:
        file.write(f"{{what}} {{folder.name}}\\n")
note("start")
time.sleep({seconds})
{body}
(folder / "metrics.json").write_text("done")
note("end")
"""


def job(root: Path, name: str, body: str = "", seconds: float = 0.0, **options) -> Job:
    folder = root / name
    code = WRITE.format(folder=str(folder), body=body, seconds=seconds)
    return Job(name, folder, (sys.executable, "-S", "-c", code), **options)


def run(jobs, max_parallel=1, **options):
    return run_jobs(jobs, max_parallel, out=io.StringIO(), **options)


def events(root: Path) -> list[str]:
    return (root / "events.txt").read_text().splitlines()


def test_jobs_run_in_order_and_dependencies_first(tmp_path):
    jobs = [job(tmp_path, "c", after=("b",)), job(tmp_path, "a"), job(tmp_path, "b", after=("a",))]
    outcomes = run(jobs)
    assert list(outcomes) == ["c", "a", "b"]
    assert all(o.succeeded and not o.skipped and o.message == "" and o.seconds > 0 for o in outcomes.values())
    assert events(tmp_path) == [f"{what} {name}" for name in "abc" for what in ("start", "end")]


def test_never_more_than_max_parallel_at_once(tmp_path):
    run([job(tmp_path, f"j{k}", seconds=0.3) for k in range(5)], max_parallel=2)
    running, most = 0, 0
    for line in events(tmp_path):
        running += 1 if line.startswith("start") else -1
        most = max(most, running)
    assert most == 2
    assert len(events(tmp_path)) == 10


def test_a_finished_job_is_skipped_and_a_failed_one_tried_again(tmp_path):
    body = "if not (folder.parent / 'repaired').exists(): raise ValueError('not yet')"
    jobs = [job(tmp_path, "good"), job(tmp_path, "bad", body)]
    first = run(jobs)
    assert (first["good"].succeeded, first["bad"].succeeded) == (True, False)
    assert first["bad"].message == "exit status 1: ValueError: not yet"
    (tmp_path / "repaired").touch()
    second = run(jobs)
    assert second["good"] == type(second["good"])("good", True, skipped=True, seconds=0.0, message="")
    assert second["bad"].succeeded and not second["bad"].skipped
    assert events(tmp_path).count("start good") == 1
    log = (tmp_path / "bad" / "log.txt").read_text()
    assert log.count("$ ") == 2, "the log is appended to"


def test_a_failure_stops_only_what_needs_it(tmp_path):
    jobs = [
        job(tmp_path, "bad", "raise SystemExit(3)"),
        job(tmp_path, "child", after=("bad",)),
        job(tmp_path, "grandchild", after=("child",)),
        job(tmp_path, "other"),
    ]
    outcomes = run(jobs, max_parallel=2)
    assert outcomes["bad"].message == "exit status 3; nothing in its log.txt"
    assert outcomes["child"].message == "needs bad, which failed"
    assert outcomes["grandchild"].message == "needs child, which failed"
    assert outcomes["other"].succeeded
    assert not (tmp_path / "child").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('fine')", "ended without writing metrics.json: fine"),
        ("import os; os.kill(os.getpid(), 9)", "ended by signal 9 (Killed); nothing in its log.txt"),
        (
            "print('RuntimeError: out of memory'); print('cleaning up'); raise SystemExit(1)",
            "exit status 1: RuntimeError: out of memory",
        ),
        ("print('calibration error 0.1'); print('last'); raise SystemExit(2)", "exit status 2: last"),
    ],
)
def test_a_failure_tells_status_and_error(tmp_path, code, message):
    outcomes = run([Job("x", tmp_path / "x", (sys.executable, "-S", "-c", code))])
    assert outcomes["x"].message == message


def test_a_command_that_does_not_exist_fails_alone(tmp_path):
    outcomes = run([Job("x", tmp_path / "x", ("/nowhere/program",)), job(tmp_path, "other")])
    assert outcomes["x"].message.startswith("cannot be started: ")
    assert outcomes["other"].succeeded


def test_only_the_last_attempt_is_searched_for_errors(tmp_path):
    jobs = [Job("x", tmp_path / "x", (sys.executable, "-S", "-c", "raise SystemExit(4)"))]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "log.txt").write_text("ValueError: an earlier attempt\n")
    assert run(jobs)["x"].message == "exit status 4; nothing in its log.txt"


def test_resume_is_appended_only_where_checkpoints_are(tmp_path):
    code = "import sys, pathlib; pathlib.Path(sys.argv[1], 'metrics.json').write_text(' '.join(sys.argv[2:]))"
    jobs = [
        Job(name, tmp_path / name, (sys.executable, "-S", "-c", code, str(tmp_path / name), "x"), resume=("--resume",))
        for name in ("fresh", "begun", "other")
    ]
    for name, file in (("begun", "checkpoint_iteration=12.pt"), ("other", "model.pt")):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / file).touch()
    assert all(outcome.succeeded for outcome in run(jobs).values())
    written = {name: (tmp_path / name / "metrics.json").read_text() for name in ("fresh", "begun", "other")}
    assert written == {"fresh": "x", "begun": "x --resume", "other": "x"}
    assert run(jobs)["begun"].skipped, "resume is no part of the fingerprint"


def test_results_of_another_command_are_refused_before_anything_starts(tmp_path):
    run([job(tmp_path, "b")])
    with pytest.raises(InputError, match=r"b belongs to another configuration.*--out, or delete"):
        run([job(tmp_path, "a"), job(tmp_path, "b", seconds=0.01)])
    assert not (tmp_path / "a").exists()
    record = json.loads((tmp_path / "b" / "job.json").read_text())
    (tmp_path / "b" / "job.json").unlink()
    with pytest.raises(InputError, match=r"found metrics.json without job.json"):
        run([job(tmp_path, "b")])
    assert record["fingerprint"] == job(tmp_path, "b").fingerprint()
    (tmp_path / "b" / "job.json").write_text("{")
    with pytest.raises(InputError, match=r"job.json is not readable"):
        run([job(tmp_path, "b")])


def test_the_message_names_the_argument_that_differs(tmp_path):
    def measure(value):
        code = "import sys, pathlib; pathlib.Path(sys.argv[1], 'metrics.json').touch()"
        return Job("m", tmp_path / "m", (sys.executable, "-S", "-c", code, str(tmp_path / "m"), *value))

    run([measure(["--epochs=2"])])
    with pytest.raises(InputError, match=r"made with '--epochs=2' where this run has '--epochs=3'"):
        run([measure(["--epochs=3"])])
    with pytest.raises(InputError, match=r"made with '--epochs=2' where this run has 'nothing'"):
        run([measure([])])


def test_threads_are_shared_by_parallel_children(tmp_path):
    code = "import os, sys, pathlib; pathlib.Path(sys.argv[1], 'metrics.json').write_text(os.environ.get('{}', '-'))"
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}

    def threads(name, max_parallel, **extra):
        program = code.format("OMP_NUM_THREADS")
        folder = tmp_path / name
        child = Job(name, folder, (sys.executable, "-S", "-c", program, str(folder)))
        run([child], max_parallel, environment={**environment, **extra})
        return (folder / "metrics.json").read_text()

    assert threads("alone", 1) == "-"
    assert threads("shared", 2) == str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert threads("many", 1000) == "1"
    assert threads("given", 2, OMP_NUM_THREADS="7") == "7"


def test_progress_shows_jobs_failures_and_needs_no_terminal(tmp_path):
    out = io.StringIO()
    run_jobs([job(tmp_path, "good", seconds=0.2), job(tmp_path, "bad", "raise ValueError('why')")], 1, out=out)
    text = out.getvalue()
    assert "2/2" in text
    assert "good" in text
    assert "bad failed: exit status 1: ValueError: why" in text


@pytest.mark.parametrize(
    ("jobs", "max_parallel", "message"),
    [
        ([("a", ())], 0, "jobs at once: found 0"),
        ([("a", ()), ("a", ())], 1, "names more than once"),
        ([("a", ("z",))], 1, "'a': must run after 'z'"),
        ([("a", ("b",)), ("b", ("a",))], 1, r"circle: . -> . -> "),
    ],
)
def test_wrong_arguments(tmp_path, jobs, max_parallel, message):
    wrong = [Job(name, tmp_path / str(k), ("true",), after=after) for k, (name, after) in enumerate(jobs)]
    with pytest.raises(InputError, match=message):
        run(wrong, max_parallel)


def test_two_jobs_must_not_share_a_folder(tmp_path):
    with pytest.raises(InputError, match="folders more than once"):
        run([Job("a", tmp_path, ("true",)), Job("b", tmp_path, ("true",))])


PARENT = """
import signal, sys
from pathlib import Path
from dacal_med.comparison import schedule
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have let it be ignored
schedule.GRACE = float(sys.argv[2])
root = Path(sys.argv[1])
saving = '''
import pathlib, signal, sys, time
def save(number, frame):
    time.sleep(0.3)
    (pathlib.Path(sys.argv[1]) / "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGINT, save)
(pathlib.Path(sys.argv[1]) / "ready").touch()
time.sleep(60)
'''
stubborn = '''
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
(pathlib.Path(sys.argv[1]) / "ready").touch()
time.sleep(60)
'''
jobs = [
    schedule.Job(name, root / name, (sys.executable, "-S", "-c", code, str(root / name)))
    for name, code in (("saving", saving), ("stubborn", stubborn), ("never", saving))
]
try:
    schedule.run_jobs(jobs, 2)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_lets_children_save_then_ends_them(tmp_path, subprocess_environment, number):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), "1.0"],
        env=subprocess_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not all((tmp_path / name / "ready").exists() for name in ("saving", "stubborn")):
            assert time.monotonic() < deadline and parent.poll() is None, "the children did not start"
            time.sleep(0.05)
        parent.send_signal(number)
        output, errors = parent.communicate(timeout=30)
    finally:
        parent.kill()
    assert output == "interrupted\n"
    assert "stopping saving, stubborn" in errors
    assert (tmp_path / "saving" / "saved").exists()
    assert not (tmp_path / "never").exists()
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(tmp_path) in command], "a child outlived its parent"


def test_a_follower_runs_after_the_end_of_another_however_it_ended(tmp_path):
    jobs = [job(tmp_path, "b", following=("a",)), job(tmp_path, "a", body="raise SystemExit(3)")]
    outcomes = run(jobs, max_parallel=2)
    assert not outcomes["a"].succeeded and outcomes["b"].succeeded
    assert events(tmp_path) == ["start a", "start b", "end b"]
    with pytest.raises(InputError, match="none of the jobs"):
        run([job(tmp_path, "c", following=("d",))])


def test_other_contents_of_an_input_are_another_job(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("1")
    assert run([job(tmp_path, "a", inputs=(file,))])["a"].succeeded
    assert run([job(tmp_path, "a", inputs=(file,))])["a"].skipped
    file.write_text("2")
    with pytest.raises(InputError, match="its configuration files have changed"):
        run([job(tmp_path, "a", inputs=(file,))])
