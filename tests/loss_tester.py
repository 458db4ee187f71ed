"""What every loss of two networks' logits passes, on every device.

A new loss gets all of it by a class::

    class TestMyLoss(LossTester):
        loss = MyLoss(tau=2.0)

        @staticmethod
        def row(student, teacher, target):  # lists of floats
            return value, gradient

where ``row`` is the loss of one sample in float64, by other means than the
loss's own. The loss is the mean over the rows and is called by keyword.
"""
from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

SHAPES = [(5, 7), (1, 2), (3, 1000), (2, 4, 3, 5), (3, 6, 2), (4, 5, 1, 1, 2)]
# dtype: relative error of the loss, error of the gradient over its largest
# entry. Half-precision gradients are stored in half precision.
TOLERANCES = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (2e-6, 1e-5),
    torch.float16: (2e-6, 1e-3),
    torch.bfloat16: (2e-6, 8e-3),
}


def make(shape: tuple[int, ...], seed: int = 0,
         dtype: torch.dtype = torch.float64, scale: float = 3.0,
         soft: bool = False, device: str = 'cpu') -> tuple[Tensor, ...]:
    """Random logits of a student and a teacher, and labels for them."""
    gen = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(shape, generator=gen, dtype=torch.float64)

    student, teacher = ((scale * normal()).to(device, dtype)
                        for _ in range(2))
    labels = (2 * normal()).softmax(1) if soft else torch.randint(
        shape[1], (shape[0], *shape[2:]), generator=gen)
    return student.requires_grad_(), teacher, labels.to(device)


def rows_of(tensor: Tensor) -> list[list[float]]:
    """``(N, C, *)`` as a list of rows of Python floats."""
    return tensor.detach().cpu().double().movedim(1, -1).reshape(
        -1, tensor.shape[1]).tolist()


def targets_of(labels: Tensor, classes: int) -> list[list[float]]:
    """Labels of either kind as rows of class probabilities."""
    if labels.is_floating_point():
        return rows_of(labels)
    return [oracle.one_hot(y, classes) for y in labels.flatten().tolist()]


class LossTester:
    """Value, gradient, precision, devices, processes, compiler, copies."""

    loss: nn.Module

    @staticmethod
    def row(student: list[float], teacher: list[float],
            target: list[float]) -> tuple[float, list[float]]:
        """Loss and gradient of one sample, of class ``target``."""
        raise NotImplementedError

    def exact(self, student: Tensor, teacher: Tensor,
              labels: Tensor) -> tuple[float, Tensor]:
        """Mean loss and rows of its gradient in float64."""
        rows = [self.row(*row) for row in zip(
            rows_of(student), rows_of(teacher),
            targets_of(labels, student.shape[1]))]
        values, grads = (
            torch.tensor(one, dtype=torch.float64) for one in zip(*rows))
        return values.mean().item(), grads / len(rows)

    def got(self, student: Tensor, teacher: Tensor, labels: Tensor,
            loss: Any = None) -> tuple[float, Tensor]:
        """What the loss gives, its gradient in its own dtype."""
        value = (self.loss if loss is None else loss)(
            student=student, teacher=teacher, gt_labels=labels)
        assert value.dtype == (torch.float64 if student.dtype == torch.float64
                               else torch.float32)
        grad, = torch.autograd.grad(value, student)
        assert grad.dtype == student.dtype
        return value.item(), torch.tensor(rows_of(grad), dtype=torch.float64)

    def compare(self, batch: tuple[Tensor, ...], **options: Any) -> None:
        value, grad = self.got(*batch, **options)
        expected, exact = self.exact(*batch)
        rel, rel_grad = TOLERANCES[batch[0].dtype]
        assert value == pytest.approx(expected, rel=rel)
        assert (grad - exact).abs().max() <= rel_grad * exact.abs().max()

    @pytest.mark.parametrize('shape', SHAPES)
    @pytest.mark.parametrize('soft', [False, True])
    def test_value_and_gradient_are_the_oracles(self, shape, soft, device):
        self.compare(make(shape, soft=soft, device=device))

    @pytest.mark.parametrize('dtype', list(TOLERANCES))
    @pytest.mark.parametrize('shape', [(8, 100), (2, 19, 4, 5)])
    @pytest.mark.parametrize('autocast', [False, True])
    def test_precision(self, dtype, shape, autocast, device):
        batch = make(shape, 1, dtype, device=device)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            self.compare(batch)

    @pytest.mark.parametrize('shape', [(2, 19, 64, 128), (64, 4000)])
    def test_a_loss_scale_keeps_small_gradients(self, shape, device):
        student, teacher, labels = make(shape, 2, torch.float16,
                                        device=device)
        wide = student.detach().double().requires_grad_()
        exact, = torch.autograd.grad(
            self.loss(student=wide, teacher=teacher.double(),
                      gt_labels=labels), wide)
        scale = 65536.0
        grad, = torch.autograd.grad(
            scale * self.loss(student=student, teacher=teacher,
                              gt_labels=labels), student)
        error = (grad.double() / scale - exact).norm() / exact.norm()
        assert error <= 1e-3

    def test_memory_layouts_agree(self, device):
        student, teacher, labels = make((2, 5, 4, 6), device=device)
        for view in (lambda x: x.to(memory_format=torch.channels_last),
                     lambda x: x.transpose(2, 3).contiguous().transpose(2, 3)):
            self.compare((view(student.detach()).requires_grad_(),
                          view(teacher), labels))

    def test_two_processes_average_their_gradients(self, tmp_path):
        student, teacher, labels = make((8, 6), dtype=torch.float32)
        torch.save((self.loss, student.detach(), teacher, labels),
                   tmp_path / 'batch.pt')
        mp.spawn(_train_a_half, (tmp_path, ), nprocs=2)
        whole = _network()
        self.loss(student=whole(student.detach()), teacher=teacher,
                  gt_labels=labels).backward()
        for rank in range(2):
            torch.testing.assert_close(
                torch.load(tmp_path / f'{rank}.pt'), whole.weight.grad)

    @pytest.mark.skipif(
        not hasattr(getattr(torch, 'compiler', None), 'is_compiling'),
        reason='this torch cannot tell that it compiles')
    @pytest.mark.parametrize('soft', [False, True])
    def test_compiles_once_for_all_batch_sizes(self, soft):
        # 'aot_eager' runs the tracer and autograd's partitioner but needs no
        # C++ compiler.
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounterWithBackend('aot_eager')
        compiled = torch.compile(self.loss, fullgraph=True, backend=counter)
        for size in (4, 6, 7, 12, 33):
            batch = make((size, 6), size, soft=soft)
            value, grad = self.got(*batch, loss=compiled)
            expected, exact = self.got(*batch)
            assert value == pytest.approx(expected, rel=1e-12)
            torch.testing.assert_close(grad, exact)
        # The second size makes torch take the first dimension for dynamic.
        assert counter.frame_count <= 2

    def test_copies_are_the_same_loss(self):
        batch = make((6, 5))
        for twin in (copy.deepcopy(self.loss),
                     pickle.loads(pickle.dumps(self.loss))):
            assert twin(*batch) == self.loss(*batch)
        assert not self.loss.state_dict()


def _network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 6, bias=False)


def _train_a_half(rank: int, folder: Path) -> None:
    dist.init_process_group(
        'gloo', f'file://{folder}/store', rank=rank, world_size=2)
    loss, student, teacher, labels = torch.load(
        folder / 'batch.pt', **_TRUSTED)
    half = slice(4 * rank, 4 * rank + 4)
    network = DistributedDataParallel(_network())
    loss(student=network(student[half]), teacher=teacher[half],
         gt_labels=labels[half]).backward()
    torch.save(network.module.weight.grad, folder / f'{rank}.pt')
    dist.destroy_process_group()


_TRUSTED = {} if torch.__version__ < '1.13.2' else dict(weights_only=False)
