"""Muon for the matrices of the layers, AdamW for everything else (Jordan et al., 2024; arXiv 2502.16982)."""

import math
from collections import defaultdict

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from flexqwen.training.cpu import has_bfloat16


class BatchedMuon(torch.optim.Muon):
    """torch's Muon, but matrices of one shape are made orthogonal together, in float32 where bfloat16 is emulated."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            parameters, gradients, buffers = [], [], []
            self._init_group(group, parameters, gradients, buffers)
            if not parameters:
                continue
            momentum, rate = group["momentum"], group["lr"]
            torch._foreach_lerp_(buffers, gradients, 1 - momentum)
            updates = torch._foreach_lerp(gradients, buffers, momentum) if group["nesterov"] else buffers
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
            places = defaultdict(list)
            for place, parameter in enumerate(parameters):
                places[parameter.shape].append(place)
            for shape, same in places.items():
                whole = [u.full_tensor() if isinstance(u, DTensor) else u for u in map(updates.__getitem__, same)]
                made = orthogonalize(torch.stack(whole), group["ns_coefficients"], group["ns_steps"], group["eps"])
                mine, targets = made.to(whole[0].dtype).unbind(), [parameters[place] for place in same]
                if isinstance(targets[0], DTensor):
                    meshes = [(target.device_mesh, target.placements) for target in targets]
                    mine = [distribute_tensor(one, *mesh) for one, mesh in zip(mine, meshes, strict=True)]
                # To the RMS of AdamW's update, as `adjust_lr_fn="match_rms_adamw"`.
                torch._foreach_add_(targets, mine, alpha=-rate * 0.2 * math.sqrt(max(shape)))


def orthogonalize(matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float):
    """The orthogonal factor of each of `(number, rows, columns)`, about, by Newton-Schulz iterations.

    In bfloat16 where the hardware has it, else in float32, which is then 3 to 20 times as fast.
    """
    a, b, c = coefficients
    has_bf16 = matrices.device.type != "cpu" or has_bfloat16()
    x = matrices.bfloat16() if has_bf16 else matrices.float()
    is_tall = x.size(-2) > x.size(-1)
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's own Muon and AdamW behind the interface of one optimizer, as schedulers and checkpoints expect.

    The layers' 2D weights go to Muon; embeddings, head, norms and biases to AdamW. Muon's update is scaled to the RMS
    of AdamW's (arXiv 2502.16982, section 2.2), so that one rate, one schedule and one weight decay, from which vectors
    are free, serve both.
    """

    def __init__(self, model, learning_rate: float, weight_decay: float, betas: tuple[float, float], eps: float):
        matrices, others, vectors = [], [], []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                group = vectors if parameter.ndim < 2 else matrices if ".layers." in name else others
                group.append(parameter)
        muon = BatchedMuon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        groups = [{"params": others, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps)
        self.optimizers = [muon, adamw]
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts work on this optimizer's own groups and state, so that there is one copy to schedule and save."""
        count = len(self.optimizers[0].param_groups)
        for part, groups in zip(self.optimizers, (self.param_groups[:count], self.param_groups[count:]), strict=True):
            part.param_groups, part.state = groups, self.state

    def load_state_dict(self, state_dict) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure=None):
        loss = None if closure is None else closure()
        for part in self.optimizers:
            part.step()
        return loss
