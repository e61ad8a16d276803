"""The command line: one file a command.

The modules of the commands import keras, NumPy and rich inside their functions, so that `--help`
answers at once and the command can still choose the backend.
"""

import click

from multibackend_lstm import __version__
from multibackend_lstm.cli.agree import agree
from multibackend_lstm.cli.demo import demo
from multibackend_lstm.cli.doctor import doctor
from multibackend_lstm.cli.explain import explain
from multibackend_lstm.cli.export import export
from multibackend_lstm.cli.migrate import migrate
from multibackend_lstm.cli.port import port
from multibackend_lstm.cli.shared import Commands
from multibackend_lstm.cli.stream import stream


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="multibackend-lstm")
def main() -> None:
    """Recurrent models on 4D sensor tensors, alike on TensorFlow, PyTorch and JAX."""


main.add_command(agree)
main.add_command(demo)
main.add_command(doctor)
main.add_command(explain)
main.add_command(export)
main.add_command(migrate)
main.add_command(port)
main.add_command(stream)
