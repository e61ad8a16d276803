"""`python -m multibackend_lstm`: the command line."""

from multibackend_lstm.cli import main

if __name__ == "__main__":
    main(prog_name="multibackend-lstm")
