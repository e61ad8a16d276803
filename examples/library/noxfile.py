"""Sessions of nox: `nox -l` lists them, and arguments after `--` go to pytest."""

import nox

nox.options.reuse_existing_virtualenvs = True

PYPROJECT = nox.project.load_toml("pyproject.toml")
TEST = nox.project.dependency_groups(PYPROJECT, "test")
REQUIREMENTS = nox.project.dependency_groups(PYPROJECT, "backends")
BACKENDS = {name.split(">=")[0].removesuffix("-cpu"): name for name in REQUIREMENTS}


@nox.session
@nox.parametrize("backend", [*BACKENDS])
def unit(session: nox.Session, backend: str) -> None:
    """The layer's values on one backend, with no other installed."""
    session.install(".", *TEST, BACKENDS[backend])
    env = {"KERAS_BACKEND": backend}
    session.run("pytest", "--ignore=tests/test_agreement.py", *session.posargs, env=env)


@nox.session
def agreement(session: nox.Session) -> None:
    """All backends, compared."""
    session.install(".", *TEST, *REQUIREMENTS)
    env = {"KERAS_BACKEND": "jax"}  # of the tests themselves; each target has a process of its own
    session.run("pytest", "tests/test_agreement.py", *session.posargs, env=env)
