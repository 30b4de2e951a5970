"""Adagrad that clips the gradient of every parameter by itself."""

from torch.optim import Adagrad

from fairseq.optim import LegacyFairseqOptimizer, register_optimizer


@register_optimizer("clipped_adagrad")
class ClippedAdagrad(LegacyFairseqOptimizer):
    def __init__(self, args, params):
        super().__init__(args)
        self._optimizer = _Clipped(params, **self.optimizer_config)

    @staticmethod
    def add_args(parser):
        parser.add_argument("--weight-decay", "--wd", default=0.0, type=float, metavar="WD")
        parser.add_argument("--own-clip", default=0.0, type=float, metavar="D")

    @property
    def optimizer_config(self):
        return {
            "lr": self.args.lr[0],
            "weight_decay": self.args.weight_decay,
            "own_clip": self.args.own_clip,
        }

    @property
    def supports_flat_params(self):
        return False


class _Clipped(Adagrad):
    def __init__(self, params, lr, weight_decay, own_clip):
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.defaults["own_clip"] = own_clip
        for group in self.param_groups:
            group.setdefault("own_clip", own_clip)

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and group["own_clip"]:
                    limit = group["own_clip"] / (parameter.grad.norm() + 1e-6)
                    parameter.grad.mul_(limit.clamp(max=1.0))
        return super().step(closure)
