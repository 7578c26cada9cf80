"""What is settled before Keras is imported, seen from child processes that have imported nothing yet."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resnetlab import environment
from resnetlab.environment import installed
from resnetlab.errors import ResnetlabError, UsageError

OURS = ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "KERAS_BACKEND", "OMP_NUM_THREADS", "RESNETLAB_VERBOSE", "XLA_FLAGS")


def run(program: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A program in a process that has none of our settings but `settings`."""
    own = {
        key: value for key, value in os.environ.items() if key not in OURS and not key.startswith(("TF_", "RESNETLAB"))
    }
    return subprocess.run(
        [sys.executable, "-c", program], env=own | settings, capture_output=True, text=True, timeout=240
    )


def answer(program: str, **settings: str) -> Any:
    child = run(f"import json, os, sys; from resnetlab import environment\n{program}", **settings)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def test_configure_sets_what_it_says_and_imports_nothing() -> None:
    keys = [
        *OURS,
        "TF_ENABLE_ONEDNN_OPTS",
        "TF_CPP_MIN_LOG_LEVEL",
        "TF_FORCE_GPU_ALLOW_GROWTH",
    ]
    name, env, heavy = answer(
        "name = environment.configure(backend='tensorflow', device='cpu')\n"
        f"env = {{key: os.environ.get(key) for key in {keys}}}\n"
        "heavy = [m for m in ('keras', 'tensorflow', 'jax', 'torch', 'numpy') if m in sys.modules]\n"
        "print(json.dumps([name, env, heavy]))"
    )
    assert name == "tensorflow"
    assert heavy == []
    assert env == {
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "KERAS_BACKEND": "tensorflow",
        "OMP_NUM_THREADS": None,
        "RESNETLAB_VERBOSE": None,
        "XLA_FLAGS": None,
        "TF_ENABLE_ONEDNN_OPTS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }


FAULTS_OF_REUSE = """
import ctypes, resource
environment.configure(backend="tensorflow", device="cpu")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def use(size=64 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([use(), use()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's own")
def test_memory_that_is_freed_is_kept_unless_the_user_has_tuned_malloc() -> None:
    pages = (64 << 20) // 4096
    first, again = answer(FAULTS_OF_REUSE)
    assert again < pages / 100 < first
    first, again = answer(FAULTS_OF_REUSE, MALLOC_MMAP_MAX_="65536")
    assert again > pages / 2


ARENAS_OF_THREADS = """
import ctypes, tempfile, threading
environment.configure(backend="tensorflow", device="cpu")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.fopen.restype = ctypes.c_void_p, ctypes.c_void_p
libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
together = threading.Barrier(16)
def use():
    together.wait()
    for _ in range(100):
        libc.malloc(10_000)
    together.wait()
threads = [threading.Thread(target=use) for _ in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
with tempfile.NamedTemporaryFile() as file:
    stream = libc.fopen(file.name.encode(), b"w")
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(json.dumps([file.read().decode().count("<heap nr="), environment.usable_cores()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's own")
def test_threads_share_arenas_unless_the_user_has_tuned_malloc() -> None:
    arenas, cores = answer(ARENAS_OF_THREADS)
    assert arenas == max(1, cores // 4)
    arenas, _ = answer(ARENAS_OF_THREADS, MALLOC_ARENA_MAX="8")
    assert arenas > 1


def test_jax_may_use_as_much_of_a_gpu_as_the_others() -> None:
    program = (
        "[os.environ.pop(key) for key in ('XLA_CLIENT_MEM_FRACTION',) if os.environ.get(key) == '0.95']\n"
        "environment.installed = lambda name: True\n"
        "environment.configure(backend='jax')\n"
        "print(json.dumps([value for key, value in os.environ.items() if 'CLIENT_MEM_FRACTION' in key]))"
    )
    assert answer(program) == ["0.95"]
    assert answer(program, XLA_PYTHON_CLIENT_MEM_FRACTION="0.5") == ["0.5"]  # JAX refuses both
    assert answer(program, XLA_CLIENT_MEM_FRACTION="0.4") == ["0.4"]


def test_the_users_settings_stay_and_no_gpu_is_hidden_unasked() -> None:
    env = answer(
        "environment.configure(device='auto', onednn=True); print(json.dumps(dict(os.environ)))",
        TF_ENABLE_ONEDNN_OPTS="0",
        TF_CPP_MIN_LOG_LEVEL="1",
        KERAS_BACKEND="tensorflow",
        CUDA_VISIBLE_DEVICES="1",
    )
    assert (env["TF_ENABLE_ONEDNN_OPTS"], env["TF_CPP_MIN_LOG_LEVEL"], env["CUDA_VISIBLE_DEVICES"]) == ("0", "1", "1")
    assert "JAX_PLATFORMS" not in env
    assert "TF_ENABLE_ONEDNN_OPTS" not in answer(
        "environment.configure(backend='tensorflow', onednn=False); print(json.dumps(dict(os.environ)))"
    )


def test_the_backend_is_the_one_asked_for_then_that_of_the_environment_then_the_first() -> None:
    found = answer(
        "environment.installed = lambda name: name != 'tensorflow'\n"
        "first = environment.configure()\n"
        "os.environ['KERAS_BACKEND'] = 'torch'\n"
        "print(json.dumps([first, environment.configure(), environment.configure(backend='jax')]))"
    )
    assert found == ["jax", "torch", "jax"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"backend": "tensorflw"}, "Unknown backend 'tensorflw'. Did you mean 'tensorflow'?"),
        ({"backend": "numpy"}, "Known: tensorflow, jax, torch."),
        ({"device": "gpus"}, "Unknown device 'gpus'. Did you mean 'gpu'"),
        ({"device": "tpu"}, "Unknown device 'tpu'."),
    ],
)
def test_what_is_unknown_is_told_with_the_nearest(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as error:
        environment.configure(**arguments)
    assert told in str(error.value)


def test_a_backend_that_is_not_installed_is_told_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "installed", lambda name: False)
    with pytest.raises(ResnetlabError, match=r"'jax' is not installed. Install: pip install 'resnetlab\[jax\]'"):
        environment.configure(backend="jax")
    monkeypatch.delenv("KERAS_BACKEND")
    with pytest.raises(ResnetlabError, match=r"'tensorflow' is not installed. Install: pip install 'resnetlab\[cpu\]'"):
        environment.configure()


def test_keras_on_another_backend_is_told() -> None:
    import keras

    assert keras.backend.backend() == "tensorflow"
    for backend in filter(installed, ("jax", "torch")):
        with pytest.raises(ResnetlabError, match=f"Keras already runs on 'tensorflow'.*{backend!r} was requested"):
            environment.configure(backend=backend)
    assert os.environ["KERAS_BACKEND"] == "tensorflow"  # nothing was changed


def test_start_is_quiet_and_gives_the_terminal_back() -> None:
    child = run(
        "import os; from resnetlab import environment; environment.start(device='cpu')\n"
        "import sys; print('ready'); os.write(2, b'mine'); print(sys.modules['keras'].backend.backend())"
    )
    assert (child.returncode, child.stdout, child.stderr) == (0, "ready\ntensorflow\n", "mine")


def test_what_was_said_is_shown_where_the_import_fails(tmp_path: Path) -> None:
    (tmp_path / "keras.py").write_text(
        "import os; os.write(2, b'libbroken.so: no'); raise ImportError('half installed')"
    )
    program = "from resnetlab import environment; environment.start(backend='tensorflow')"
    child = run(program, PYTHONPATH=str(tmp_path))
    assert child.returncode == 1
    assert "libbroken.so: no" in child.stderr
    assert child.stderr.rstrip().endswith("ImportError: half installed")


def test_a_snapshot_has_versions_and_tells_nothing_of_the_owner() -> None:
    snapshot, heavy = answer(
        "environment.configure(backend='tensorflow', device='cpu')\n"
        "shot = environment.snapshot()\n"
        "print(json.dumps([shot, [m for m in ('keras', 'tensorflow', 'numpy') if m in sys.modules]]))"
    )
    assert heavy == []
    assert {"resnetlab", "keras", "numpy"} <= snapshot["versions"].keys()
    assert snapshot["versions"].keys() & {"tensorflow", "tensorflow-cpu"}
    assert all(version[0].isdigit() for version in snapshot["versions"].values())
    assert snapshot["cores"] == environment.usable_cores() >= 1
    assert snapshot["settings"]["KERAS_BACKEND"] == "tensorflow"
    text = json.dumps(snapshot)
    for private in (str(Path.home()), os.uname().nodename, str(Path(sys.prefix).resolve()), str(Path.cwd())):
        assert len(private) < 3 or private not in text


def test_a_gpu_that_is_not_there_is_told_with_what_was_looked_for(tmp_path: Path) -> None:
    settings = {"CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow", "RESNETLAB_CACHE": str(tmp_path)}
    run_folder = str(tmp_path / "run")
    program = (
        f"import sys; sys.argv = ['resnetlab', 'train', 'digits', '--device', 'gpu', '--run', {run_folder!r}]\n"
        "from resnetlab.cli import main; main()"
    )
    child = run(program, **settings)
    assert child.returncode == 1, child.stderr
    assert child.stderr.startswith("resnetlab: --device gpu: tensorflow sees no GPU. No GPU")
    assert "resnetlab doctor" in child.stderr
    assert "Traceback" not in child.stderr
    assert not (tmp_path / "run").exists()
