"""Sessions of nox: `nox -l` lists them, and arguments after `--` go to the command inside.

`nox --no-venv -s ...` installs nothing and runs in a Python that already holds what is needed, GPU
builds of the backends for one: the Python that runs nox, or the one on PATH if that has no keras.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "tests"]

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
BACKENDS = ("tensorflow", "torch", "jax")
# The distribution that stands for a backend in tests: TensorFlow's CPU wheel is the small one.
BACKEND_REQUIREMENTS = {
    requirement.split(">=")[0].removesuffix("-cpu"): requirement
    for requirement in nox.project.dependency_groups(PYPROJECT, "backends")
}
TWO_PROCESSES = ("-n", "2")
UNIT_TESTS = ("tests/unit", "tests/fuzz", "-m", "not slow", *TWO_PROCESSES)
ACROSS_BACKENDS_TESTS = ("tests/across_backends", "examples")
CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))


def has_environment(session: nox.Session) -> bool:
    """Whether the session has an environment of its own, into which it may install."""
    return session.venv_backend != "none"


def pip_install(session: nox.Session, *arguments: str) -> None:
    """Install into the session's environment; without one, use what is there."""
    if has_environment(session):
        session.install(*arguments)
    else:
        session.log("no virtual environment: what is installed is used as it is")


def install(session: nox.Session, *requirements: str) -> None:
    """Install the package with its `plot` extra and what else a session needs."""
    pip_install(session, *CONSTRAINTS, "-e", ".[plot]", *requirements)


def python(
    session: nox.Session, *arguments: str | Path, env: Mapping[str, str | None] | None = None
) -> None:
    """Run the session's Python; without an environment, one that finds this checkout."""
    if has_environment(session):
        session.run("python", *arguments, env=env)
        return
    interpreter = sys.executable if find_spec("keras") else "python"
    env = {**(env or {})}
    paths = [str(ROOT), *filter(None, [env.get("PYTHONPATH"), os.environ.get("PYTHONPATH")])]
    env["PYTHONPATH"] = os.pathsep.join(paths)
    session.run(interpreter, *arguments, env=env, external=True)


def group(name: str) -> list[str]:
    """The requirements of a dependency group of pyproject.toml."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


def pytest(session: nox.Session, backend: str, *arguments: str, **env: str) -> None:
    """Run pytest on one backend, in processes of its own."""
    env = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", **env}
    python(session, "-m", "pytest", *arguments, *session.posargs, env=env)


@nox.session
def demo(session: nox.Session) -> None:
    """Train every solution on real sensor data, and compare the backends."""
    install(session, *group("backends"))
    python(session, "-m", "multibackend_lstm", "demo", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Some unit tests on each backend in turn, then some comparisons between backends."""
    install(session, *group("test"), *group("backends"))
    # One in ten of each file on each backend, so that a first run takes minutes; `unit` runs all.
    for backend in BACKENDS:
        pytest(session, backend, *UNIT_TESTS, "--one-in", "10")
    # On torch, which need not compile, in the tests that have one target. One in three: each
    # starts processes of its own.
    comparisons = ("tests/agreement", *ACROSS_BACKENDS_TESTS, "-m", "not slow")
    pytest(session, "torch", *comparisons, "--one-in", "3")


@nox.session
def slow(session: nox.Session) -> None:
    """The tests marked slow, on each backend in turn."""
    install(session, *group("test"), *group("backends"))
    for backend in BACKENDS:
        pytest(session, backend, "tests/unit", "-m", "slow", *TWO_PROCESSES)


@nox.session
@nox.parametrize("backend", BACKENDS)
def unit(session: nox.Session, backend: str) -> None:
    """Unit tests on one backend, with no other installed."""
    install(session, *group("test"), BACKEND_REQUIREMENTS[backend])
    pytest(session, backend, *UNIT_TESTS)
    # The rest of tests/agreement is the same whatever is installed.
    pytest(session, backend, "tests/agreement/test_check.py", "-m", "not slow")


@nox.session
def minimums(session: nox.Session) -> None:
    """Unit tests on the oldest supported versions, with the lightest backend."""
    if not has_environment(session):
        session.error("the oldest versions need an environment of their own: leave out --no-venv")
    project = PYPROJECT["project"]
    oldest = [
        requirement.replace(">=", "==")
        for requirement in [
            *project["dependencies"],
            *project["optional-dependencies"]["jax"],
            *project["optional-dependencies"]["plot"],
            *project["optional-dependencies"]["sklearn"],
        ]
    ]
    session.install(*oldest, *group("test"))
    session.install("--no-deps", "-e", ".")
    # Old releases use what their own dependencies have deprecated since.
    warnings = ("-W", "ignore::DeprecationWarning")
    pytest(session, "jax", *UNIT_TESTS, *warnings)


@nox.session(default=False)
@nox.parametrize("backend", BACKENDS)
def nightly(session: nox.Session, backend: str) -> None:
    """Unit tests on one backend with tomorrow's Keras; skipped where that itself is broken."""
    if not has_environment(session):
        session.error("keras-nightly needs an environment of its own: leave out --no-venv")
    project = PYPROJECT["project"]
    requirements = [name for name in project["dependencies"] if not name.startswith("keras")]
    requirements += [*project["optional-dependencies"]["plot"], *group("test")]
    session.install(*CONSTRAINTS, *requirements, BACKEND_REQUIREMENTS[backend])
    session.install("--no-deps", "-e", ".")
    # Both provide the module `keras`, and TensorFlow requires the one that is not wanted here.
    session.run("python", "-m", "pip", "uninstall", "--yes", "keras", "keras-nightly")
    broken = "keras-nightly itself cannot be {} here, so nothing is known about this package"
    try:
        session.install(*CONSTRAINTS, *group("nightly"))
    except CommandFailed:
        session.skip(broken.format("installed"))
    try:
        python(session, "tests/nightly/probe.py", env={"KERAS_BACKEND": backend})
    except CommandFailed:
        session.skip(broken.format("used"))
    # Without the fuzzer's: it draws Keras's own Bidirectional, whose masks differ there by design.
    pytest(session, backend, *(test for test in UNIT_TESTS if test != "tests/fuzz"))


@nox.session(default=False)
@nox.parametrize("backend", BACKENDS)
def keras_tests(session: nox.Session, backend: str) -> None:
    """Keras's own tests of recurrent layers on one backend, with ours in their place."""
    install(session, *group("test"), BACKEND_REQUIREMENTS[backend])
    pytest(session, backend, "tests/keras_tests")


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint and types."""
    install(session, *group("lint"), *group("test"), "nox")
    python(session, "-m", "ruff", "format", "--check", ".")
    python(session, "-m", "ruff", "check", ".")
    python(session, "-m", "mypy", *session.posargs)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Fuzz the layers on a backend: `nox -s fuzz -- --cases 10000 --backend jax`."""
    install(session, *group("test"), *group("backends"))
    python(session, ROOT / "tests" / "fuzz", *session.posargs)


@nox.session(default=False)
def fuzz_files(session: nox.Session) -> None:
    """Read thousands of damaged files: `nox -s fuzz_files -- --files 3000 --seed 0`."""
    install(session, *group("test"), *group("backends"))
    python(session, ROOT / "tests" / "fuzz" / "files.py", *session.posargs)


@nox.session(default=False)
def benchmarks(session: nox.Session) -> None:
    """Run a benchmark script: `nox -s benchmarks -- time_distributed.py --repeats 5`."""
    install(session, *group("benchmarks"), *group("backends"))
    script, *arguments = session.posargs or ("time_distributed.py",)
    python(session, ROOT / "benchmarks" / script, *arguments)


@nox.session(default=False)
def distributed(session: nox.Session) -> None:
    """Train on several devices by each backend's engine, as on one; kill and go on."""
    install(session, *group("test"), *group("backends"))
    pytest(session, "torch", "tests/distributed")


@nox.session(default=False)
@nox.parametrize("device", [nox.param(kind, id=kind) for kind in ("cpu", "gpu")])
def agreement(session: nox.Session, device: str) -> None:
    """Compare the backends on a device: `nox -s "agreement(gpu)"` fails where there is no GPU.

    On a GPU that is `benchmarks/gpu.py`: agreement, speed and scaling within 8 minutes, as JSON and
    a page.
    """
    if device == "cpu":
        install(session, *group("test"), *group("backends"))
        pytest(session, "jax", *ACROSS_BACKENDS_TESTS)
        return
    # TensorFlow's CPU wheel computes the truth in float64; its GPU build wants CUDA libraries of
    # other versions than torch's, so an environment of its own.
    backends = [requirement.replace("jax", "jax[cuda12]") for requirement in group("backends")]
    install(session, *group("test"), *group("benchmarks"), *backends)
    chosen = () if "--backends" in session.posargs else ("--backends", "torch", "jax")
    script = ROOT / "benchmarks" / "gpu.py"
    python(session, script, "--device", "gpu", *chosen, *session.posargs)


@nox.session(default=False)
def gpu_dry_run(session: nox.Session) -> None:
    """Lower and trace every layer for a GPU, on a machine that has none.

    An environment of its own, for torch's build for CUDA too, which is large.
    """
    install(session, *group("test"), *group("backends"))
    for backend in BACKENDS:
        pytest(session, backend, "tests/unit/gpu_dry_run", JAX_PLATFORMS="cpu")


@nox.session
def docs(session: nox.Session) -> None:
    """Run every Python example of README.md and docs/, and follow their links."""
    install(session, "-e", ".[export]", *group("test"), *group("docs"), *group("backends"))
    pytest(session, "jax", "tests/docs")


@nox.session
def docs_site(session: nox.Session) -> None:
    """Build the documentation into site/ and check it; `-- --browser` opens it in Chromium too."""
    pip_install(session, *CONSTRAINTS, *group("site"))
    strict = {"NO_MKDOCS_2_WARNING": "1"}  # an advertisement
    python(session, "-m", "mkdocs", "build", "--strict", env=strict)
    python(session, "tools/check_site.py", "site")
    if session.posargs[:1] == ["--browser"]:
        pip_install(session, *CONSTRAINTS, *group("browser"))
        python(session, "tools/open_site.py", "site", *session.posargs[1:])


@nox.session
def library(session: nox.Session) -> None:
    """Build the template examples/library, and run its tests on what was built."""
    install(session, *group("test"), *group("backends"))
    template = ROOT / "examples" / "library"
    with tempfile.TemporaryDirectory() as folder:
        built = str(Path(folder, "built"))
        pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--target", built)
        python(session, *pip, template)
        shutil.copytree(template / "tests", Path(folder, "tests"))
        # Outside the checkout, so that the wheel is what gets imported.
        with session.chdir(folder):
            pytest(session, "jax", "tests", PYTHONPATH=built)


@nox.session
def export(session: nox.Session) -> None:
    """Export from every backend and run the artefacts; `-- -m "not slow"` for some of them."""
    install(session, "-e", ".[export]", *group("test"), *group("backends"))
    pytest(session, "jax", "tests/export", *TWO_PROCESSES)


@nox.session
def legacy(session: nox.Session) -> None:
    """Compare migrated models with the old files, which tf-keras runs."""
    install(session, *group("test"), BACKEND_REQUIREMENTS["tensorflow"])
    # Its requirement is `tensorflow`, for which the CPU wheel stands here.
    pip_install(session, "--no-deps", *group("legacy"))
    interpreter = sys.executable if not has_environment(session) else f"{session.bin}/python"
    pytest(
        session,
        "tensorflow",
        "tests/unit/migration/test_migrate_cli.py",
        "tests/unit/migration/test_layers_of_keras_2.py",
        TF_KERAS_PYTHON=str(interpreter),
    )


@nox.session
def build(session: nox.Session) -> None:
    """Build wheel and sdist, check them, and run the wheel in an environment of its own."""
    pip_install(session, *group("build"))
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    python(session, "-m", "build", "--outdir", "dist", *session.posargs)
    python(session, "-m", "twine", "check", "--strict", *(ROOT / "dist").iterdir())
    (wheel,) = (ROOT / "dist").glob("*.whl")
    with tempfile.TemporaryDirectory() as folder:
        python(session, "-m", "venv", folder)
        built = str(Path(folder, "Scripts" if os.name == "nt" else "bin", "python"))
        session.run(built, "-m", "pip", "install", "--quiet", f"{wheel}[jax]", external=True)
        # Outside the checkout, so that the wheel is what gets imported.
        with session.chdir(folder):
            module = (built, "-m", "multibackend_lstm")
            session.run(*module, "doctor", external=True)
            session.run(*module, "demo", "--solution", "reshape", "--epochs", "1", external=True)


@nox.session(default=False)
def release(session: nox.Session) -> None:
    """Build a version and check it: `nox -s release -- 0.1.0`. Signs nothing, publishes nothing."""
    python(session, "tools/check_release.py", *session.posargs)
    session.posargs.clear()  # they are not those of `python -m build`
    build(session)
    for path in sorted((ROOT / "dist").iterdir()):
        session.log(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
