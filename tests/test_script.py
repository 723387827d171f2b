import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import script

ROOT = Path(script.__file__).parent


def run(body: str, *signals: float) -> subprocess.CompletedProcess:
    """A script with this main, sent SIGINT that many seconds after it says "ready"."""
    code = f"import script, sys, time\ndef main():\n    print('ready', flush=True)\n    {body}\nscript.run_main(main)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    for seconds in signals:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess([], process.returncode, out, err)


@pytest.mark.parametrize("error", ("OSError", "ValueError", "FloatingPointError", "FileNotFoundError"))
def test_what_the_user_can_mend_is_one_line(error):
    done = run(f"raise {error}('it is missing: make it')")
    assert (done.returncode, done.stderr) == (1, "error: it is missing: make it\n")


def test_a_mistake_of_ours_keeps_its_traceback():
    assert "Traceback" in run("1 / 0").stderr


def test_ctrl_c_is_one_word_and_the_code_that_shells_expect():
    done = run("time.sleep(20)", 0.1)
    assert (done.returncode, done.stderr) == (130, "stopped\n")


def test_ctrl_c_before_and_after_main_is_silent():
    for code in ("import script, time; script.end_at_once(); print(flush=True); time.sleep(20)",
                 "import script, time; script.run_main(lambda: None); print(flush=True); time.sleep(20)"):  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10)[1] == "" and process.returncode == -signal.SIGINT


def test_ctrl_c_ends_a_worker_at_once(tmp_path):
    """A pool would take a KeyboardInterrupt for the job's answer and go on to the next job."""
    program = tmp_path / "pool.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport script, signal\n"
        "from concurrent.futures import ProcessPoolExecutor\nfrom multiprocessing import get_context\n"
        "def ends(): return signal.getsignal(signal.SIGINT) == signal.SIG_DFL\n"
        "if __name__ == '__main__':\n"
        "    with ProcessPoolExecutor(1, get_context('spawn')) as pool: sys.exit(not pool.submit(ends).result())\n"
    )
    assert subprocess.run([sys.executable, program]).returncode == 0


def test_whoever_imports_a_script_keeps_their_ctrl_c():
    code = "import signal; theirs = signal.getsignal(2); import sample, toy.run; assert signal.getsignal(2) is theirs"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_ctrl_c_that_python_would_drop_ends_the_program():
    """An exception in a destructor is dropped with a note, and the program would go on."""
    body = "K = type('K', (), {'__del__': lambda self: time.sleep(5)}); k = K(); del k; print('went on')"
    done = run(body, 0.3)
    assert done.returncode == 130 and "went on" not in done.stdout and "Traceback" not in done.stderr


def test_an_interruptible_block_is_asked_once_and_stopped_by_a_later_second_signal(monkeypatch):
    with script.interruptible() as asked:
        assert not asked.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the same wish, passed on by a launcher
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.is_set()
        monkeypatch.setattr(script, "PATIENCE", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
