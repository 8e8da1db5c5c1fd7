"""One optimiser step on the share of the batch that this process has: precision, accumulation, clipping, averaging.

The gradients are averaged over the processes here and not by DistributedDataParallel: a GAN runs each network
several times a step, and freezes the discriminators in between, which DDP's hooks do not allow.
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from petct_lib import InputError


def precision(asked: str) -> str:
    """The precision asked for, "no" or "bf16"; for "auto" bf16 where GPU or processor computes in it: it is faster."""
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "no"


Loss = Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], dict[str, Tensor]]]


class Updates:
    """Updates a stage's networks; a stage's `step` calls it once for each of its optimisers.

    accumulate: a batch goes through in so many parts, whose gradients add up to the whole's. clip_norm: longer
    gradients are shortened to it; None: never. mixed_precision: "no" or "bf16".
    """

    def __init__(
        self, optimisers: dict[str, torch.optim.Optimizer], *, accelerator: Accelerator | None = None,
        accumulate: int = 1, clip_norm: float | None = None, mixed_precision: str = "no",
    ) -> None:  # fmt: skip
        self.optimisers, self.accumulate, self.clip_norm = optimisers, accumulate, clip_norm
        self.bf16 = mixed_precision == "bf16"
        self.accelerator = accelerator
        self.processes = accelerator.num_processes if accelerator else 1

    def __call__(self, kind: str, loss_of: Loss, batch: dict[str, Tensor]) -> tuple[dict, dict]:
        """Minimises the sum of the losses that `loss_of(batch)` gives, with optimiser `kind`.

        Returns its losses (means over the parts) and its other tensors (images joined, numbers averaged), detached.
        """
        optimiser = self.optimisers[kind]
        optimiser.zero_grad(set_to_none=True)
        parts = []
        for part in self._parts(batch):
            device = next(iter(part.values())).device.type
            with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
                losses, others = loss_of(part)
            (sum(losses.values()) / self.accumulate).backward()
            parts.append([{key: value.detach() for key, value in group.items()} for group in (losses, others)])
        parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        self._average(parameters)
        if self.clip_norm is not None:
            clip_grad_norm_(parameters, self.clip_norm)
        optimiser.step()
        return _joined([losses for losses, _ in parts]), _joined([others for _, others in parts])

    def _parts(self, batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        size = len(next(iter(batch.values())))
        if size % self.accumulate:
            raise InputError(f"{size} slices a process cannot be accumulated in {self.accumulate} equal parts")
        chunks = {key: value.split(size // self.accumulate) for key, value in batch.items()}
        return [{key: chunks[key][i] for key in batch} for i in range(self.accumulate)]

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


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Numbers averaged, images (B, …) put one after the other."""
    values = {key: [part[key] for part in parts] for key in parts[0]}
    return {key: torch.stack(v).mean(0) if v[0].dim() == 0 else torch.cat(v) for key, v in values.items()}
