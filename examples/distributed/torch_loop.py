"""PyTorch: a loop of one's own with an optimizer of torch, by torchrun as `torch_ddp.py`.

A Keras model on torch is a `torch.nn.Module`, and `DistributedDataParallel` takes it as it is. Two
lines make its numbers those of one process: `global_rows`, for dropout, and the loss as a sum over
these rows divided by the rows of the whole batch.
"""

import argparse
import os

os.environ["KERAS_BACKEND"] = "torch"

import torch
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    """Train."""
    torch.distributed.init_process_group("gloo")
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    import common

    from multibackend_lstm.agreement import fit_order, initialize
    from multibackend_lstm.distribution import global_rows

    options = common.add_options(argparse.ArgumentParser(description=__doc__)).parse_args()
    x, y = (torch.from_numpy(a) for a in common.data(options.solution))
    model = common.new_model(options.solution)
    initialize(model, seed=0)
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.Adam([v.value for v in model.trainable_variables], lr=1e-3)
    losses = []
    for epoch in range(options.epochs):
        order = torch.from_numpy(fit_order(len(x), seed=0, epoch=epoch))
        total = torch.zeros(())
        for batch in order.split(options.batch_size):
            starts = [len(batch) * n // processes for n in range(processes + 1)]
            own = batch[starts[rank] : starts[rank + 1]]
            with global_rows(starts[rank], len(own)):
                probabilities = ddp(x[own], training=True)
            loss = torch.nn.functional.nll_loss(
                torch.log(probabilities), y[own].long(), reduction="sum"
            )
            optimizer.zero_grad()
            (loss * processes / len(batch)).backward()  # DDP averages over processes
            optimizer.step()
            total += loss.detach()
        torch.distributed.all_reduce(total)
        losses.append(float(total) / len(x))
    if rank == 0:
        common.report(options, "torch loop", processes, losses)
    # Else gloo may wait for ever: it puts the last all-reduce away with Python's lock, which the
    # end of DistributedDataParallel holds (seen with PyTorch 2.13).
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
