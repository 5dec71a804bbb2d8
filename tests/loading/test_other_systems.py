"""Planning, loading and saving use nothing that Windows or macOS lacks.

Nobody ran it there: the process has the libraries, and then loses what such a system doesn't have.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loadkit

ROOT = Path(loadkit.__file__).parent

MODULES = {
    "win32": ["crypt", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"],
    "darwin": [],
}  # fmt: skip
"""What can't be imported. (`posix` is what `os` is made of here: it is taken out after that.)"""

NAMES = {
    "win32": {
        "os": [
            *("O_CLOEXEC", "O_DIRECTORY", "O_DSYNC", "O_SYNC", "WNOHANG"),
            *("chown", "confstr", "ctermid", "eventfd", "fdatasync", "fork", "forkpty"),
            *("geteuid", "getegid", "getgid", "getloadavg", "getpgid", "getpriority", "getuid", "killpg"),
            *("lchown", "lockf", "memfd_create", "mkfifo", "mknod", "nice", "openpty", "pathconf", "pidfd_open"),
            *("posix_fadvise", "posix_fallocate", "posix_spawn", "pread", "preadv", "pwrite", "pwritev"),
            *("readv", "register_at_fork", "sched_getaffinity", "sched_setaffinity", "setsid"),
            *("setuid", "sync", "sysconf", "uname", "wait", "waitid", "writev"),
        ],
        "signal": [
            *("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1"),
            *("SIGURG", "SIGUSR2", "SIGWINCH", "alarm", "pause", "pthread_kill", "pthread_sigmask"),
            *("setitimer", "siginterrupt", "sigpending", "sigwait"),
        ],
        "mmap": ["MADV_DONTNEED", "MADV_SEQUENTIAL", "MAP_PRIVATE", "MAP_SHARED", "PROT_READ", "PROT_WRITE"],
        "time": ["clock_getres", "clock_gettime", "tzset"],
    },
    "darwin": {
        "os": [
            *("eventfd", "fdatasync", "memfd_create", "pidfd_open", "posix_fadvise", "posix_fallocate"),
            *("sched_getaffinity", "sched_setaffinity"),
        ],
        "mmap": ["MADV_HUGEPAGE"],
    },
}  # fmt: skip

LEFT = re.compile(r"\bos\.(O_NONBLOCK|O_NOFOLLOW|fchmod|fchown|statvfs|fstatvfs|sendfile|openpty|mkfifo)\b")
"""What Windows lacks too, and stays: the standard library and filelock use it on Linux."""

ELSEWHERE = """
import json, sys, os

system, modules, names, folder, out = json.loads(sys.argv[1])
import accelerate, bitsandbytes, numba, peft, torch, transformers.models.mistral.modeling_mistral
import click, filelock, huggingface_hub, multiprocessing.connection, packaging.requirements, platformdirs, pluggy
import psutil, pynvml, rich.console, rich.live, rich.progress, rich.table, tempfile, unittest.mock, uuid, xxhash, yaml
import builtins, ctypes, importlib, io, signal

real_open, real_stat, real_listdir, real_dll = io.open, os.stat, os.listdir, ctypes.CDLL

def by_loadkit():
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("pathlib", "io", "os", "genericpath", "posixpath"):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").startswith("loadkit")

def only_linux(path):
    return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(("/proc", "/sys", "/dev/shm"))

def without(real):
    def call(path=".", *args, **kwargs):
        if only_linux(path) and by_loadkit():
            raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
        return real(path, *args, **kwargs)
    return call

class NoSelf(real_dll):
    def __init__(self, name, *args, **kwargs):
        if name is None and by_loadkit() and system == "win32":
            raise TypeError("expected str, bytes or os.PathLike object, not NoneType")
        super().__init__(name, *args, **kwargs)

for name in modules:
    sys.modules[name] = None
for module, attributes in names.items():
    for attribute in attributes:
        if hasattr(importlib.import_module(module), attribute):
            delattr(importlib.import_module(module), attribute)
builtins.open = io.open = without(real_open)
os.stat, os.listdir = without(real_stat), without(real_listdir)
ctypes.CDLL = NoSelf
sys.platform = system

import loadkit
from loadkit.cli.main import main

main(["plan", folder, "qlora", "--json"], standalone_mode=False)
said = {"machine": loadkit.plan(folder, "lora").machine}
for profile in ("lora", "qlora"):
    loaded = loadkit.load(folder, profile, verify="full")
    again = loadkit.load(folder, profile)  # the second QLoRA load takes what the first one kept
    loaded.save_pretrained(f"{out}/{profile}")
    back = loadkit.load(f"{out}/{profile}", "inference" if profile == "lora" else "inference-4bit")
    loaded.manifest().save(f"{out}/{profile}.json")
    said[profile] = [type(loaded.model).__name__, type(back.model).__name__, loaded.report.shortcuts, again.report.shortcuts]
loadkit.load(replay=f"{out}/lora.json")
loadkit.merge(f"{out}/lora", f"{out}/merged")
said["merged"] = type(loadkit.load(f"{out}/merged", "inference").model).__name__
main(["cache", "list"], standalone_mode=False)
main(["doctor"], standalone_mode=False)
print("\\n" + json.dumps(said))
"""


@pytest.mark.parametrize(
    "system", [pytest.param(s, marks=[pytest.mark.slow] if s == "darwin" else []) for s in MODULES]
)
def test_it_loads_without_what_that_system_lacks(
    tiny: Callable[..., Path], kernels: Path, tmp_path: Path, system: str
) -> None:
    about = [system, MODULES[system], NAMES[system], str(tiny("mistral")), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, json.dumps(about)],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={**os.environ, "LOADKIT_CACHE": str(tmp_path / "cache"), "LOADKIT_QUANTIZED_CACHE": "1"},
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert said["merged"] == "MistralForCausalLM"
    assert said["lora"][:2] == said["qlora"][:2] == ["PeftModelForCausalLM"] * 2
    assert "CPU" in said["machine"]
    kept = said["qlora"][3]
    assert any("quantized-cache" in line for line in kept), kept


def test_what_had_to_stay_is_used_nowhere() -> None:
    sources = [*ROOT.rglob("*.py"), *(ROOT.parent / "plugins" / "loadkit_plugins").rglob("*.py")]
    used = {path.name for path in sources if LEFT.search(path.read_text(encoding="utf-8"))}
    assert len(sources) > 300
    assert not used
