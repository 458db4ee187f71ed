"""What every loss has to pass, in the manner of torchmetrics' MetricTester.

A new loss gets all of it by a class of a few lines::

    class TestMyLoss(LossTester):

        def build(self, **settings):
            return MyLoss(tau=2.0, **settings)

        def exact(self, student, teacher, target):
            return oracle.my_row(student, teacher, target, tau=2.0)
"""
from __future__ import annotations

import copy
import math
import os
import pickle
from collections.abc import Callable

import oracle
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel

SHAPES = [(5, 7), (1, 2), (3, 1), (2, 300), (2, 4, 3, 5), (4, 5, 1, 1, 2)]
# dtype: relative error of the loss, error of the gradient over its largest
# entry. Half-precision gradients are stored in half precision.
TOLERANCES = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (2e-6, 1e-5),
    torch.float16: (2e-6, 1e-3),
    torch.bfloat16: (2e-6, 8e-3),
}
CAN_COMPILE = hasattr(getattr(torch, 'compiler', None), 'is_compiling')
needs_compiler = pytest.mark.skipif(
    not CAN_COMPILE, reason='this torch cannot tell that it compiles')


def make(shape, seed=0, dtype=torch.float64, scale=3.0, soft=False,
         device='cpu'):
    """Random logits of a student and a teacher, and labels for them."""
    gen = torch.Generator().manual_seed(seed)
    student, teacher, mixed = (
        scale * torch.randn(shape, generator=gen, dtype=torch.float64)
        for _ in range(3))
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=gen)
    labels = mixed.softmax(1) if soft else labels
    return (student.to(device, dtype).requires_grad_(),
            teacher.to(device, dtype), labels.to(device))


def rows_of(tensor):
    """``(N, C, *)`` as a list of rows of Python floats."""
    return tensor.detach().double().movedim(1, -1).flatten(0, -2).tolist()


def targets_of(labels, classes, ignore=-100):
    """Class probabilities row by row, None where ignored."""
    if labels.is_floating_point():
        return rows_of(labels)
    return [None if y == ignore else oracle.one_hot(y, classes)
            for y in labels.flatten().tolist()]


def judge(exact, student, teacher, labels, ignore=-100):
    """Values ``(N, *)`` and gradients ``(N, C, *)``, of exact row by row."""
    rows = [exact(*row) for row in zip(
        rows_of(student), rows_of(teacher),
        targets_of(labels, student.shape[1], ignore))]
    values, grads = (
        torch.tensor([row[i] for row in rows], dtype=torch.float64)
        for i in (0, 1))
    shape = student[:, 0].shape
    return values.view(shape), grads.view(
        *shape, student.shape[1]).movedim(-1, 1)


def gradient(loss, student):
    return torch.autograd.grad(loss, student)[0]


def both(loss, student, teacher, labels):
    """Value and gradient."""
    value = loss(student, teacher, labels)
    return value, gradient(value.sum(), student)


def answers(loss, student, teacher, labels):
    """Value and gradient in eager mode, by torch.func and compiled."""
    student = student.detach().requires_grad_()
    ways = [loss]
    if CAN_COMPILE:
        torch._dynamo.reset()
        ways.append(torch.compile(loss, fullgraph=True, backend='aot_eager'))
        yield torch.func.grad_and_value(loss)(student.detach(), teacher,
                                              labels)[::-1]
    for way in ways:
        yield both(way, student, teacher, labels)


class LossTester:
    """Derive from this; see the module."""

    def build(self, **settings) -> nn.Module:
        """The loss with ``reduction`` and ``ignore_index`` if given."""
        raise NotImplementedError

    def exact(self, student: list[float], teacher: list[float],
              target: list[float]) -> tuple[float, list[float]]:
        """Value and gradient of one row from the oracle."""
        raise NotImplementedError

    def smooth(self, loss: Callable, student: Tensor, teacher: Tensor,
               labels: Tensor) -> Tensor:
        """Rows whose numerical derivative is the loss's gradient."""
        return loss(student, teacher, labels)

    def judge(self, student, teacher, labels, ignore=-100):
        return judge(
            lambda s, t, y: (0.0, [0.0] * len(s)) if y is None else
            self.exact(s, t, y), student, teacher, labels, ignore)

    @pytest.mark.parametrize('shape', SHAPES, ids=str)
    @pytest.mark.parametrize('soft', [False, True])
    @pytest.mark.parametrize('reduction', ['none', 'sum', 'mean'])
    def test_value_and_gradient_are_the_oracles(self, device, shape, soft,
                                                reduction):
        student, teacher, labels = make(shape, soft=soft, device=device)
        if not soft and len(labels) > 1:
            labels[1:2] = 255
        values, grads = self.judge(student, teacher, labels, 255)
        count = labels[:, 0].numel() if soft else (labels != 255).sum()
        if reduction != 'none':
            values = values.sum()
        if reduction == 'mean':
            values, grads = values / count, grads / count
        loss, grad = both(self.build(reduction=reduction, ignore_index=255),
                          student, teacher, labels)
        torch.testing.assert_close(loss.cpu(), values, rtol=1e-11,
                                   atol=1e-13)
        torch.testing.assert_close(grad.cpu(), grads, rtol=1e-9, atol=1e-14)

    @pytest.mark.parametrize('soft', [False, True])
    def test_first_and_second_derivative_are_numerical(self, soft):
        student, teacher, labels = make((2, 4, 2, 1), soft=soft, scale=1.0)
        loss = self.build(reduction='none')

        def rows(s):
            return self.smooth(loss, s, teacher, labels)

        assert torch.autograd.gradcheck(rows, student)
        assert torch.autograd.gradgradcheck(rows, student)

    def test_only_the_student_gets_a_gradient(self):
        student, teacher, labels = make((4, 3))
        teacher.requires_grad_()
        loss = self.build()
        loss(student, teacher, labels).backward()
        assert teacher.grad is None and student.grad.abs().sum() > 0
        assert not loss(student.detach(), teacher, labels).requires_grad

    @pytest.mark.parametrize('dtype', list(TOLERANCES), ids=str)
    @pytest.mark.parametrize('shape', [(8, 100), (2, 19, 4, 5)], ids=str)
    @pytest.mark.parametrize('soft', [False, True])
    @pytest.mark.parametrize('autocast', [False, True])
    def test_precision(self, device, dtype, shape, soft, autocast):
        student, teacher, labels = make(shape, 1, dtype, soft=soft,
                                        device=device)
        if autocast and dtype != torch.float64:
            teacher = teacher.float()
        values, grads = self.judge(student, teacher, labels)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss, grad = both(self.build(), student, teacher, labels)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert (loss.dtype, grad.dtype) == (wide, dtype)
        rel, rel_grad = TOLERANCES[dtype]
        assert loss.item() == pytest.approx(values.mean().item(), rel=rel)
        grads /= values.numel()
        assert (grad.cpu() - grads).abs().max() <= rel_grad * grads.abs().max()

    @pytest.mark.parametrize('shape', [(2, 19, 256, 512), (64, 32000),
                                       (256, 1000)], ids=str)
    def test_a_loss_scale_reaches_float16_gradients(self, device, shape):
        # A gradient that is rounded before it is scaled underflows.
        student, teacher, labels = make(shape, 0, torch.float16,
                                        device=device)
        wide = student.detach().double().requires_grad_()
        grad, exact = (
            gradient(65536 * self.build()(s, teacher.to(s), labels), s)
            for s in (student, wide))
        assert (grad - exact).norm() <= 1e-3 * exact.norm()

    @pytest.mark.parametrize('size', [1e2, 1e4])
    @pytest.mark.parametrize('soft', [False, True])
    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    def test_huge_logits(self, device, size, soft, dtype):
        student, teacher, labels = make((64, 5), 3, dtype, size, soft, device)
        with torch.no_grad():
            teacher[:8] = student[:8]
            student[8:16, 0] = size * 3
            teacher[8:16, 0] = size * 2
        values, grads = self.judge(student, teacher, labels)
        loss, grad = both(self.build(), student, teacher, labels)
        assert loss.item() == pytest.approx(values.mean().item(), rel=1e-5)
        torch.testing.assert_close(grad.cpu().double(), grads / 64,
                                   rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
    @pytest.mark.parametrize('shape', [(0, 4), (0, 4, 3, 3), (3, 4),
                                       (2, 4, 2, 2)], ids=str)
    def test_nothing_that_counts_gives_zero(self, device, reduction, shape):
        student, teacher, labels = make(shape, device=device)
        loss, grad = both(self.build(reduction=reduction), student, teacher,
                          torch.full_like(labels, -100))
        assert loss.sum() == 0 and (grad == 0).all()

    def test_nan_in_an_ignored_row_changes_nothing(self, device):
        student, teacher, labels = make((6, 5, 2), device=device)
        labels[2, 1] = -100
        loss = self.build()
        expected = both(loss, student, teacher, labels)
        student = student.detach().clone()
        student[2, :, 1], teacher[2, :, 1] = math.nan, math.inf
        for got in answers(loss, student, teacher, labels):
            torch.testing.assert_close(got, expected)
        labels[2, 1] = 0
        assert loss(student, teacher, labels).isnan()

    @pytest.mark.parametrize('soft', [False, True])
    def test_classes_masked_in_both_networks_count_zero(self, device, soft):
        student, teacher, labels = make((6, 3), soft=soft, device=device)
        there = torch.tensor([0, 2, 3], device=device)

        def spread(x, value=-math.inf):
            return torch.full((6, 5), value, device=device).to(
                x).index_copy(1, there, x)

        expected, grad = both(self.build(), student, teacher, labels)
        for got in answers(self.build(), spread(student), spread(teacher),
                           spread(labels, 0.0) if soft else there[labels]):
            torch.testing.assert_close(got, (expected, spread(grad, 0.0)))

    @pytest.mark.parametrize('soft', [False, True])
    def test_memory_layouts_agree(self, device, soft):
        student, teacher, labels = make((2, 5, 4, 6), soft=soft,
                                        device=device)
        expected = both(self.build(), student, teacher, labels)
        for view in (lambda x: x.to(memory_format=torch.channels_last),
                     lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
                     lambda x: x.repeat(1, 1, 1, 2)[..., ::2]):
            s, t = view(student.detach()).requires_grad_(), view(teacher)
            s.data.copy_(student.detach())
            t.copy_(teacher)
            torch.testing.assert_close(both(self.build(), s, t, labels),
                                       expected)

    def test_a_teacher_that_ran_under_inference_mode(self, device):
        student, teacher, labels = make((4, 3), device=device)
        loss = self.build()
        expected = both(loss, student, teacher, labels)
        with torch.inference_mode():
            inferred = teacher * 1
            assert loss(student, inferred, labels) == expected[0]
        for got in answers(loss, student, inferred, labels):
            torch.testing.assert_close(got, expected)

    @pytest.mark.skipif(not hasattr(torch, 'func'), reason='no torch.func')
    @pytest.mark.parametrize('soft', [False, True])
    def test_torch_func_and_forward_mode(self, device, soft):
        student, teacher, labels = make((4, 5, 2), soft=soft, device=device)
        loss = self.build(reduction='sum')
        value, grad = both(loss, student, teacher, labels)
        student = student.detach()
        direction = torch.randn_like(student)
        slope = (grad * direction).sum()

        def one(s, t, y):
            return loss(s[None], t[None], y[None])

        with forward_ad.dual_level():
            dual = loss(forward_ad.make_dual(student, direction), teacher,
                        labels)
            tangent = forward_ad.unpack_dual(dual).tangent
        data = student, teacher, labels
        torch.testing.assert_close(
            (torch.func.grad(loss)(*data),
             torch.func.vmap(torch.func.grad(one))(*data),
             torch.func.vmap(one)(*data).sum(),
             torch.func.jvp(lambda s: loss(s, teacher, labels), (student, ),
                            (direction, ))[1], tangent),
            (grad, grad, value, slope, slope))

    @needs_compiler
    @pytest.mark.parametrize('soft', [False, True])
    def test_one_graph_for_all_batch_sizes(self, device, soft):
        from torch._dynamo.testing import CompileCounterWithBackend
        torch._dynamo.reset()
        counter = CompileCounterWithBackend('aot_eager')
        loss = self.build()
        compiled = torch.compile(loss, fullgraph=True, backend=counter)
        for n in (4, 6, 9, 12, 33):
            student, teacher, labels = make((n, 6, 2), n, soft=soft,
                                            device=device)
            torch.testing.assert_close(*(
                both(way, student, teacher, labels)
                for way in (compiled, loss)))
        # The first size alone, and any size.
        assert counter.frame_count == 2

    @needs_compiler
    @pytest.mark.parametrize('label', [255, 10, -1])
    def test_labels_out_of_range_are_refused(self, label):
        torch._dynamo.reset()
        student, teacher, labels = make((4, 10))
        compiled = torch.compile(self.build(), backend='aot_eager')
        compiled(student, teacher, labels)
        labels[1] = label
        message = r'gt_labels must be in \[0, 10\) or ignore_index=-100'
        with pytest.raises(RuntimeError, match=message):
            compiled(student, teacher, labels)
        with pytest.raises(ValueError, match=f'{message}, got {label}'):
            self.build()(student, teacher, labels)

    def test_it_is_copied_and_saved_with_a_model(self):
        loss = self.build()
        data = make((6, 5))
        assert not loss.state_dict() and not list(loss.parameters())
        for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            assert twin(*data) == loss(*data)
            assert repr(twin) == repr(loss)

    def test_two_processes_get_the_gradient_of_one(self, tmp_path):
        loss = self.build()
        torch.multiprocessing.spawn(_train, (loss, str(tmp_path)), nprocs=2)
        model, batch = _model_and_batch()
        loss(model(batch[0]), *batch[1:]).backward()
        for rank in range(2):
            grads = torch.load(tmp_path / f'{rank}.pt')
            assert len(grads) == 2
            for got, parameter in zip(grads, model.parameters()):
                torch.testing.assert_close(got, parameter.grad)


def _model_and_batch() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    batch = (torch.randn(8, 3).double(), torch.randn(8, 5).double(),
             torch.randint(5, (8, )))
    return nn.Linear(3, 5).double(), batch


def _train(rank: int, loss: nn.Module, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', rank=rank, world_size=2, init_method=f'file://{folder}/store')
    model, batch = _model_and_batch()
    wrapped = DistributedDataParallel(model)
    images, teacher, labels = (x[4 * rank:4 * rank + 4] for x in batch)
    loss(wrapped(images), teacher, labels).backward()
    torch.save([p.grad for p in model.parameters()],
               os.path.join(folder, f'{rank}.pt'))
    torch.distributed.destroy_process_group()
