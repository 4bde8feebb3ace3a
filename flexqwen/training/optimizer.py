"""Muon for the matrices of the layers, AdamW for everything else (Jordan et al., 2024; arXiv 2502.16982)."""

import torch


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's own Muon and AdamW behind the interface of one optimiser, as schedulers and checkpoints expect.

    Args:
        model: its layers' 2D weights go to Muon; embeddings, head, norms and biases to AdamW.
        learning_rate: of both. Muon's update is scaled to the RMS of AdamW's (`adjust_lr_fn="match_rms_adamw"`, arXiv
            2502.16982, section 2.2), so that one rate, one schedule and one weight decay serve both.
        weight_decay: not applied to vectors.
    """

    def __init__(self, model, learning_rate: float, weight_decay: float, betas: tuple[float, float], eps: float):
        matrices, others, vectors = [], [], []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                group = vectors if parameter.ndim < 2 else matrices if ".layers." in name else others
                group.append(parameter)
        muon = torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        groups = [{"params": others, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps)
        self.optimizers = [muon, adamw]
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts work on this optimiser's own groups and state, so that there is one copy to schedule and save."""
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
