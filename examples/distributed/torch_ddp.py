"""PyTorch: processes by torchrun, `torchrun --nproc-per-node 2 torch_ddp.py`.

With NCCL on GPUs, one a process, else with gloo on the CPU.
"""

import argparse
import os

os.environ["KERAS_BACKEND"] = "torch"

import torch


def main() -> None:
    """Train."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:  # before keras, which computes on the current one
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    import common

    options = common.add_options(argparse.ArgumentParser(description=__doc__)).parse_args()
    # `same_run` wraps the model in DistributedDataParallel, by `distribution.data_parallel`.
    history = common.train(options)
    if torch.distributed.get_rank() == 0:
        processes = torch.distributed.get_world_size()
        common.report(options, "torch DistributedDataParallel", processes, history["loss"])
    # Else gloo may wait for ever: it puts the last all-reduce away with Python's lock, which the
    # end of DistributedDataParallel holds (seen with PyTorch 2.13).
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
