"""Settings of the fuzzer's tests, which run once a backend, as the unit tests do."""

from fuzz.worker import prepare

prepare()
