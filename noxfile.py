"""Sessions of nox: `nox -l` lists them, and arguments after `--` go to the command inside."""

import os
import shutil
import tempfile
from pathlib import Path

import nox

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
UNIT_TESTS = ("tests/unit", "-m", "not slow", *TWO_PROCESSES)
CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))


def install(session: nox.Session, *requirements: str, editable: bool = True) -> None:
    """Install the package with its `plot` extra and what else a session needs."""
    package = ("-e", ".[plot]") if editable else (".[plot]",)
    session.install(*CONSTRAINTS, *package, *requirements)


def group(name: str) -> list[str]:
    """The requirements of a dependency group of pyproject.toml."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


def pytest(session: nox.Session, backend: str, *arguments: str) -> None:
    """Run pytest on one backend, in processes of its own."""
    session.run(
        "python",
        "-m",
        "pytest",
        *arguments,
        *session.posargs,
        env={"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


@nox.session
def demo(session: nox.Session) -> None:
    """Train every solution on real sensor data, and compare the backends."""
    install(session, *group("backends"))
    session.run("multibackend-lstm", "demo", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Unit tests on each backend in turn, then the comparisons between backends."""
    install(session, *group("test"), *group("backends"))
    for backend in BACKENDS:
        pytest(session, backend, *UNIT_TESTS)
    pytest(session, "jax", "tests/agreement", "tests/cross_backend", "-m", "not slow")


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
    pytest(session, backend, "tests/agreement", "-m", "not slow")


@nox.session
def minimums(session: nox.Session) -> None:
    """Unit tests on the oldest supported versions, with the lightest backend."""
    project = PYPROJECT["project"]
    oldest = [
        requirement.replace(">=", "==")
        for requirement in [
            *project["dependencies"],
            *project["optional-dependencies"]["jax"],
            *project["optional-dependencies"]["plot"],
        ]
    ]
    session.install(*oldest, *group("test"))
    session.install("--no-deps", "-e", ".")
    # Old releases use what their own dependencies have deprecated since.
    warnings = ("-W", "ignore::DeprecationWarning")
    pytest(session, "jax", *UNIT_TESTS, *warnings)


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint and types."""
    install(session, *group("lint"), "nox")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy", *session.posargs)


@nox.session(default=False)
def benchmarks(session: nox.Session) -> None:
    """Run a benchmark script: `nox -s benchmarks -- time_distributed.py --repeats 5`."""
    install(session, *group("benchmarks"), *group("backends"))
    script, *arguments = session.posargs or ("time_distributed.py",)
    session.run("python", str(ROOT / "benchmarks" / script), *arguments)


@nox.session
def docs(session: nox.Session) -> None:
    """Run every Python example of README.md and docs/, and follow their links."""
    install(session, *group("test"), *group("docs"), *group("backends"))
    pytest(session, "jax", "tests/docs")


@nox.session
def build(session: nox.Session) -> None:
    """Build wheel and sdist, check them, and run the wheel in an environment of its own."""
    session.install(*group("build"))
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", "dist", *session.posargs)
    session.run("twine", "check", "--strict", *map(str, (ROOT / "dist").iterdir()))
    (wheel,) = (ROOT / "dist").glob("*.whl")
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "venv", folder)
        python = str(Path(folder, "Scripts" if os.name == "nt" else "bin", "python"))
        session.run(python, "-m", "pip", "install", "--quiet", f"{wheel}[jax]", external=True)
        # Outside the checkout, so that the wheel is what gets imported.
        with session.chdir(folder):
            module = (python, "-m", "multibackend_lstm")
            session.run(*module, "doctor", external=True)
            session.run(*module, "demo", "--solution", "reshape", "--epochs", "1", external=True)
