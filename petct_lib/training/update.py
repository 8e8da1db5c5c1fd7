"""One optimiser step on the share of the batch that this process has: precision, and gradients averaged over processes.

The gradients are averaged over the processes here and not by DistributedDataParallel: a GAN runs each network
several times a step, and freezes the discriminators in between, which DDP's hooks do not allow.
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def choose_precision(name: str) -> str:
    """The precision asked for, "no" or "bf16"; for "auto" bf16 where GPU or processor computes in it: it is faster."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "no"


Loss = Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], dict[str, Tensor]]]


class Updates:
    """Updates a stage's networks; a stage's `step` calls it once for each of its optimisers.

    mixed_precision: "no" or "bf16".
    """

    def __init__(
        self, optimisers: dict[str, torch.optim.Optimizer], *, accelerator: Accelerator | None = None,
        mixed_precision: str = "no",
    ) -> None:  # fmt: skip
        self.optimisers, self.bf16 = optimisers, mixed_precision == "bf16"
        self.accelerator = accelerator
        self.processes = accelerator.num_processes if accelerator else 1

    def __call__(self, kind: str, loss_of: Loss, batch: dict[str, Tensor]) -> tuple[dict, dict]:
        """Minimises the sum of the losses that `loss_of(batch)` gives, with optimiser `kind`.

        Returns its losses and its other tensors (images, numbers), detached.
        """
        optimiser = self.optimisers[kind]
        optimiser.zero_grad(set_to_none=True)
        device = next(iter(batch.values())).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            losses, others = loss_of(batch)
        sum(losses.values()).backward()
        self._average([p for group in optimiser.param_groups for p in group["params"] if p.grad is not None])
        optimiser.step()
        return tuple({key: value.detach() for key, value in group.items()} for group in (losses, others))

    def _average(self, parameters: list[nn.Parameter]) -> None:
        if self.processes == 1:
            return
        grads = [p.grad for p in parameters]
        mean = self.accelerator.reduce(parameters_to_vector(grads), reduction="mean")
        vector_to_parameters(mean, grads)

    def everyone(self, images: Tensor) -> Tensor:
        """(B, …) of each process → (processes · B, …) of all, in the order of the whole batch."""
        return self.accelerator.gather(images.contiguous()) if self.processes > 1 else images

    def own(self, whole: Tensor) -> Tensor:
        """The rows of the whole batch that this process has; also of a NumPy array."""
        if self.processes == 1:
            return whole
        share, rank = len(whole) // self.processes, self.accelerator.process_index
        return whole[rank * share : (rank + 1) * share]
