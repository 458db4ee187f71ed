"""Labels as the packages of dense tasks hand them over."""
import pytest
import torch

from wsld_plugin.functional import wsld_loss
from wsld_plugin.losses import WSLDLoss


def test_labels_of_pixels_may_have_a_channel():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 5, 4, 6)
    labels = torch.randint(5, (2, 4, 6))
    labels[0, :2] = 255
    loss = WSLDLoss(tau=2, ignore_index=255)
    expected = wsld_loss(student, teacher, labels, 2, ignore_index=255)
    for given in (labels, labels.unsqueeze(1), labels.unsqueeze(1).byte()):
        assert torch.equal(loss(student, teacher, given), expected)
    with pytest.raises(ValueError, match='gt_labels must be class indices'):
        loss(student, teacher, labels.unsqueeze(2))


def test_rows_of_other_boxes_are_refused():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 8, 4)
    labels = torch.arange(8) % 4
    loss = WSLDLoss()
    expected = loss(student, teacher, labels)
    same = loss(student, teacher, labels, teacher_labels=labels.clone())
    assert torch.equal(same, expected)
    other = labels.clone()
    other[[2, 5]] = 3
    for wrong, said in ((other, '2 of 8 rows have another label'),
                        (labels[:7], r'shapes \(8,\) and \(7,\)')):
        with pytest.raises(ValueError, match=f'{said}.*wsld_frcnn.py'):
            loss(student, teacher, labels, teacher_labels=wrong)


def test_a_background_without_a_class_is_explained():
    logits = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r'got 4 .*docs/dense\.md'):
        WSLDLoss()(logits, logits, torch.tensor([0, 4, 1]))
    with pytest.raises(ValueError, match=r'ignore_index=-100, got 7'):
        WSLDLoss()(logits, logits, torch.tensor([0, 7, 1]))
