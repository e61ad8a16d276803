"""The template is a package of its own: `nox -s library` builds it, and tests what it built."""

collect_ignore = ["library"]
